"""The kernel's type information (BTF), indexed by name: enough to find a structure and its members.

Format: the kernel's Documentation/bpf/btf.rst, section "BTF Type and String Encoding". drgn builds full
types elsewhere; this index serves what needs an offset or a size only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from affiant.model.errors import MalformedError

__all__ = ["BtfIndex", "BtfKind", "BtfMember", "BtfType"]

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_TRIPLE = struct.Struct("<III")
_MAX_TYPES = 1 << 20
_MAX_DEPTH = 64


class BtfKind(IntEnum):
    """BTF_KIND_*, as numbered by the format."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes that follow struct btf_type: a fixed number, and one for each of its vlen elements.
_EXTRA: Mapping[int, tuple[int, int]] = {
    BtfKind.INT: (4, 0),
    BtfKind.PTR: (0, 0),
    BtfKind.ARRAY: (12, 0),
    BtfKind.STRUCT: (0, 12),
    BtfKind.UNION: (0, 12),
    BtfKind.ENUM: (0, 8),
    BtfKind.FWD: (0, 0),
    BtfKind.TYPEDEF: (0, 0),
    BtfKind.VOLATILE: (0, 0),
    BtfKind.CONST: (0, 0),
    BtfKind.RESTRICT: (0, 0),
    BtfKind.FUNC: (0, 0),
    BtfKind.FUNC_PROTO: (0, 8),
    BtfKind.VAR: (4, 0),
    BtfKind.DATASEC: (0, 12),
    BtfKind.FLOAT: (0, 0),
    BtfKind.DECL_TAG: (4, 0),
    BtfKind.TYPE_TAG: (0, 0),
    BtfKind.ENUM64: (0, 12),
}
_MODIFIERS = {BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
_SIZED = {
    BtfKind.INT,
    BtfKind.STRUCT,
    BtfKind.UNION,
    BtfKind.ENUM,
    BtfKind.FLOAT,
    BtfKind.ENUM64,
    BtfKind.DATASEC,
}


@dataclass(frozen=True, slots=True)
class BtfType:
    """One type. `target` is the size in bytes, or the id of the type it refers to, by kind."""

    id: int
    name: str
    kind: BtfKind
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class BtfMember:
    """A member of a structure. `bit_size` is 0 for all but bit fields; offsets count in bits."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int

    @property
    def offset(self) -> int:
        """Offset in whole bytes; raises `ValueError` for a bit field that starts inside a byte."""
        if self.bit_offset % 8:
            raise ValueError(f"{self.name} does not start at a byte")
        return self.bit_offset // 8


class BtfIndex:
    """All types of one kernel.

    Made by `BtfIndex(data)`. Guaranteed: the header is of version 1 with its sections inside `data`;
    every type record lies inside the type section and has a known kind, at most 1 Mi of them. Names are
    read when asked for. Raises `MalformedError` otherwise.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if len(view) < _HEADER.size:
            raise MalformedError("BTF is shorter than its header")
        magic, version, _flags, header, types, types_length, strings, strings_length = _HEADER.unpack_from(
            view
        )
        if magic != _MAGIC or version != 1 or not _HEADER.size <= header <= len(view):
            raise MalformedError("not BTF of version 1")
        if header + types + types_length > len(view) or header + strings + strings_length > len(view):
            raise MalformedError("BTF sections reach beyond its end")
        self._types = view[header + types : header + types + types_length]
        self._strings = bytes(view[header + strings : header + strings + strings_length])
        if not self._strings.startswith(b"\0") or not self._strings.endswith(b"\0"):
            raise MalformedError("BTF strings are not terminated")
        self._offsets = self._walk()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def type(self, type_id: int) -> BtfType:
        """Return a type by id (1 and up); raises `MalformedError` for an id that does not exist."""
        if not 0 < type_id < len(self._offsets):
            raise MalformedError(f"BTF has no type {type_id}")
        name, info, target = _TYPE.unpack_from(self._types, self._offsets[type_id])
        return BtfType(type_id, self._string(name), BtfKind(info >> 24 & 0x1F), target, info & 0xFFFF)

    def find(self, name: str, kind: BtfKind) -> BtfType | None:
        """Return the first type of that name and kind, or None."""
        found = self._by_name.get((name, kind))
        return None if found is None else self.type(found)

    def members(self, structure: BtfType) -> tuple[BtfMember, ...]:
        """Return the direct members of a structure or union; unnamed ones have the name ""."""
        if structure.kind not in (BtfKind.STRUCT, BtfKind.UNION):
            raise ValueError(f"{structure.name} is no structure")
        start = self._offsets[structure.id] + _TYPE.size
        _, info, _ = _TYPE.unpack_from(self._types, self._offsets[structure.id])
        members: list[BtfMember] = []
        for index in range(structure.count):
            name, type_id, offset = _TRIPLE.unpack_from(self._types, start + index * _TRIPLE.size)
            bits = (offset & 0xFFFFFF, offset >> 24) if info >> 31 else (offset, 0)
            members.append(BtfMember(self._string(name), type_id, *bits))
        return tuple(members)

    def member(self, structure: str, path: str) -> BtfMember | None:
        """Return a member by dotted path (`se.vruntime`), through unnamed structures, or None.

        Its offset counts from the start of `structure`.
        """
        found = self.find(structure, BtfKind.STRUCT) or self.find(structure, BtfKind.UNION)
        offset, member = 0, None
        for name in path.split("."):
            if found is None:
                return None
            member = self._member(found, name, set())
            if member is None:
                return None
            offset += member.bit_offset
            resolved = self.resolve(member.type_id)
            found = resolved if resolved and resolved.kind in (BtfKind.STRUCT, BtfKind.UNION) else None
        return None if member is None else BtfMember(member.name, member.type_id, offset, member.bit_size)

    def resolve(self, type_id: int) -> BtfType | None:
        """Return the type behind typedefs and qualifiers; None for void.

        Raises `MalformedError` when more than 64 of them follow each other.
        """
        for _ in range(_MAX_DEPTH):
            if type_id == 0:
                return None
            found = self.type(type_id)
            if found.kind not in _MODIFIERS:
                return found
            type_id = found.target
        raise MalformedError("BTF types refer to each other in a circle")

    def size(self, type_id: int) -> int:
        """Return the size of a type in bytes; raises `ValueError` for one that has none."""
        count = 1
        for _ in range(_MAX_DEPTH):
            found = self.resolve(type_id)
            if found is None:
                break
            if found.kind is BtfKind.PTR:
                return 8 * count
            if found.kind in _SIZED:
                return found.target * count
            if found.kind is not BtfKind.ARRAY:
                break
            start = self._offsets[found.id] + _TYPE.size
            type_id, _, elements = _TRIPLE.unpack_from(self._types, start)
            count *= elements
        raise ValueError(f"BTF type {type_id} has no size")

    def _member(self, structure: BtfType, name: str, seen: set[int]) -> BtfMember | None:
        """Look through unnamed members too; `seen` ends circles and keeps the walk linear."""
        if structure.id in seen:
            return None
        seen.add(structure.id)
        if len(seen) > _MAX_DEPTH:
            raise MalformedError("BTF structure holds too many unnamed ones")
        for member in self.members(structure):
            if member.name == name:
                return member
            if member.name:
                continue
            inner = self.resolve(member.type_id)
            if inner is None or inner.kind not in (BtfKind.STRUCT, BtfKind.UNION):
                continue
            found = self._member(inner, name, seen)
            if found is not None:
                offset = member.bit_offset + found.bit_offset
                return BtfMember(found.name, found.type_id, offset, found.bit_size)
        return None

    def _walk(self) -> list[int]:
        """Return the offset of each type record by id; id 0 is void and has none."""
        offsets = [-1]
        position, end = 0, len(self._types)
        unpack = _TYPE.unpack_from
        while position < end:
            if position + _TYPE.size > end or len(offsets) > _MAX_TYPES:
                raise MalformedError("BTF types are truncated or too many")
            _, info, _ = unpack(self._types, position)
            extra = _EXTRA.get(info >> 24 & 0x1F)
            if extra is None:
                raise MalformedError(f"BTF kind {info >> 24 & 0x1F} is unknown")
            offsets.append(position)
            position += _TYPE.size + extra[0] + extra[1] * (info & 0xFFFF)
        if position != end:
            raise MalformedError("BTF types are truncated")
        return offsets

    @cached_property
    def _by_name(self) -> dict[tuple[str, BtfKind], int]:
        index: dict[tuple[str, BtfKind], int] = {}
        for type_id in range(1, len(self._offsets)):
            name, info, _ = _TYPE.unpack_from(self._types, self._offsets[type_id])
            if name:
                index.setdefault((self._string(name), BtfKind(info >> 24 & 0x1F)), type_id)
        return index

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise MalformedError("BTF name lies outside the strings")
        end = self._strings.index(b"\0", offset)
        return self._strings[offset:end].decode("ascii", errors="backslashreplace")
