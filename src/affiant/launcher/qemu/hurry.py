"""A thread that goes before others for as long as a guest stands still for it.

On a host with more work than processors, a thread that was woken waits for milliseconds, and one that
works is put aside in the middle. While a guest is stopped, that is time which the guest loses.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

__all__ = ["Hurry"]

# Whoever asks again and again does so with the priority that others have.
_SPACING_SECONDS = 0.1


class Hurry:
    """Gives the calling thread a real-time priority now and then, where the host lets it.

    The lowest there is (sched(7), SCHED_RR), for a `with` statement at a time and at most once in 0.1 s.
    """

    def __init__(self) -> None:
        self._last = -_SPACING_SECONDS

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Go before others meanwhile."""
        hurried = time.monotonic() - self._last >= _SPACING_SECONDS and _schedule(os.SCHED_RR, 1)
        try:
            yield
        finally:
            if hurried:
                _schedule(os.SCHED_OTHER, 0)
                self._last = time.monotonic()


def _schedule(policy: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:  # not root, or a container that may not: all works, with more waiting
        return False
    return True
