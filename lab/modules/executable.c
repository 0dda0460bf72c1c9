/* Has a page of executable memory that belongs to no module: where shellcode would live. It is never run. */
#include "guest.h"
#include "lookup.h"


static char *page;

int init_module(void)
{
    void *(*module_alloc)(word) = lookup("module_alloc"); /* before 6.10 */
    void *(*execmem_alloc)(int, word) = lookup("execmem_alloc");
    void *(*execmem_alloc_rw)(int, word) = lookup("execmem_alloc_rw"); /* since 6.17 */
    int (*read_only)(word, int) = lookup("set_memory_ro");
    int (*executable)(word, int) = lookup("set_memory_x");

    if (!(module_alloc || execmem_alloc) || !read_only || !executable)
        return -38;
    if (execmem_alloc_rw)
        page = execmem_alloc_rw(0, 4096);
    else
        page = execmem_alloc ? execmem_alloc(0, 4096) : module_alloc(4096);
    if (!page)
        return -12;
    for (int place = 0; place < 4096; place += 2)
        *(unsigned short *)(page + place) = 0xc390; /* nop; ret */
    read_only((word)page, 1);
    return executable((word)page, 1);
}

void cleanup_module(void)
{
    void (*module_memfree)(void *) = lookup("module_memfree");
    void (*execmem_free)(void *) = lookup("execmem_free");

    (execmem_free ? execmem_free : module_memfree)(page);
}
