/* Model-specific registers of the processor that runs this. */
#ifndef REGISTERS_H
#define REGISTERS_H

#define EFER 0xc0000080
#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define SYSCALL_MASK 0xc0000084
#define GS_BASE 0xc0000101
#define SYSENTER_ESP 0x175
#define SYSENTER_EIP 0x176
#define PAT 0x277

static word read_register(unsigned int number)
{
    unsigned int low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (word)high << 32 | low;
}

static void write_register(unsigned int number, word value)
{
    asm volatile("wrmsr" : : "c"(number), "a"((unsigned int)value), "d"((unsigned int)(value >> 32)));
}

#endif
