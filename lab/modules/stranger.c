/* Does nothing: a module that no distribution packaged. */
#include "guest.h"

int init_module(void)
{
    return 0;
}

void cleanup_module(void)
{
}
