/* Clears CR0.WP of the processor that loads it: the kernel may then write to what is read-only. */
#include "guest.h"

static void set(word remove, word add)
{
    word cr0;

    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" : : "r"((cr0 & ~remove) | add) : "memory");
}

int init_module(void)
{
    set(1ul << 16, 0);
    return 0;
}

void cleanup_module(void)
{
    set(0, 1ul << 16);
}
