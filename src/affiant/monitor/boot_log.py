"""The firmware's event log, copied while the guest boots.

A kernel that was started through its EFI stub keeps the log for as long as it runs. One that was not,
as Debian's GRUB starts it with Secure Boot off, knows nothing of it: the firmware's buffer goes to
whoever asks for memory next. A copy that was taken before is as good, because a log counts only
where it replays onto a fresh quote; and so a guest that spoils its log later gains nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from affiant.kernel.machine.event_log import LONGEST_LOG, EventLogCandidate, scan_for_event_logs
from affiant.kernel.machine.memory import GuestMemory

__all__ = ["BootLogCopies"]

_MOST_COPIES: Final = 32
_MOST_AT_ONCE: Final = 8
_MOST_BYTES: Final = _MOST_AT_ONCE * LONGEST_LOG
_MOST_SECONDS: Final = 10.0  # a guest that never becomes known must not have its memory searched for ever


class BootLogCopies:
    """The latest different contents of one guest's event logs, in bounded memory. Nothing is verified."""

    def __init__(self, memory: GuestMemory, *, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock` tells what it costs, in seconds."""
        self._memory = memory
        self._clock = clock
        self._spent = 0.0
        self._proven: EventLogCandidate | None = None
        self._copies: deque[EventLogCandidate] = deque(maxlen=_MOST_COPIES)

    def take(self) -> bool:
        """Copy the logs that memory holds now, as far as they are not kept already.

        It looks through all of memory, a few milliseconds while firmware and boot loader run. A reset
        does not clear memory, so that logs of an earlier boot may be among them. After ten seconds of
        that in one boot it does nothing, and returns False.
        """
        if self._spent >= _MOST_SECONDS:
            return False
        began = self._clock()
        known = {copy.data for copy in self._copies}
        # The one with most events is appended last, so that it stays longest.
        for candidate in reversed(scan_for_event_logs(self._memory)[:_MOST_AT_ONCE]):
            if candidate.data not in known:
                self._copies.append(candidate)
        while sum(len(copy.data) for copy in self._copies) > _MOST_BYTES:
            self._copies.popleft()
        self._spent += self._clock() - began
        return True

    def prove(self, candidate: EventLogCandidate) -> None:
        """Keep a log that replayed onto a quote of this boot, whatever is copied later."""
        self._proven = candidate

    def candidates(self) -> tuple[EventLogCandidate, ...]:
        """What was kept, the likeliest first."""
        newest_first = reversed(self._copies)
        return tuple(newest_first) if self._proven is None else (self._proven, *newest_first)

    def forget(self) -> None:
        """Begin anew: the guest was started again, and its firmware writes another log."""
        self._spent, self._proven = 0.0, None
        self._copies.clear()
