"""The owner's socket: who is told what QEMU saves of the vCPUs, and what an asker can do to the launcher."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from affiant.inspect.saved_registers import read_saved_registers
from affiant.kernel.machine.cpu import parse_registers
from affiant.launcher.qemu import cpus_socket
from affiant.launcher.qemu.cpus_socket import CpusSocket
from affiant.model.errors import SetupError, UnavailableError
from affiant.wire.launcher_requests import MachineState
from tests.unit.kernel.device_stream_builder import SystemRegisters, device_stream
from tests.unit.kernel.synthetic_guest import registers

LSTAR = 0xFFFF_FFFF_8180_0000
LISTING = registers(cr3=0x1000)


def saved() -> MachineState:
    stream = device_stream([parse_registers(LISTING)], [SystemRegisters(lstar=LSTAR)])
    return MachineState((LISTING,), stream)


def busy() -> MachineState:
    raise UnavailableError("the guest keeps its TPM busy")


@contextmanager
def serving(folder: Path, answer: Callable[[], MachineState] = saved) -> Iterator[Path]:
    path = folder / "cpus.sock"
    with closing(CpusSocket(path, answer)):
        yield path
    assert not path.exists()


def test_the_owner_is_told_what_qemu_saved(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        for _ in range(2):
            told = read_saved_registers(path, clock=lambda: 7.0)
            assert [cpu.lstar for cpu in told.cpus] == [LSTAR]
            assert (told.taken_at, told.reason) == (7.0, "")


def test_nobody_else_can_connect(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_user_is_told_nothing_and_stops_no_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the folder's mode let them in: as whom somebody has connected, the kernel tells."""
    asked: list[None] = []
    own = os.geteuid()
    with serving(tmp_path, lambda: (asked.append(None), saved())[1]) as path:
        monkeypatch.setattr(cpus_socket.os, "geteuid", lambda: own + 1)
        told = read_saved_registers(path)
        assert (told.cpus, asked) == ((), [])
        assert "its owner alone" in told.reason
        monkeypatch.setattr(cpus_socket.os, "geteuid", lambda: own)
        assert read_saved_registers(path).cpus


def test_the_reason_why_there_is_nothing_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, busy) as path:
        assert read_saved_registers(path).reason == "the guest keeps its TPM busy"
    assert "launcher" in read_saved_registers(path).reason  # it is gone
    assert "launcher" in read_saved_registers(None).reason  # there never was one


def test_who_asks_and_goes_hinders_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as asker:
                asker.connect(str(path))
        assert read_saved_registers(path).cpus


def test_who_does_not_listen_to_the_answer_hinders_others_for_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus_socket, "_SEND_SECONDS", 1.0)
    long = MachineState((LISTING,), bytes(1_000_000))  # more than a socket holds
    with serving(tmp_path, lambda: long) as path, socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(path))
        assert "no device state" in read_saved_registers(path).reason


def test_nothing_that_is_sent_is_read(tmp_path: Path) -> None:
    with serving(tmp_path) as path, socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(path))
        with suppress(OSError):  # the answer was quicker
            asker.sendall(b"\xff" * 1000)
        assert read_saved_registers(path).cpus


def test_a_guest_runs_between_two_questions(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        began = time.monotonic()
        for _ in range(4):
            assert read_saved_registers(path).cpus
        assert time.monotonic() - began > 3 * cpus_socket._PAUSE_SECONDS


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\1\xff", b"\xff" * 8, b"\0\0\0\4\x83\0\1\2"])
def test_an_answer_that_is_none_is_a_reason(tmp_path: Path, sent: bytes) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(sent)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "cpus.sock"))
        listener.listen(1)
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        told = read_saved_registers(tmp_path / "cpus.sock")
        thread.join()
    assert told.cpus == ()
    assert told.reason


def test_a_socket_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be made"):
        CpusSocket(tmp_path / "none" / "cpus.sock", saved)
