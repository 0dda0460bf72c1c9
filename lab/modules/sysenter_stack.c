/* Has SYSENTER, which no program of the guest uses, enter on a stack of this module. */
#include "guest.h"
#include "registers.h"

static word before, stack[64];

int init_module(void)
{
    before = read_register(SYSENTER_ESP);
    write_register(SYSENTER_ESP, (word)(stack + 64));
    return 0;
}

void cleanup_module(void)
{
    write_register(SYSENTER_ESP, before);
}
