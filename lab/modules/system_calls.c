/* Has the system calls of the processor that loads it enter the kernel through this module (LSTAR). */
#include "guest.h"
#include "registers.h"

word entry_before __attribute__((used));

asm(".text\n"
    "detour:\n"
    "    jmp *entry_before(%rip)\n");
extern char detour[];

int init_module(void)
{
    entry_before = read_register(LSTAR);
    write_register(LSTAR, (word)detour);
    return 0;
}

void cleanup_module(void)
{
    write_register(LSTAR, entry_before);
}
