"""Writes BTF, so that tests can have kernel types of their own."""

from __future__ import annotations

import struct

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _TYPEDEF = 1, 2, 3, 4, 5, 6, 8


class BtfBuilder:
    """Types are added in order and named by the number that each method returns; 0 is void."""

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._count = 0

    def integer(self, name: str, size: int, *, signed: bool = False, boolean: bool = False) -> int:
        detail = (signed | boolean << 2) << 24 | 8 * size
        return self._add(name, _INT, 0, size, struct.pack("<I", detail))

    def pointer(self, target: int) -> int:
        return self._add("", _PTR, 0, target, b"")

    def array(self, element: int, count: int) -> int:
        return self._add("", _ARRAY, 0, 0, struct.pack("<III", element, element, count))

    def typedef(self, name: str, target: int) -> int:
        return self._add(name, _TYPEDEF, 0, target, b"")

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        """Members are (name, type, offset in bytes)."""
        return self._structure(_STRUCT, name, size, [(n, t, 8 * offset) for n, t, offset in members], False)

    def union(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        return self._structure(_UNION, name, size, [(n, t, 8 * offset) for n, t, offset in members], False)

    def bit_struct(self, name: str, size: int, *members: tuple[str, int, int, int]) -> int:
        """Members are (name, type, offset in bits, width in bits; 0 for a whole member)."""
        packed = [(n, t, width << 24 | offset) for n, t, offset, width in members]
        return self._structure(_STRUCT, name, size, packed, True)

    def enum(self, name: str, size: int, **values: int) -> int:
        body = b"".join(struct.pack("<Ii", self._string(label), value) for label, value in values.items())
        return self._add(name, _ENUM, len(values), size, body)

    def raw(self, name: str, kind: int, argument: int, body: bytes = b"", parts: int = 0) -> int:
        return self._add(name, kind, parts, argument, body)

    def build(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings)
        )
        return header + bytes(self._types) + bytes(self._strings)

    def _structure(
        self, kind: int, name: str, size: int, members: list[tuple[str, int, int]], bits: bool
    ) -> int:
        body = b"".join(struct.pack("<III", self._string(n), t, offset) for n, t, offset in members)
        return self._add(name, kind, len(members) | bits << 31, size, body)

    def _add(self, name: str, kind: int, info: int, argument: int, body: bytes) -> int:
        self._types += struct.pack("<III", self._string(name), kind << 24 | info, argument) + body
        self._count += 1
        return self._count

    def _string(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset
