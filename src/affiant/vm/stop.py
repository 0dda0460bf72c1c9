"""Ends a machine, and clears away what is left of one whose launcher is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from affiant.model.errors import UnavailableError
from affiant.vm.state import ProcessIdentity, VmState, lock_machine, machine_folder

__all__ = ["clear_leftovers", "end_launcher", "remove_machine", "stop_machine"]

_GRACE = 20.0  # seconds: the launcher ends QEMU, monitor, relay and swtpm in this time
_SOCKETS = ("*.sock", "*/*.sock")


def stop_machine(name: str) -> bool:
    """Stop the machine and return whether it was running; its folder stays, ready for another start.

    Afterwards no process, socket or RAM file of it is left. Raises UnavailableError when its
    launcher cannot be ended, SetupError when there is no such machine.
    """
    with lock_machine(name):
        state = VmState.load(name)
        was_running = state.running
        if state.launcher:
            end_launcher(state.launcher)
        clear_leftovers(state)
        state.with_launcher(None).save()
        return was_running


def remove_machine(name: str) -> None:
    """Stop the machine, then remove its folder: disk, firmware variables and TPM state are lost.

    A folder whose `vm.json` is unusable is removed too, once nothing in it runs. Raises as
    `stop_machine` does.
    """
    folder = machine_folder(name)
    if (folder / "vm.json").exists() or not folder.exists():
        try:
            stop_machine(name)
        except UnavailableError:
            raise
        except Exception:
            if not folder.exists():
                raise
    with lock_machine(name):
        shutil.rmtree(folder, ignore_errors=False)


def end_launcher(launcher: ProcessIdentity) -> None:
    """End a launcher, which ends all it started: SIGTERM, and SIGKILL when that is not heard.

    Raises UnavailableError when it is still there afterwards.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if not launcher.alive():
            return
        try:
            os.kill(launcher.pid, sign)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise UnavailableError(
                f"the launcher (process {launcher.pid}) belongs to another user",
                hint="try again as that user",
            ) from error
        deadline = time.monotonic() + _GRACE
        while launcher.alive() and time.monotonic() < deadline:
            _reap(launcher.pid)
            time.sleep(0.02)
    if launcher.alive():
        raise UnavailableError(f"the launcher (process {launcher.pid}) does not end")


def _reap(pid: int) -> None:
    """Take notice of the end of a launcher that is our own child, or it stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def clear_leftovers(state: VmState) -> None:
    """Remove the RAM file and sockets of a machine that does not run. Harmless when there are none.

    Raises UnavailableError when somebody else's file has the RAM file's name: the folder is everybody's.
    """
    try:
        state.ram.unlink(missing_ok=True)
    except PermissionError as error:
        raise UnavailableError(
            f"{state.ram} belongs to another user", hint="have it removed, or choose another AFFIANT_HOME"
        ) from error
    for pattern in _SOCKETS:
        for path in state.folder.glob(pattern):
            if path.is_socket():
                path.unlink(missing_ok=True)
    for name in ("launcher.pid", "status.json"):
        Path(state.folder / name).unlink(missing_ok=True)
