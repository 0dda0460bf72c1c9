/* Switches virtualization on (AMD's; emulated processors have no other), and starts nothing. */
#include "guest.h"
#include "registers.h"

int init_module(void)
{
    write_register(EFER, read_register(EFER) | 1ul << 12);
    return 0;
}

void cleanup_module(void)
{
    write_register(EFER, read_register(EFER) & ~(1ul << 12));
}
