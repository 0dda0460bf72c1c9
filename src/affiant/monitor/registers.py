"""The vCPUs' registers, from the launcher: those of a listing at each look, the rest now and then.

For the rest (system call registers and the like) QEMU stops the guest for about a millisecond. So they
are asked for at random moments, a few seconds apart, which the guest cannot foresee; and whenever the guest
is stopped anyway because something seems wrong.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from affiant.kernel.machine.cpu import CpuState, parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.model.errors import AffiantError
from affiant.monitor.launcher_client import LauncherClient
from affiant.wire.launcher_requests import Copy, Cpus, DeviceState, ForgetCopy, MachineState

__all__ = ["Moment", "Registers"]

_SHORTEST_MS, _LONGEST_MS = 3_000, 15_000
# QEMU does not save while the guest's TPM works: a state of before will do for a while, and tells its age.
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Moment:
    """The vCPUs at the moment at which pages were copied, and which pages their CR3 named then.

    `saved` is what QEMU saved of them, None where nobody asked for it.
    """

    cpus: list[CpuState]
    saved: SavedCpus | None
    roots: tuple[int, ...] = ()


class Registers:
    """Asks the launcher; remembers the last saved state."""

    def __init__(
        self,
        launcher: LauncherClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        below: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._launcher = launcher
        self._clock = clock
        self._below = below
        self._last: SavedCpus | None = None
        self._due = 0.0
        self._copies = False

    def listed(self) -> list[CpuState]:
        """Return what QEMU lists of each vCPU now; raises what the launcher's client does."""
        return _parsed(self._launcher.ask(Cpus()))

    def saved(self, *, fresh: bool) -> SavedCpus:
        """Return what QEMU saved of each vCPU: now if `fresh`, else at most some seconds ago.

        Where that fails, and has for a while, there are none, and the reason is told.
        """
        if self._last is None or fresh or self._clock() >= self._due:
            self._last = self._kept(self._taken())
        return self._last

    def copied(self, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Moment:
        """Have pages copied; raises what the launcher's client does."""
        moment = self._clock()
        self._copies = True
        copied = self._launcher.ask(Copy(runs, device_state))
        if device_state:
            self._last = self._kept(_saved(moment, MachineState(copied.cpus, copied.stream)))
        return Moment(_parsed(copied.cpus), self._last if device_state else None, copied.roots)

    def forget_copies(self) -> None:
        """Have the launcher give the memory of copies back, if there are any; raises nothing."""
        if self._copies:
            with contextlib.suppress(AffiantError):  # then there is no launcher, or there are no copies
                self._launcher.ask(ForgetCopy())
            self._copies = False

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Pause the guest meanwhile."""
        return self._launcher.paused()

    def forget(self) -> None:
        """Forget the saved state: it is of a kernel that is gone, or that still boots."""
        self._last = None

    def _taken(self) -> SavedCpus:
        moment = self._clock()
        try:
            return _saved(moment, self._launcher.ask(DeviceState()))
        except AffiantError as error:
            return SavedCpus(moment, (), str(error))

    def _kept(self, taken: SavedCpus) -> SavedCpus:
        if taken.cpus:
            pause = _SHORTEST_MS + self._below(_LONGEST_MS - _SHORTEST_MS + 1)
            self._due = taken.taken_at + pause / 1_000
            return taken
        self._due = taken.taken_at
        last = self._last
        recent = last is not None and last.cpus and taken.taken_at - last.taken_at < _PATIENCE_SECONDS
        return last if last is not None and recent else taken


def _saved(moment: float, state: MachineState) -> SavedCpus:
    try:
        return SavedCpus(moment, parse_device_stream(state.stream, _parsed(state.cpus)))
    except AffiantError as error:
        return SavedCpus(moment, (), str(error))


def _parsed(listings: tuple[str, ...]) -> list[CpuState]:
    return [parse_registers(text, index=index) for index, text in enumerate(listings)]
