"""The console joined with a pipe and with a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiant.model.errors import UnavailableError
from affiant.vm.console import ESCAPE, join_console
from lab.console import Console, ConsoleTimeoutError


class _Guest:
    """A guest's end of a console socket: keeps what was typed, says what it is told to."""

    def __init__(self, path: Path, greeting: bytes = b"") -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._greeting = greeting
        self.typed = b""
        self.connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self.connection, _ = self._server.accept()
        with contextlib.suppress(BrokenPipeError):
            self.connection.sendall(self._greeting)
        # Leaving without reading the greeting resets the connection: the guest does not mind.
        with self.connection, contextlib.suppress(ConnectionResetError):
            while part := self.connection.recv(4096):
                self.typed += part
                if b"ping" in part:
                    self.connection.sendall(b"pong\r\n")
                if b"die" in part:
                    break

    def close(self) -> None:
        self._thread.join(10)
        self._server.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[_Guest]:
    guest = _Guest(tmp_path / "s", greeting=b"login: ")
    yield guest
    guest.close()


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def test_a_pipe_is_typed_and_the_answer_comes_back(guest: _Guest, tmp_path: Path) -> None:
    with _pipe() as (stdin, feed), _pipe() as (out, stdout):
        os.write(feed, b"ping\n")
        os.close(feed)
        join_console(tmp_path / "s", linger=1.0, stdin=stdin, stdout=stdout)
        assert os.read(out, 4096) == b"login: pong\r\n"
    assert guest.typed == b"ping\n"


def test_the_escape_leaves_and_what_follows_is_not_typed(guest: _Guest, tmp_path: Path) -> None:
    with _pipe() as (stdin, feed), _pipe() as (_, stdout):
        os.write(feed, b"abc" + bytes([ESCAPE]) + b"not this")
        join_console(tmp_path / "s", stdin=stdin, stdout=stdout)
    guest.close()
    assert guest.typed == b"abc"


def test_the_guests_end_ends_the_console(guest: _Guest, tmp_path: Path) -> None:
    with _pipe() as (stdin, feed), _pipe() as (_, stdout):
        os.write(feed, b"die\n")
        join_console(tmp_path / "s", stdin=stdin, stdout=stdout)


def test_a_terminal_is_raw_meanwhile_and_as_before_afterwards(guest: _Guest, tmp_path: Path) -> None:
    """Ctrl-C and friends belong to the guest while the console is joined."""
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with _pipe() as (_, stdout):
        thread = threading.Thread(
            target=join_console, args=(tmp_path / "s",), kwargs={"stdin": terminal, "stdout": stdout}
        )
        thread.start()
        while termios.tcgetattr(terminal)[3] & termios.ICANON:
            pass
        os.write(controller, b"\x03" + bytes([ESCAPE]))
        thread.join(10)
        assert not thread.is_alive()
    assert termios.tcgetattr(terminal) == before
    os.close(controller)
    os.close(terminal)
    guest.close()
    assert guest.typed == b"\x03"


def test_no_console_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        join_console(tmp_path / "none")


def test_the_labs_console_never_waits_for_ever(guest: _Guest, tmp_path: Path) -> None:
    with Console(tmp_path / "s") as console:
        console.wait("login: ", timeout=10)
        with pytest.raises(ConsoleTimeoutError, match="never said"):
            console.wait("never said", timeout=0.05)
        console.type("die\n")
        with pytest.raises(ConsoleTimeoutError, match="closed"):
            console.wait("never said", timeout=10)


def test_the_labs_console_tells_how_a_kernel_crashed(tmp_path: Path) -> None:
    said = "all is well\n[ 4.2] BUG: unable to handle page fault\n[ 4.2] RIP: 0010:somewhere\n" + 1000 * ".\n"
    guest = _Guest(tmp_path / "s", greeting=said.encode())
    with Console(tmp_path / "s") as console, pytest.raises(ConsoleTimeoutError) as raised:
        console.wait("never said", timeout=0.5)
    guest.close()
    assert "the kernel crashed: [ 4.2] BUG: unable to handle page fault\n[ 4.2] RIP" in str(raised.value)
    assert "all is well" not in str(raised.value)
