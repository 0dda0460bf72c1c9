"""Telling what lasts from what passes, in a kernel that never stands still.

Many things look wrong for a moment while a kernel loads or frees something. No single moment tells
such a thing from a hidden one; time does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from affiant.kernel.transient.grace_periods import GracePeriods

__all__ = ["Patience"]

_Thing = TypeVar("_Thing", bound=Hashable)
_PATIENCE_SECONDS = 5.0
_LOOK_SPACING_SECONDS = 1.0
_LOOKS = 4
# What waits to be freed waits for the grace period that is going on, and for the next one, whole.
_GRACE_PERIODS = 2
_STALLED_SECONDS = 60.0
_MOST_UNSEEN = 4096
_RECENT = 64


@dataclass(frozen=True, slots=True)
class _Record:
    since: float  # when it was first seen
    counted: float  # from when on its seconds count
    seen: float  # the last look that it was there in
    last: float  # the last one that counted
    looks: int
    ended: int  # grace periods that had ended when it was first seen
    settled: bool = False

    def rested(self, now: float) -> _Record:
        return replace(self, counted=self.counted + now - self.seen, seen=now)


class Patience:
    """Remembers for how long, and in how many looks, something suspicious has persisted.

    A thing is settled when it was there in every look for 5 seconds, and in at least 4 looks that
    are a second or more apart (so that a quick second look under pause does not count twice).

    In a guest that is short of processor time, what waits to be freed lasts longer: the seconds do not
    count until two grace periods have ended since the thing was first seen, as long as the kernel says
    that one is going on (`periods` tells), and for a minute at most. What has settled stays settled while it
    is there: a grace period that begins later excuses nothing.
    """

    def __init__(self, periods: Callable[[], GracePeriods | None] = lambda: None) -> None:
        self._periods = periods
        self._seen: dict[str, dict[Hashable, _Record]] = {}
        self._looks: dict[str, deque[bool]] = {}
        self._counted: dict[str, float] = {}

    def settled(
        self,
        topic: str,
        things: set[_Thing],
        now: float,
        *,
        seconds: float = _PATIENCE_SECONDS,
        looks: int = _LOOKS,
        excused: bool | Set[_Thing] = False,
        resting: Set[_Thing] = frozenset(),
        unseen: Callable[[Any], bool] = lambda _thing: False,
    ) -> set[_Thing]:
        """Return those of `things` that have persisted (for `seconds`, in so many `looks`); whatever is gone
        is forgotten.

        Looks in which they are `excused`, all or those that are named, because the kernel is at work on them,
        do not count for the seconds, for a minute at most. Those that are `resting` have looks and the time
        before them count for nothing, for as long as they rest; what counted before goes on to. Of those that
        are not among `things`, the ones that could not be seen in this look, whether they are there or not,
        rest as well.
        """
        spared: Set[_Thing] = excused if isinstance(excused, Set) else things if excused else frozenset()
        before = self._seen.get(topic, {})
        # A longer patience has room for what a grace period takes.
        periods = self._periods() if things and seconds <= _PATIENCE_SECONDS else None
        after: dict[Hashable, _Record] = {}
        hidden = (thing for thing in before if thing not in things and unseen(thing))
        for thing in islice(hidden, _MOST_UNSEEN):
            after[thing] = before[thing].rested(now)
        for thing in things:
            ended = periods.ended if periods else 0
            record = before.get(thing) or _Record(now, now, now, now - _LOOK_SPACING_SECONDS, 0, ended)
            if thing in resting:
                record = record.rested(now)
            elif now - record.last >= _LOOK_SPACING_SECONDS:
                record = replace(record, last=now, looks=record.looks + 1)
            waits = periods and periods.going_on and periods.ended - record.ended < _GRACE_PERIODS
            if (waits or thing in spared) and now - record.since < _STALLED_SECONDS and not record.settled:
                record = replace(record, counted=now)
            lasting = thing not in resting and self._lasting(record, now, seconds, looks)
            after[thing] = replace(record, seen=now, settled=record.settled or lasting)
        self._seen[topic] = after
        return {thing for thing in things if after[thing].settled}

    def often(
        self, topic: str, there: bool, now: float, *, looks: int, after: str = ""
    ) -> tuple[int, int] | None:
        """Return in how many of how many looks there was such a thing, whichever, of the last 64.

        None if it is not there now, or was in fewer than `looks` of them. Of looks less than a second apart
        the last one counts, and of those that follow one look on the topic `after` as well. A look in which
        there is none takes nothing from those before.
        """
        now = self._counted.get(after, now)
        last = self._looks.setdefault(topic, deque(maxlen=_RECENT))
        if last and now - self._counted[topic] < _LOOK_SPACING_SECONDS:
            last[-1] = there
        else:
            last.append(there)
            self._counted[topic] = now
        seen = sum(last)
        return (seen, len(last)) if there and seen >= looks else None

    @staticmethod
    def _lasting(record: _Record, now: float, seconds: float, looks: int) -> bool:
        return now - record.counted >= seconds and record.looks >= looks
