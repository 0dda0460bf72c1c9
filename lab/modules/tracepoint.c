/* Has the kernel call a function of this module whenever a module is taken into use. */
#include "guest.h"

extern char __tracepoint_module_get[];
int tracepoint_probe_register(void *tracepoint, void *probe, void *data);
int tracepoint_probe_unregister(void *tracepoint, void *probe, void *data);
void synchronize_rcu(void);

static void watch(void *data, void *module, word ip)
{
}

int init_module(void)
{
    return tracepoint_probe_register(__tracepoint_module_get, watch, 0);
}

void cleanup_module(void)
{
    tracepoint_probe_unregister(__tracepoint_module_get, watch, 0);
    synchronize_rcu();
}
