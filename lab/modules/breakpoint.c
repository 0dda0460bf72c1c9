/* Watches a variable of this module with a debug register of the processor that loads it. */
#include "guest.h"

static word watched;

int init_module(void)
{
    asm volatile("mov %0, %%db3" : : "r"(&watched));
    asm volatile("mov %0, %%db7" : : "r"(0x400ul | 1ul << 7 | 1ul << 28)); /* enabled, on writes */
    return 0;
}

void cleanup_module(void)
{
    asm volatile("mov %0, %%db7" : : "r"(0x400ul));
    asm volatile("mov %0, %%db3" : : "r"(0ul));
}
