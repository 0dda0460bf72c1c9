"""Frames on a stream: a 4-byte big-endian length, then one deterministic CBOR item.

Sans I/O: the decoder is fed what a socket gave, and gives back the items that are complete.
"""

from __future__ import annotations

from affiant.model.errors import MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item

__all__ = ["MAX_FRAME", "FrameDecoder", "encode_frame"]

MAX_FRAME = 2 << 20
"""The longest item on a channel, in bytes, without its length."""

_LENGTH = 4


def encode_frame(item: Item) -> bytes:
    """Return the frame of `item`. Raises `ValueError` when it exceeds `MAX_FRAME`."""
    body = cbor.encode(item)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes, at most {MAX_FRAME} are allowed")
    return len(body).to_bytes(_LENGTH, "big") + body


class FrameDecoder:
    """Turns a stream into items; holds at most one unfinished frame.

    After an error the stream has no meaning any more: every further call raises the same kind.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[Item]:
        """Return the items completed by `data`, in order.

        Raises `MalformedError` for a length of zero or beyond `MAX_FRAME`, as soon as the length is
        known, and for an item that is not deterministic CBOR.
        """
        if self._broken:
            raise MalformedError("frame: the stream broke before")
        self._buffer += data
        try:
            return self._complete()
        except MalformedError:
            self._broken = True
            self._buffer.clear()
            raise

    def end(self) -> None:
        """Tell that the stream ended. Raises `MalformedError` inside a frame."""
        if self._buffer:
            raise MalformedError(f"frame: the stream ended after {len(self._buffer)} bytes of a frame")

    def _complete(self) -> list[Item]:
        items: list[Item] = []
        at = 0
        while len(self._buffer) - at >= _LENGTH:
            length = int.from_bytes(self._buffer[at : at + _LENGTH], "big")
            if not 1 <= length <= MAX_FRAME:
                raise MalformedError(f"frame: a length of {length} bytes, not 1 to {MAX_FRAME}")
            end = at + _LENGTH + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[at + _LENGTH : end])
            items.append(cbor.decode(body, max_size=MAX_FRAME, name="frame"))
            at = end
        del self._buffer[:at]
        return items
