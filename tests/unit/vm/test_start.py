"""Starting under a launcher: whatever goes wrong, nothing stays. A small program plays the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.launcher.settings import LAUNCHER_QMP, LauncherSettings
from affiant.model.errors import SetupError, UnavailableError
from affiant.vm import start as start_module
from affiant.vm.interruption import end_on_signals
from affiant.vm.ready import wait_for_guest
from affiant.vm.start import VmRequest, start_machine
from affiant.vm.state import VmState, machine_folder
from affiant.vm.stop import stop_machine
from affiant.wire.facts_key import public_pem
from tests.unit.vm.machines import state_of
from tests.unit.wire import world

# Makes what a launcher makes, tells its own process id, and does what the test asks it to.
_LAUNCHER = """
import json, pathlib, signal, socket, sys, time
settings = json.load(open(sys.argv[1]))
folder = pathlib.Path(settings["state_folder"])
(folder / "launcher").mkdir(exist_ok=True)
pathlib.Path(settings["ram"]).touch()
socket.socket(socket.AF_UNIX).bind(str(folder / "launcher" / "qmp.sock"))
behaviour = sys.argv[2]
print("the launcher's own words", flush=True)
if behaviour == "fails":
    sys.exit(3)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour != "hangs" and behaviour != "deaf":
    (folder / "status.json.new").write_text(json.dumps({"state": "firmware", "ready": True}))
    (folder / "status.json.new").rename(folder / "status.json")
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    monkeypatch.setattr(start_module, "_ram_path", lambda folder: folder / "ram")
    monkeypatch.setattr(start_module, "_prepare", _prepared)
    return machine_folder("one")


def _prepared(request: VmRequest, folder: Path, progress: object) -> tuple[VmState, list[str]]:
    return state_of(request.name, folder), ["qemu", LAUNCHER_QMP]


def _launcher(monkeypatch: pytest.MonkeyPatch, behaviour: str) -> None:
    monkeypatch.setattr(
        start_module,
        "_launcher_command",
        lambda settings: [sys.executable, "-c", _LAUNCHER, str(settings), behaviour],
    )


def _nothing_left(folder: Path) -> bool:
    state = VmState.load("one")
    left = [path for path in folder.rglob("*") if path.is_socket() or path.name == "ram"]
    return not left and not state.running and state.launcher is None


def test_a_started_machine_runs_until_it_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _launcher(monkeypatch, "runs")
    state = start_machine(VmRequest("one"))
    assert state.running
    assert VmState.load("one") == state
    assert os.getsid(state.launcher_pid or 0) == state.launcher_pid, "a terminal's Ctrl-C must not reach it"
    assert LauncherSettings.load(state.settings).ram == state.ram
    with pytest.raises(SetupError, match="running already"):
        start_machine(VmRequest("one"))
    assert stop_machine("one")
    assert _nothing_left(folder)
    start_machine(VmRequest("one"))
    stop_machine("one")


def test_a_launcher_that_fails_is_quoted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _launcher(monkeypatch, "fails")
    with pytest.raises(UnavailableError, match="the launcher's own words") as caught:
        start_machine(VmRequest("one"))
    assert "launcher.log" in caught.value.hint
    assert _nothing_left(folder)


