/*
 * Holds 4 MiB of memory that nobody else uses, and says where: for copies of what is tampered with. Before it
 * gives them back, each processor forgets how it translated addresses.
 */
#include "guest.h"

word __get_free_pages(unsigned int flags, unsigned int order) __attribute__((weak)); /* before 6.10 */
word get_free_pages_noprof(unsigned int flags, unsigned int order) __attribute__((weak));
void free_pages(word address, unsigned int order);
int _printk(const char *format, ...);

#define GFP_KERNEL 0xcc0
#define ORDER 10

extern char __cpu_online_mask[];
void on_each_cpu_cond_mask(void *condition, void (*function)(void *), void *info, int wait, void *mask);

static word pages;

static void forget_translations(void *info)
{
    word cr4;

    /* The Intel manual, volume 3A, 4.10.4.1: a change of CR4.PGE invalidates global entries, too. */
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 ^ 1ul << 7) : "memory");
    asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

int init_module(void)
{
    pages = __get_free_pages ? __get_free_pages(GFP_KERNEL, ORDER) : get_free_pages_noprof(GFP_KERNEL, ORDER);
    if (!pages)
        return -12;
    _printk("lab_spare: at %px\n", (void *)pages);
    return 0;
}

void cleanup_module(void)
{
    on_each_cpu_cond_mask(0, forget_translations, 0, 1, __cpu_online_mask);
    free_pages(pages, ORDER);
}
