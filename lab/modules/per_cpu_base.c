/* Runs with another GS base than the kernel's on the processor that loads it. */
#include "guest.h"
#include "held.h"
#include "registers.h"

static word before;

static void change(void)
{
    before = read_register(GS_BASE);
    write_register(GS_BASE, before + 64);
}

static void restore(void)
{
    write_register(GS_BASE, before);
}

int init_module(void)
{
    hold(change, restore);
    return 0;
}

void cleanup_module(void)
{
}
