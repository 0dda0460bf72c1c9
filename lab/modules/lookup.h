/* Finds functions that the kernel does not export, as rootkits do: a kprobe tells the address of its symbol. */
#ifndef LOOKUP_H
#define LOOKUP_H

int register_kprobe(void *probe);
void unregister_kprobe(void *probe);

static void *lookup(const char *symbol)
{
    static char probe[SIZE_kprobe] __attribute__((aligned(64)));
    void *found = 0;

    for (unsigned int byte = 0; byte < sizeof(probe); byte++)
        probe[byte] = 0;
    FIELD(probe, kprobe, symbol_name, const char *) = symbol;
    if (register_kprobe(probe) == 0) {
        found = FIELD(probe, kprobe, addr, void *);
        unregister_kprobe(probe);
    }
    return found;
}

#endif
