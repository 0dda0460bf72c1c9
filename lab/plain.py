"""A guest run without the launcher: QEMU, and swtpm at its side or none. For tests of single parts only.

Such a guest has no gateway before its TPM and no D-RTM launch; PCR 17 stays as it was reset.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from affiant.launcher.settings import LAUNCHER_QMP, TPM_SOCKET
from affiant.vm.machine import Machine, qemu_arguments
from lab.console import Console

__all__ = ["PlainGuest", "run_plain"]


@dataclass(frozen=True, slots=True)
class PlainGuest:
    """A running guest: its machine, its process, and the QMP socket that a launcher would have."""

    machine: Machine
    qemu_pid: int
    launcher_qmp: Path

    def console(self) -> Console:
        """Connect to the guest's console."""
        return Console(self.machine.console_socket)


@contextmanager
def run_plain(machine: Machine, *, in_turn: bool = False) -> Iterator[PlainGuest]:
    """Run a guest until the block ends; then nothing of it is left but the console's log.

    `in_turn`: where the guest is emulated, one thread runs its vCPUs one after the other. With a thread for
    each, QEMU lets a vCPU run into a breakpoint that another has taken away already, and a kernel that
    patches itself all the time dies of it.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="affiant-plain-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(machine.ram.unlink, missing_ok=True)
        machine.console_log.unlink(missing_ok=True)  # QEMU appends to it
        with machine.ram.open("xb") as file:
            machine.ram.chmod(0o600)
            file.truncate(machine.memory_bytes)
        control = folder / "tpm.sock"
        if machine.tpm:
            _start_swtpm(stack, folder, control)
        launcher_qmp = folder / "qmp.sock"
        arguments = [
            argument.replace(TPM_SOCKET, str(control)).replace(LAUNCHER_QMP, str(launcher_qmp))
            for argument in qemu_arguments(machine)
        ]
        if in_turn:
            arguments = [argument.replace("tcg,thread=multi", "tcg,thread=single") for argument in arguments]
        with (folder / "qemu.log").open("wb") as log:
            qemu = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(_end, qemu)
        deadline = time.monotonic() + 60
        while not machine.console_socket.exists():
            if qemu.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"QEMU did not start: {(folder / 'qemu.log').read_text()[-800:]}")
            time.sleep(0.02)
        yield PlainGuest(machine, qemu.pid, launcher_qmp)


def _start_swtpm(stack: ExitStack, folder: Path, control: Path) -> None:
    state = folder / "tpm"
    state.mkdir()
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    command += ["--ctrl", f"type=unixio,path={control}", "--log", f"file={folder / 'swtpm.log'},level=1"]
    swtpm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stack.callback(_end, swtpm)
    deadline = time.monotonic() + 60
    while not control.exists():
        if swtpm.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("swtpm did not start")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
