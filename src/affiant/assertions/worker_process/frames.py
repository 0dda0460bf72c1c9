"""Frames over the worker's only descriptor: a 4-byte big-endian length, then that many bytes."""

from __future__ import annotations

import json
import os
from typing import Any

from affiant.assertions.worker_process.endings import PANIC

__all__ = ["receive", "send", "tell"]

_REQUEST_BYTES = 32 * 1024 * 1024
_READ_BYTES = 1 << 18

_received = bytearray()


def _read_exactly(size: int) -> bytes:
    while len(_received) < size:
        chunk = os.read(0, _READ_BYTES)
        if not chunk:
            os._exit(0)  # the parent is gone or done
        _received.extend(chunk)
    with memoryview(_received) as view:
        wanted = bytes(view[:size])
    del _received[:size]
    return wanted


def receive() -> bytes:
    """Return the next frame; ends the process when there is none, or when it is too long."""
    size = int.from_bytes(_read_exactly(4), "big")
    if size > _REQUEST_BYTES:
        os._exit(PANIC)
    return _read_exactly(size)


def send(payload: bytes) -> None:
    """Send a frame."""
    frame = len(payload).to_bytes(4, "big") + payload
    while frame:
        frame = frame[os.write(0, frame) :]


def tell(value: dict[str, Any]) -> None:
    """Send a frame of JSON."""
    send(json.dumps(value).encode())
