"""Time as a monitor may believe it: the service's time, carried on by a monotonic clock.

The host's wall clock is never used: whoever sets it could make an old session look fresh.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["SessionClock", "monotonic_ms"]


@dataclass(frozen=True, slots=True)
class SessionClock:
    """Ties the service's time in a challenge to the monotonic time before it was asked for.

    `service_time`: seconds since the epoch, from the signed challenge. `origin_ms`: monotonic
    milliseconds *before* the challenge was requested, so that this clock can only run ahead of
    the service's by the time a courier took, and a report never looks fresher than it is.
    """

    service_time: int
    origin_ms: int

    def elapsed_ms(self, now_ms: int) -> int:
        """Return the milliseconds since the challenge was asked for."""
        return max(0, now_ms - self.origin_ms)

    def now(self, now_ms: int) -> int:
        """Return seconds since the epoch by the service's clock, rounded down."""
        return self.service_time + self.elapsed_ms(now_ms) // 1000


def monotonic_ms() -> int:
    """Return milliseconds of a clock that never goes back and goes on while the host sleeps.

    A session must not live longer because its host was suspended.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