@pytest.mark.parametrize("behaviour", ["hangs", "deaf"])
def test_a_launcher_that_is_never_ready_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    _launcher(monkeypatch, behaviour)
    monkeypatch.setattr(start_module, "_READY_SECONDS", 0.7)
    monkeypatch.setattr("affiant.vm.stop._GRACE", 0.5)
    with pytest.raises(UnavailableError, match="not ready within"):
        start_machine(VmRequest("one"))
    assert _nothing_left(folder)


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_an_interrupted_start_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, raised: type[BaseException]
) -> None:
    _launcher(monkeypatch, "hangs")

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (folder / "launcher/qmp.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(raised), end_on_signals():
        start_machine(VmRequest("one"))
    thread.join()
    assert _nothing_left(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_the_launcher_is_born_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Between the birth of the process and the note of its number there is no moment to be lost in."""
    _launcher(monkeypatch, "runs")
    born: list[subprocess.Popen[bytes]] = []

    def interrupted_birth(state: VmState) -> subprocess.Popen[bytes]:
        born.append(start_launcher(state))
        signal.raise_signal(number)
        return born[0]

    start_launcher = start_module._start_launcher
    monkeypatch.setattr(start_module, "_start_launcher", interrupted_birth)
    with pytest.raises((KeyboardInterrupt, SystemExit)), end_on_signals():
        start_machine(VmRequest("one"))
    assert born[0].wait(60) is not None
    assert _nothing_left(folder)


def test_what_a_lost_launcher_left_is_cleared_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that was killed could not clean up; its machine's name can be used again."""
    _launcher(monkeypatch, "runs")
    state = start_machine(VmRequest("one"))
    pid = state.launcher_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not VmState.load("one").running
    assert VmState.load("one").to_json()["state"] == "stopped"
    again = start_machine(VmRequest("one"))
    assert again.running
    assert again.launcher_pid != pid
    stop_machine("one")
    assert _nothing_left(folder)


@pytest.mark.parametrize(
    "request_",
    [
        VmRequest("one", cpus=0),
        VmRequest("one", service="http://s.example"),
        VmRequest("one", service_root=Path("/etc/passwd")),
        VmRequest("one", service="http://s.example", service_root=Path("/etc/passwd")),
        VmRequest("one", service="s.example", service_root=Path("/etc/passwd")),
        VmRequest("one", kernel=Path("/does/not/exist")),
        VmRequest("UPPER"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_made(folder: Path, request_: VmRequest) -> None:
    with pytest.raises(SetupError):
        start_machine(request_)
    assert not folder.exists()


def test_waiting_for_a_guest_ends_with_its_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _launcher(monkeypatch, "runs")
    state = start_machine(VmRequest("one"))
    state.console_log.write_bytes(b"a" * 5000 + b"affiant: gu")
    with pytest.raises(UnavailableError, match="not ready within"):
        wait_for_guest(state, timeout=0.2)
    with state.console_log.open("ab") as log:
        log.write(b"est ready, kernel x\n")
    wait_for_guest(state, timeout=60)
    state.console_log.write_bytes(b"b" * 5000)
    threading.Timer(0.2, lambda: state.console_log.write_bytes(b"affiant: guest ready\n")).start()
    wait_for_guest(state, timeout=60)  # the log was cut meanwhile, and is shorter than what was read of it
    stop_machine("one")
    state.console_log.write_bytes(b"")
    with pytest.raises(UnavailableError, match="ended while it booted"):
        wait_for_guest(state, timeout=60)


def test_the_commands_error_and_exit_code(tmp_path: Path) -> None:
    """From outside: one clear line, a hint, exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "affiant.cli", "vm", "show", "nothing"],
        env={**os.environ, "AFFIANT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no virtual machine 'nothing'\nhint: ")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"keep_facts": 5, "service": None, "service_root": None}, "needs a service"),
        ({"facts_key": "operator.pub"}, "of no use"),
        ({"keep_facts": 5, "facts_key": "root.pem"}, "no key to seal facts to"),
    ],
)
def test_facts_that_cannot_be_kept_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path / "home"))
    (tmp_path / "root.pem").write_bytes(world.ROOT.public_bytes(Encoding.PEM))
    key = X25519PrivateKey.generate().public_key()
    (tmp_path / "operator.pub").write_bytes(public_pem(key))
    wanted: dict[str, Any] = {
        "service": "http://127.0.0.1:1",
        "service_root": tmp_path / "root.pem",
    } | changes
    if "facts_key" in wanted:
        wanted["facts_key"] = tmp_path / wanted["facts_key"]
    with pytest.raises(SetupError, match=complaint):
        start_machine(VmRequest("one", **wanted))
    assert not (tmp_path / "home").exists()
