"""State folders: what is saved is what is loaded, and a machine that is gone is seen to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from affiant.cli import main
from affiant.model.errors import SetupError, UnavailableError
from affiant.vm.state import (
    ProcessIdentity,
    VmState,
    check_name,
    list_machines,
    lock_machine,
    machine_folder,
)
from affiant.vm.stop import clear_leftovers, end_launcher, remove_machine, stop_machine
from tests.unit.vm.machines import state_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    return tmp_path


def _state(name: str = "one", **changes: object) -> VmState:
    folder = machine_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, object] = {
        "kernel_packages": (Path("/a.deb"), Path("/b.deb")),
        "tpm": True,
        "secure_boot": True,
        "firmware": True,
    }
    return state_of(name, folder, **(truth | changes))


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_what_is_saved_is_loaded(home: Path) -> None:
    state = _state(
        launcher=ProcessIdentity(1, 2, "boot"), service="http://s.example", service_root=Path("/r.pem")
    )
    state.save()
    assert VmState.load("one") == state
    assert list_machines() == ["one"]


def test_an_unknown_machine_is_told_with_the_known_ones(home: Path) -> None:
    _state("known").save()
    with pytest.raises(SetupError, match="no virtual machine 'other'") as caught:
        VmState.load("other")
    assert "known" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 5}', "null", "\x00"])
def test_an_unusable_state_says_how_to_remove_it(home: Path, text: str) -> None:
    _state().save()
    (machine_folder("one") / "vm.json").write_text(text)
    with pytest.raises(SetupError) as caught:
        VmState.load("one")
    assert caught.value.hint == "affiant vm rm one"
    remove_machine("one")
    assert list_machines() == []


def test_a_state_copied_from_another_machine_is_refused(home: Path) -> None:
    """Else stopping the copy would remove the other's memory."""
    _state("first").save()
    folder = machine_folder("second")
    folder.mkdir()
    (folder / "vm.json").write_bytes((machine_folder("first") / "vm.json").read_bytes())
    with pytest.raises(SetupError, match="belongs to another machine"):
        VmState.load("second")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", ".hid", "UP", "a" * 33, "a..b", "x\n", "a,b", "a b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(SetupError, match="not a name"):
        check_name(name)


def test_a_living_launcher_is_running(home: Path) -> None:
    process = _sleeper()
    try:
        state = _state(launcher=ProcessIdentity.of(process.pid))
        assert state.running
        assert state.launcher_pid == process.pid
        assert state.to_json()["state"] == "starting"
        state.status.write_text('{"state": "launched"}')
        assert state.to_json()["state"] == "launched"
    finally:
        process.kill()
        process.wait()
    assert not state.running
    assert state.to_json()["state"] == "stopped"


def test_a_zombie_is_gone() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessIdentity.of(process.pid) is None
    process.wait()


def test_a_launcher_that_nobody_remembered_is_found(home: Path) -> None:
    """Who started it was killed before it could write down that it did."""
    state = _state()
    state.save()
    code = "import os, time; print(os.getpid(), file=open('launcher.pid', 'w'), flush=True)"
    code += "; print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(state.settings)], cwd=state.folder, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert VmState.load("one").launcher_pid == process.pid
        (state.folder / "launcher.pid").write_text(f"{os.getpid()}\n")
        assert VmState.load("one").launcher is None, "that number is somebody else's"
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


def test_a_reused_process_id_is_not_the_launcher(home: Path) -> None:
    """After a reboot of the host, or by chance, the number belongs to somebody else: never signal it."""
    process = _sleeper()
    try:
        alive = ProcessIdentity.of(process.pid)
        assert alive is not None
        for other in (
            replace(alive, start_ticks=alive.start_ticks - 1),
            replace(alive, boot_id="an earlier boot"),
        ):
            state = _state(launcher=other)
            state.save()
            assert not state.running
            assert stop_machine("one") is False
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_stopping_clears_memory_and_sockets(home: Path) -> None:
    import socket

    process = _sleeper()
    state = _state(launcher=ProcessIdentity.of(process.pid))
    state.ram.touch()
    (state.folder / "relay").mkdir()
    for path in (state.qmp, state.passport_socket):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    state.save()
    assert stop_machine("one") is True
    assert not state.ram.exists()
    assert not state.qmp.exists()
    assert not state.passport_socket.exists()
    assert VmState.load("one").launcher is None
    assert stop_machine("one") is False


def test_a_launcher_that_ignores_the_polite_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affiant.vm.stop._GRACE", 0.3)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    end_launcher(identity)
    assert not identity.alive()
    process.stdout.close()


def test_what_is_no_socket_stays(home: Path) -> None:
    state = _state()
    other = state.folder / "not-a.sock"
    other.write_text("precious")
    clear_leftovers(state)
    assert other.exists()


def test_two_commands_do_not_change_one_machine_at_once(home: Path) -> None:
    with lock_machine("one"):
        with pytest.raises(SetupError, match="right now"), lock_machine("one"):
            pass
        with lock_machine("two"):
            pass
    with lock_machine("one"):
        pass


def test_the_state_is_json_for_programs(home: Path) -> None:
    document = json.loads(json.dumps(_state().to_json()))
    assert document["ram"].startswith("/")
    assert document["running"] is False
    assert document["kernel_packages"] == ["/a.deb", "/b.deb"]


def _report(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    code = main(["report", "--vm", "one", "--nonce", "00" * 32, "-o", str(folder / "passport")])
    return code, capsys.readouterr().err


def test_a_stopped_machine_is_named_and_not_its_socket(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _state().save()
    code, error = _report(capsys, home)
    assert (code, "'one' is not running" in error, "affiant vm start one" in error) == (2, True, True)


def test_a_machine_without_a_service_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _state(launcher=ProcessIdentity.of(os.getpid())).save()
    code, error = _report(capsys, home)
    assert (code, "without an attestation service" in error, "--service URL" in error) == (2, True, True)


def test_another_users_file_in_place_of_the_ram_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may make files beside a guest's memory; one with its name costs a start and no traceback."""
    state = _state()
    unlink = Path.unlink

    def forbidden(path: Path, *, missing_ok: bool = False) -> None:
        if path == state.ram:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", forbidden)
    with pytest.raises(UnavailableError, match="belongs to another user"):
        clear_leftovers(state)


def test_a_host_without_machines_is_told_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    assert main(["vm", "list"]) == 0
    assert capsys.readouterr().out == "none; next: affiant vm start NAME\n"
    assert main(["vm", "list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
