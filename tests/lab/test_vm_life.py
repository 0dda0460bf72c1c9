"""Machines under the real launcher: started twice, side by side, interrupted, lost; nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from affiant.vm.ready import wait_for_guest
from affiant.vm.start import VmRequest, start_machine
from affiant.vm.state import VmState
from affiant.vm.stop import remove_machine, stop_machine
from lab.console import Console
from tests.lab.processes import exit_codes

_BOOT_SECONDS = 300
_AFFIANT = [sys.executable, "-m", "affiant.cli"]


@contextmanager
def _machine(request: VmRequest) -> Iterator[VmState]:
    try:
        yield start_machine(request)
    finally:
        remove_machine(request.name)


def _direct(name: str) -> VmRequest:
    return VmRequest(name, firmware=False, tpm=False, memory_bytes=512 << 20)


def _left(state: VmState) -> list[Path]:
    sockets = [path for path in state.folder.rglob("*") if path.is_socket()]
    return [*sockets, *([state.ram] if state.ram.exists() else [])]


def _processes_with(text: str) -> list[int]:
    """Return processes whose command line mentions `text`: QEMU and swtpm name their folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _until(condition: object, *, seconds: float) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_two_machines_run_side_by_side_and_stop_alone(home: Path) -> None:
    with _machine(_direct("left")) as left, _machine(_direct("right")) as right:
        for state in (left, right):
            wait_for_guest(state, timeout=_BOOT_SECONDS)
            with Console(state.console_socket) as console:
                console.type("\n")
                assert state.kernel_release in console.run("uname -r")
        assert left.ram != right.ram
        stop_machine("left")
        assert not _left(left)
        assert right.running
        assert right.ram.exists()


def test_a_machine_starts_again_and_keeps_its_flash_and_tpm(home: Path) -> None:
    """The endorsement key is the machine's identity: it must survive a stop."""
    request = VmRequest("again", memory_bytes=512 << 20)
    with _machine(request) as state:
        endorsement = sorted((state.folder / "tpm").glob("*.crt"))
        assert endorsement
        before = endorsement[0].read_bytes()
        assert stop_machine("again")
        assert not _left(state)
        again = start_machine(request)
        assert again.running
        assert endorsement[0].read_bytes() == before
        assert (again.folder / "variables-secure.fd").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["preparing", "launcher.log", "qmp.sock", "console.log"])
def test_an_interrupted_start_leaves_nothing(home: Path, number: signal.Signals, moment: str) -> None:
    """While files are made, while the launcher starts, while QEMU starts, while the guest boots."""
    folder = home / "vms" / "broken"
    command = [*_AFFIANT, "vm", "start", "broken", "--direct", "--no-tpm", "--wait"]
    assert not folder.exists()
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    seen = folder if moment == "preparing" else folder / moment
    assert _until(seen.exists, seconds=120)
    process.send_signal(number)
    try:
        assert process.wait(120) in exit_codes(number)
        if (folder / "vm.json").exists():
            state = VmState.load("broken")
            assert not state.running
            assert not _left(state)
        assert _until(lambda: not _processes_with(str(folder)), seconds=60)
    finally:
        remove_machine("broken")


def test_a_killed_launcher_takes_its_guest_along(home: Path) -> None:
    """SIGKILL leaves no time to clean up: children die with it, the next command clears the files."""
    with _machine(_direct("killed")) as state:
        launcher = state.launcher_pid
        assert launcher
        os.kill(launcher, signal.SIGKILL)
        os.waitpid(launcher, 0)
        assert _until(lambda: not _processes_with(str(state.folder)), seconds=120)
        assert VmState.load("killed").to_json()["state"] == "stopped"
        assert stop_machine("killed") is False
        assert not _left(state)


def test_a_guest_that_powers_off_ends_its_machine(home: Path) -> None:
    with _machine(_direct("off")) as state:
        wait_for_guest(state, timeout=_BOOT_SECONDS)
        with Console(state.console_socket) as console:
            console.type("\npoweroff\n")
            assert _until(lambda: not state.running, seconds=120)
        assert not _left(state)


def test_the_commands_do_what_their_functions_do(home: Path) -> None:
    """Through the command line alone, as a script would."""

    def affiant(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_AFFIANT, *words], input=typed, capture_output=True, text=True, timeout=400, check=False
        )

    done = affiant("vm", "start", "cli", "--direct", "--no-tpm", "--memory", "512M", "--wait", "--json")
    try:
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert shown["state"] == "running"
        assert Path(shown["ram"]).stat().st_size == shown["memory_bytes"] == 512 << 20
        assert json.loads(affiant("vm", "show", "cli", "--json").stdout)["ram"] == shown["ram"]
        # Two seconds without a word are the end for a pipe; a guest on a busy host may take longer.
        asked = partial(affiant, "vm", "console", "cli", typed="\nuname -r\n")
        assert _until(lambda: shown["kernel_release"] in asked().stdout, seconds=120)
        assert affiant("vm", "start", "cli", "--direct", "--no-tpm").returncode == 2
        report = affiant("report", "--vm", "cli", "--nonce", "00" * 32)
        assert report.returncode == 2, "without a service there is no passport"
        assert report.stderr.startswith("error: 'cli' runs without an attestation service")
        assert "cli" in {row["name"] for row in json.loads(affiant("vm", "list", "--json").stdout)}
    finally:
        removed = affiant("vm", "rm", "cli")
    assert removed.stdout == "cli: removed\n"
    assert affiant("vm", "show", "cli").returncode == 2
