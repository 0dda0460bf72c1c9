"""Asks a machine for a passport, through its relay's socket on this host.

The answer is evidence and stays unverified: a relying party checks it with
`affiant.relying_party`. Nothing between the monitor and that check is trusted.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from affiant.model.errors import MalformedError, UnavailableError
from affiant.wire.cbor import Item
from affiant.wire.courier import Ask, Decline, Show, read_message, write_message
from affiant.wire.frames import FrameDecoder, encode_frame

__all__ = ["NONCE_SIZE", "ask_for_passport"]

NONCE_SIZE = 32
"""Bytes of a relying party's nonce."""

_PAUSE = 0.5  # seconds between two questions while the machine has no session yet
_ANSWER_SECONDS = 30.0  # one measurement of a busy guest takes far less
_CHUNK = 65536


def ask_for_passport(path: Path, *, nonce: bytes, audience: str, wait: float = 0.0) -> bytes:
    """Return the passport (unverified bytes) for `nonce` and `audience`, from the socket at `path`.

    Asks again for up to `wait` seconds while there is no relay or it declines: a machine that is
    still booting has nothing to show. Raises UnavailableError with the last reason then, and
    MalformedError when the answer is none.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce of {len(nonce)} bytes, not {NONCE_SIZE}")
    deadline = time.monotonic() + wait
    while True:
        try:
            return _ask_once(path, Ask(1, nonce, audience))
        except UnavailableError:
            if time.monotonic() + _PAUSE > deadline:
                raise
        time.sleep(_PAUSE)


def _ask_once(path: Path, question: Ask) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(str(path))
            connection.sendall(encode_frame(write_message(question)))
            items = _receive(connection)
    except OSError as error:
        raise UnavailableError(
            f"no answer at {path}: {error}", hint="is the machine running, with a service? affiant vm list"
        ) from error
    answer = read_message(items[0])
    if not isinstance(answer, Show | Decline) or answer.id != question.id:
        raise MalformedError(f"the relay answered with a {type(answer).__name__} to another question")
    if isinstance(answer, Decline):
        raise UnavailableError(
            f"no passport now: {answer.reason}", hint="a booting machine needs a while: --wait 60"
        )
    return answer.passport


def _receive(connection: socket.socket) -> list[Item]:
    decoder = FrameDecoder()
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        received = connection.recv(_CHUNK)
        if not received:
            decoder.end()
            raise UnavailableError("the relay closed without an answer", hint="see launcher.log")
        if items := decoder.feed(received):
            return items
