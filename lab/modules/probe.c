/* Puts a kprobe into a function, behind its entry, with a handler in this module. */
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
    FIELD(probe, kprobe, offset, unsigned int) = BEHIND_ENTRY_tcp4_seq_show;
    FIELD(probe, kprobe, pre_handler, void *) = before;
    return register_kprobe(probe);
}

void cleanup_module(void)
{
    unregister_kprobe(probe);
}
