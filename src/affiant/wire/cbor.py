"""Deterministic CBOR: for each item exactly one sequence of bytes, and an error for any other.

Follows the core deterministic encoding requirements of RFC 8949, section 4.2.1: shortest integers
and lengths, definite lengths only, map keys in bytewise order of their encodings. On top of that
the profile of Affiant: no floating-point numbers, no `undefined` or other simple values, no tags
but those the reader names, keys are integers, text or bytes and unique, text is valid UTF-8,
nesting is at most `MAX_DEPTH` deep, and nothing follows the item.

So bytes that decode are the bytes that `encode` would make of the result, and a digest over them
identifies the item.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from affiant.model.errors import MalformedError

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Item", "Key", "Tagged", "decode", "encode"]

MAX_DEPTH = 16
"""How many arrays, maps and tags may enclose one another."""

MAX_ITEMS = 1 << 17
"""How many items one encoding may hold, so that a small message cannot become a large heap."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """An item with a tag (RFC 8949, section 3.4)."""

    tag: int
    item: Item


Key: TypeAlias = int | str | bytes
Item: TypeAlias = bool | int | bytes | str | Tagged | Sequence["Item"] | Mapping[Key, "Item"] | None
"""What is encoded and decoded. Decoding makes `list` for arrays and `dict` for maps."""

_INTEGER, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)
_FALSE, _TRUE, _NULL = 0xF4, 0xF5, 0xF6


def encode(item: Item) -> bytes:
    """Return the one encoding of `item`.

    Raises `ValueError` for what has none here: floats, integers beyond 64 bits, text with lone
    surrogates, other key types, nesting deeper than `MAX_DEPTH`.
    """
    out = bytearray()
    _write(item, out, 0)
    return bytes(out)


def _write(item: Item, out: bytearray, depth: int) -> None:
    # bool is a subclass of int in Python and must be asked for first.
    if isinstance(item, bool):
        out.append(_TRUE if item else _FALSE)
    elif isinstance(item, int):
        if item >= 0:
            _write_head(_INTEGER, item, out)
        else:
            _write_head(_NEGATIVE, -1 - item, out)
    elif isinstance(item, bytes):
        _write_head(_BYTES, len(item), out)
        out += item
    elif isinstance(item, str):
        text = item.encode("utf-8")
        _write_head(_TEXT, len(text), out)
        out += text
    elif item is None:
        out.append(_NULL)
    elif depth >= MAX_DEPTH:
        raise ValueError(f"nesting deeper than {MAX_DEPTH}")
    elif isinstance(item, Tagged):
        _write_head(_TAG, item.tag, out)
        _write(item.item, out, depth + 1)
    elif isinstance(item, (list, tuple)):
        _write_head(_ARRAY, len(item), out)
        for element in item:
            _write(element, out, depth + 1)
    elif isinstance(item, dict):
        _write_head(_MAP, len(item), out)
        for key, value in sorted((_encode_key(key), value) for key, value in item.items()):
            out += key
            _write(value, out, depth + 1)
    else:
        raise ValueError(f"{type(item).__name__} has no encoding")


def _encode_key(key: Key) -> bytes:
    # A bool key would collide with 0 and 1 in a Python dict.
    if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
        raise ValueError(f"a map key cannot be {type(key).__name__}")  # noqa: TRY004  misuse is ValueError here
    out = bytearray()
    _write(key, out, 0)
    return bytes(out)


def _write_head(major: int, argument: int, out: bytearray) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
    elif argument < 1 << 8:
        out.append(major << 5 | 24)
        out.append(argument)
    elif argument < 1 << 16:
        out.append(major << 5 | 25)
        out += argument.to_bytes(2, "big")
    elif argument < 1 << 32:
        out.append(major << 5 | 26)
        out += argument.to_bytes(4, "big")
    elif argument < 1 << 64:
        out.append(major << 5 | 27)
        out += argument.to_bytes(8, "big")
    else:
        raise ValueError("an integer of more than 64 bits has no encoding")


def decode(data: bytes, *, max_size: int, name: str = "CBOR", tags: Collection[int] = ()) -> Item:
    """Return the item that `data` encodes; arrays become lists, maps dicts.

    `name` is what error messages call these bytes. Only tags listed in `tags` are accepted.

    What holds then:
    - `data` is at most `max_size` bytes and holds at most `MAX_ITEMS` items;
    - `encode(result) == data`: no other bytes decode to an equal item.

    Raises `MalformedError` with the offset otherwise.
    """
    if len(data) > max_size:
        raise MalformedError(f"{name}: {len(data)} bytes, at most {max_size} are allowed")
    reader = _Reader(data, name, tags)
    item = reader.read(0)
    if reader.at != len(data):
        raise reader.error("bytes after the end")
    return item


class _Reader:
    """One pass over the bytes of one item."""

    __slots__ = ("at", "data", "left", "name", "tags")

    def __init__(self, data: bytes, name: str, tags: Collection[int]) -> None:
        self.data = data
        self.name = name
        self.tags = tags
        self.at = 0
        self.left = MAX_ITEMS

    def error(self, message: str) -> MalformedError:
        return MalformedError(f"{self.name}: {message} at offset {self.at}")

    def read(self, depth: int) -> Item:
        at = self.at
        data = self.data
        if at >= len(data):
            raise self.error("truncated")
        initial = data[at]
        major = initial >> 5
        argument = initial & 0x1F
        if major == 7:
            self.at = at + 1
            if initial == _NULL:
                return None
            if initial == _TRUE:
                return True
            if initial == _FALSE:
                return False
            raise self.error(f"a float or simple value 0x{initial:02x}")
        if argument < 24:
            self.at = at + 1
        else:
            argument = self._long_argument(argument)
        if major == _INTEGER:
            return argument
        if major == _TEXT:
            raw = self._take(argument)
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                raise self.error("text is not UTF-8") from None
        if major == _BYTES:
            return self._take(argument)
        if major == _NEGATIVE:
            return -1 - argument
        if depth >= MAX_DEPTH:
            raise self.error(f"nesting deeper than {MAX_DEPTH}")
        if major == _ARRAY:
            self._spend(argument)
            return [self.read(depth + 1) for _ in range(argument)]
        if major == _MAP:
            self._spend(2 * argument)
            return self._map(argument, depth)
        if argument not in self.tags:
            raise self.error(f"tag {argument}")
        return Tagged(argument, self.read(depth + 1))

    def _long_argument(self, information: int) -> int:
        if information > 27:
            # 31 is an indefinite length or a break, 28 to 30 are reserved (RFC 8949, section 3).
            raise self.error("an indefinite or reserved length")
        size = 1 << (information - 24)
        start = self.at + 1
        if start + size > len(self.data):
            raise self.error("truncated")
        argument = int.from_bytes(self.data[start : start + size], "big")
        if argument < (24 if size == 1 else 1 << (4 * size)):
            raise self.error("an integer or length is not in its shortest form")
        self.at = start + size
        return argument

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise self.error("truncated")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def _spend(self, items: int) -> None:
        # Every item takes a byte at least: a length that promises more is refused before the loop.
        if items > len(self.data) - self.at:
            raise self.error("truncated")
        self.left -= items
        if self.left < 0:
            raise self.error(f"more than {MAX_ITEMS} items")

    def _map(self, entries: int, depth: int) -> dict[Key, Item]:
        result: dict[Key, Item] = {}
        previous = b""
        for _ in range(entries):
            start = self.at
            key = self.read(depth + 1)
            if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
                raise self.error("a map key that is neither integer, text nor bytes")
            encoded = self.data[start : self.at]
            if encoded <= previous:
                raise self.error("a map key twice" if encoded == previous else "map keys are not in order")
            previous = encoded
            result[key] = self.read(depth + 1)
        return result
