/* Has 32-bit system calls of the processor that loads it lead to this module (CSTAR, SYSENTER_EIP). */
#include "guest.h"
#include "registers.h"

static word compat_before, sysenter_before;

int init_module(void)
{
    compat_before = read_register(CSTAR);
    sysenter_before = read_register(SYSENTER_EIP);
    write_register(CSTAR, (word)init_module);
    write_register(SYSENTER_EIP, (word)init_module);
    return 0;
}

void cleanup_module(void)
{
    write_register(CSTAR, compat_before);
    write_register(SYSENTER_EIP, sysenter_before);
}
