"""Waits for a guest to say that it is ready, by reading its console's log."""

from __future__ import annotations

import os
import time

from affiant.model.errors import UnavailableError
from affiant.vm.initramfs import READY_LINE
from affiant.vm.state import VmState

__all__ = ["wait_for_guest"]


def wait_for_guest(state: VmState, *, timeout: float, line: str = READY_LINE) -> None:
    """Return once the guest's console has said `line`; the guest may say anything, this proves nothing.

    Raises UnavailableError when it does not within `timeout` seconds, or the machine ends.
    """
    deadline = time.monotonic() + timeout
    wanted = line.encode()
    read = b""
    position = 0
    while True:
        try:
            with state.console_log.open("rb") as log:
                if log.seek(0, os.SEEK_END) < position:
                    position = 0  # it grew too long and was cut
                log.seek(position)
                new = log.read(1 << 20)
        except FileNotFoundError:
            new = b""
        position += len(new)
        read = read[-len(wanted) :] + new
        if wanted in read:
            return
        if not state.running:
            raise UnavailableError(f"{state.name!r} ended while it booted", hint=f"see {state.launcher_log}")
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{state.name!r} was not ready within {timeout:.0f} s", hint=f"see {state.console_log}"
            )
        time.sleep(0.05)
