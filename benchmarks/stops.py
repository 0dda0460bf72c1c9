"""How long a guest stood still, by the times of QEMU's own STOP and RESUME events."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from qemu.qmp.events import EventListener

from lab.live_guest import LiveGuest

__all__ = ["Stop", "Stops"]


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop of a guest, in milliseconds.

    `still_ms`: from when all vCPUs stood still until they ran on, by QEMU's clock. `asked_ms`: from when
    QEMU was sent the command to stop, which is before any vCPU stood still, until then.
    """

    still_ms: float
    asked_ms: float


class Stops:
    """Notes the stops that are asked for on the launcher's connection, from now on."""

    def __init__(self, live: LiveGuest) -> None:
        self._qemu = live.launcher
        self._listener: EventListener = EventListener(("STOP", "RESUME"))
        self._qemu._client.register_listener(self._listener)
        self._asked: list[float] = []
        self._execute = self._qemu._execute
        self._qemu._execute = self._noting  # type: ignore[method-assign]

    async def _noting(self, command: str, arguments: dict[str, object] | None = None) -> object:
        if command == "stop":
            self._asked.append(time.time())
        return await self._execute(command, arguments)

    def taken(self) -> list[Stop]:
        """Return the stops since the last call; the guest must run."""
        self._qemu.registers()  # events come in order with answers: all of before are here by then
        events = asyncio.run_coroutine_threadsafe(self._drained(), self._qemu._loop).result(10)
        asked, self._asked = self._asked, []
        if [event["event"] for event in events] != ["STOP", "RESUME"] * len(asked):
            raise AssertionError("somebody else stopped the guest, too")
        moments = [_seconds(event) for event in events]
        return [
            Stop(1_000 * (ran_on - stood), 1_000 * (ran_on - sent))
            for sent, stood, ran_on in zip(asked, moments[::2], moments[1::2], strict=True)
        ]

    async def _drained(self) -> list[Any]:
        return list(self._listener.clear())


def _seconds(event: Any) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
