"""For how long a guest stands still while it is watched.

A healthy guest is stopped only while QEMU saves its processors' state; one that seems violated while
pages are copied for a second look as well. Two times are told of each stop: from when all vCPUs stood
still, and from when QEMU was asked to stop them, some of which may have stood still earlier than others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome
from benchmarks.guest import shared_guest
from benchmarks.stops import Stop, Stops
from benchmarks.table import Row
from lab.live_guest import LiveGuest
from lab.monitoring import watch_over

_STOPS = 300
_MOST_MS = 5.0
_HOOK = bytes.fromhex("48b88877665544332211ffe0")  # movabs $0x1122334455667788, %rax; jmp *%rax


def rows() -> list[Row]:
    """Confirmations first, then saves of device state."""
    live = shared_guest()
    found: list[Row] = []
    with Engine(packaged_library()) as engine, watch_over(live, engine) as watch:
        watch.look()  # finds the kernel
        stops = Stops(live)
        for what, tampering in (
            ("a hook in the text", _changed(live, "tcp4_seq_show", 5, _HOOK)),
            ("a system call redirected", _changed(live, "sys_call_table", 8 * 62, b"\x01")),
        ):
            with tampering():
                for _ in range(_STOPS):
                    results = watch.look().results
                    if not any(result.outcome is Outcome.VIOLATED for result in results):
                        raise AssertionError(f"{what} was not seen")
            found += _told(f"{what}, looked at", stops.taken())
        for _ in range(_STOPS):
            live.launcher.machine_state()
        found += _told("device state is saved", stops.taken())
    return found


def _told(what: str, stops: list[Stop]) -> list[Row]:
    still, asked = [stop.still_ms for stop in stops], [stop.asked_ms for stop in stops]
    parts = {"median": _part(still, 0.5), "99th percentile": _part(still, 0.99)}
    parts |= {
        "from the command on, median": _part(asked, 0.5),
        "from the command on, 99th percentile": _part(asked, 0.99),
    }
    return [
        Row(f"{what}, {part}", value, f"goal {_MOST_MS:.0f} ms", _MOST_MS) for part, value in parts.items()
    ]


def _part(values: list[float], part: float) -> float:
    """The nearest-rank percentile: the least value that `part` of all values do not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def _changed(
    live: LiveGuest, symbol: str, offset: int, content: bytes
) -> Callable[[], AbstractContextManager[None]]:
    return lambda: live.changed(live.guest.program.address(symbol) + offset, content)
