"""The guest that all benchmarks of one run look at: Debian's kernel, 60 modules, 150 tasks, two vCPUs."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache

from lab.crowded import crowded_guest
from lab.guests import GuestPlan
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of

__all__ = ["shared_guest"]

_MODULES, _TASKS = 60, 150


@cache
def shared_guest() -> LiveGuest:
    """Return the guest, booted when it is asked for first, gone when the process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    plan = GuestPlan(firmware=False, tpm=False)
    guest = stack.enter_context(crowded_guest(plan, modules=_MODULES, tasks=_TASKS))
    return stack.enter_context(open_live_guest(guest, reference_of(guest.kernel)))
