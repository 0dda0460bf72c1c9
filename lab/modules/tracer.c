/* Has the kernel's function tracer call a function of this module whenever /proc/net/tcp is read. */
#include "guest.h"

int ftrace_set_filter(void *ops, unsigned char *pattern, int length, int reset);
int register_ftrace_function(void *ops);
int unregister_ftrace_function(void *ops);

OBJECT(operations, ftrace_ops);
static unsigned char pattern[] = "tcp4_seq_show";

static void watch(word ip, word parent, void *ops, void *registers)
{
}

int init_module(void)
{
    int error;

    FIELD(operations, ftrace_ops, func, void *) = watch;
    error = ftrace_set_filter(operations, pattern, sizeof(pattern) - 1, 1);
    return error ? error : register_ftrace_function(operations);
}

void cleanup_module(void)
{
    unregister_ftrace_function(operations);
}
