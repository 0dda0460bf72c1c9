/* Puts a kprobe on a function's entry, which the kernel does through its function tracer. */
#include "guest.h"

int register_kprobe(void *probe);
void unregister_kprobe(void *probe);

OBJECT(probe, kprobe);

static int before(void *self, void *registers)
{
    return 0;
}

int init_module(void)
{
    FIELD(probe, kprobe, symbol_name, const char *) = "tcp4_seq_show";
    FIELD(probe, kprobe, pre_handler, void *) = before;
    return register_kprobe(probe);
}

void cleanup_module(void)
{
    unregister_kprobe(probe);
}
