"""An episode: a violation as the monitor remembers it, whichever session it is told in."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.model.runtime_report import Violation

__all__ = ["Episode"]


@dataclass(frozen=True, slots=True)
class Episode:
    """A violation from its first sighting until the property is seen to hold again.

    The times in `violation` are milliseconds of the host's monotonic clock, not since a session began.
    `version` is that of the rule which saw it.
    """

    version: int
    violation: Violation
