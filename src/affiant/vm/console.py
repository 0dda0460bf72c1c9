"""Joins a person's terminal, or a pipe, with a guest's serial console."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affiant.model.errors import UnavailableError

__all__ = ["ESCAPE", "join_console"]

ESCAPE = 0x1D
"""Ctrl-]: leaves the console; the guest runs on."""

_CHUNK = 4096


def join_console(path: Path, *, linger: float = 2.0, stdin: int = 0, stdout: int = 1) -> None:
    """Copy both ways until Ctrl-], or the guest's end; with a pipe until it ends and silence follows.

    `linger` is how many seconds without a word from the guest count as silence after the end of
    input. A terminal is put into raw mode and restored. Raises UnavailableError without a console.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise UnavailableError(
            f"the console {path} does not answer: {error}", hint="is the machine running? affiant vm list"
        ) from error
    with connection, _raw_terminal(stdin):
        _copy(connection, stdin, stdout, linger)


@contextmanager
def _raw_terminal(stdin: int) -> Iterator[None]:
    if not os.isatty(stdin):
        yield
        return
    before = termios.tcgetattr(stdin)
    sys.stderr.write("connected; leave with Ctrl-]\r\n")
    tty.setraw(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        sys.stderr.write("\n")


def _copy(connection: socket.socket, stdin: int, stdout: int, linger: float) -> None:
    open_input = True
    last_word = time.monotonic()
    while True:
        watched = [connection.fileno(), *([stdin] if open_input else [])]
        timeout = None if open_input else max(0.0, last_word + linger - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        if not ready:
            return
        if connection.fileno() in ready:
            said = connection.recv(_CHUNK)
            if not said:
                return
            _write_all(stdout, said)
            last_word = time.monotonic()
        if stdin in ready:
            typed = os.read(stdin, _CHUNK)
            before, escape, _ = typed.partition(bytes([ESCAPE]))
            connection.sendall(before)
            if escape:
                return
            if not typed:
                open_input = False
                last_word = time.monotonic()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
