/* Has a function's return lead through a handler of this module. */
#include "guest.h"

int register_kretprobe(void *probe);
void unregister_kretprobe(void *probe);

OBJECT(probe, kretprobe);

static int returned(void *instance, void *registers)
{
    return 0;
}

int init_module(void)
{
    FIELD(probe, kretprobe, kp__symbol_name, const char *) = "tcp4_seq_show";
    FIELD(probe, kretprobe, handler, void *) = returned;
    FIELD(probe, kretprobe, maxactive, int) = 4;
    return register_kretprobe(probe);
}

void cleanup_module(void)
{
    unregister_kretprobe(probe);
}
