"""Where a function of the kernel has its call for tracing: at its start, or just behind a landing pad."""

from __future__ import annotations

from typing import Final

from affiant.kernel.reference.sites import SiteClass
from lab.live_guest import LiveGuest

__all__ = ["behind_entry", "traced_entry"]

_CALL: Final = 5
_FURTHEST: Final = 16


def traced_entry(live: LiveGuest, function: str) -> int:
    """Return how far behind its start a function calls its tracer."""
    sites, start = live.guest.text.sites, live.guest.program.address(function)
    near = sites[(sites["address"] >= start) & (sites["address"] < start + _FURTHEST)]
    (site,) = near[near["kind"] == int(SiteClass.FTRACE)]
    return int(site["address"]) - start


def behind_entry(live: LiveGuest, function: str) -> int:
    """Return how far behind its start a function goes on: behind the call for tracing."""
    return traced_entry(live, function) + _CALL
