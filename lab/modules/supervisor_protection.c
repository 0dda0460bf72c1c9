/*
 * Clears the bits of CR4 that keep the kernel from user memory, on the processor that loads it. Without INVPCID
 * the kernel writes them again whenever it flushes the whole translation cache (native_flush_tlb_global()).
 */
#include "guest.h"
#include "held.h"

#define PROTECTIONS (1ul << 20 | 1ul << 21) /* SMEP, SMAP */

static word before;

static void change(void)
{
    asm volatile("mov %%cr4, %0" : "=r"(before));
    asm volatile("mov %0, %%cr4" : : "r"(before & ~PROTECTIONS) : "memory");
}

static void restore(void)
{
    asm volatile("mov %0, %%cr4" : : "r"(before) : "memory");
}

int init_module(void)
{
    hold(change, restore);
    return 0;
}

void cleanup_module(void)
{
}
