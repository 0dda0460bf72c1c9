"""Whether the kernel is about to free what modules needed for their init alone.

kernel/module/main.c (`do_init_module()`, `do_free_init()`). From the moment on at which a module is live,
the text of its init belongs to nobody. A worker frees it once it has waited for a grace period of RCU: not
soon, in a guest whose workers get no processor time.
"""

from __future__ import annotations

import time
from typing import Final

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.transient.deferred_calls import DeferredCalls
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import AffiantError, MalformedError

__all__ = ["is_freeing_init"]

_WORKER: Final = "do_free_init"
_SECONDS: Final = 0.5  # of this thread's processor time
_ATTEMPTS: Final = 3


def is_freeing_init(program: KernelProgram, *, vcpus: int) -> bool:
    """Tell whether the work that frees init text waits for a worker or is at work; False if nobody can tell.

    Data of the guest: an excuse for code of nobody, and none that may last.
    """
    function = program.find(_WORKER)
    if function is None:
        return False
    budget = Budget(seconds=_SECONDS, clock=time.thread_time)
    for _ in range(_ATTEMPTS):
        try:
            calls = DeferredCalls(program, Snapshot(program, budget), vcpus=vcpus)
            return any(called == function for _, called in calls.works())
        except (MemoryFault, MalformedError):
            continue  # queues move while they are read
        except AffiantError:
            break
    return False
