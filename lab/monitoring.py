"""A monitor's own watch over a lab's guest: the same looks, pauses and bounds as in the sandbox.

Without session and signature: what a whole monitor adds is tested with a whole monitor.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, cast

from affiant.assertions.engine import Engine
from affiant.kernel.reference.module_files import module_files_beside
from affiant.monitor.launcher_client import LauncherClient, PauseOverError
from affiant.monitor.watch import KernelWatch
from affiant.wire.launcher_requests import Copy, Cpus, DeviceState, ForgetCopy, Request
from lab.live_guest import LiveGuest
from lab.references import reference_file

__all__ = ["watch_over"]

_ResultT = TypeVar("_ResultT")


class _Launcher(LauncherClient):
    """Answers at once what a launcher would be asked over its channel."""

    def __init__(self, live: LiveGuest, stops: Counter[str]) -> None:
        self._stops = stops
        assert live.copies is not None, "the memory has no place for copies"
        self._qemu, self._copies = live.launcher, live.copies

    def ask(self, request: Request[_ResultT]) -> _ResultT:
        match cast("Request[object]", request):
            case Cpus():
                return cast(_ResultT, self._qemu.registers())
            case DeviceState():
                self._stops["saved"] += 1
                return cast(_ResultT, self._qemu.machine_state())
            case Copy(runs, device_state):
                self._stops["copied"] += 1
                return cast(_ResultT, self._qemu.copy(self._copies, runs, device_state=device_state))
            case ForgetCopy():
                self._copies.forget()
                return cast(_ResultT, None)
        raise NotImplementedError(type(request).__name__)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._stops["paused"] += 1
        self._qemu.pause()  # which ends by itself after a while
        try:
            yield
        finally:
            lasted = self._qemu.resume()
        if not lasted:
            raise PauseOverError("the guest has run on since")


@contextlib.contextmanager
def watch_over(
    live: LiveGuest, engine: Engine, *, stops: Counter[str] | None = None
) -> Iterator[KernelWatch]:
    """Look at a guest as its monitor would; the only reference it has is that of the guest's kernel.

    `stops` counts how often the guest was stopped: for what QEMU saves, for copies, for a whole look.
    """
    with tempfile.TemporaryDirectory(prefix="affiant-references-") as folder:
        image = reference_file(live.lab.kernel)
        for file in (image, module_files_beside(image)):
            (Path(folder) / file.name).symlink_to(file)
        yield KernelWatch(
            memory=live.memory,
            launcher=_Launcher(live, Counter() if stops is None else stops),
            references=Path(folder),
            engine=engine,
        )
