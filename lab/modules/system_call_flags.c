/* Has system calls of the processor that loads it keep the carry flag, which the kernel wants cleared. */
#include "guest.h"
#include "registers.h"

static word before;

int init_module(void)
{
    before = read_register(SYSCALL_MASK);
    write_register(SYSCALL_MASK, before & ~1ul);
    return 0;
}

void cleanup_module(void)
{
    write_register(SYSCALL_MASK, before);
}
