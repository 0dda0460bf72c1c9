"""Kernel types from BTF, made into drgn types one by one when they are asked for.

BTF (Documentation/bpf/btf.rst) comes from the reference image, never from guest memory. Indexing
95,000 types takes about 0.1 s; a type is built, with lazy members, the first time it is named.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Iterator
from typing import Final

from drgn import (
    Language,
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    TypeParameter,
)

from affiant.model.errors import MalformedError

__all__ = ["BtfTypes"]

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MOST_TYPES = 1 << 20
_DEEPEST = 64

(
    _INT,
    _PTR,
    _ARRAY,
    _STRUCT,
    _UNION,
    _ENUM,
    _FWD,
    _TYPEDEF,
    _VOLATILE,
    _CONST,
    _RESTRICT,
    _FUNC,
    _FUNC_PROTO,
    _VAR,
    _DATASEC,
    _FLOAT,
    _DECL_TAG,
    _TYPE_TAG,
    _ENUM64,
) = range(1, 20)

# What follows the 12-byte header of each kind: fixed bytes, and bytes for each of `vlen` parts.
_TRAILER: Final = {
    _INT: (4, 0),
    _PTR: (0, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FWD: (0, 0),
    _TYPEDEF: (0, 0),
    _VOLATILE: (0, 0),
    _CONST: (0, 0),
    _RESTRICT: (0, 0),
    _FUNC: (0, 0),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _FLOAT: (0, 0),
    _DECL_TAG: (4, 0),
    _TYPE_TAG: (0, 0),
    _ENUM64: (0, 12),
}
_NAMED_KINDS: Final = {
    TypeKind.INT: (_INT,),
    TypeKind.BOOL: (_INT,),
    TypeKind.FLOAT: (_FLOAT,),
    TypeKind.STRUCT: (_STRUCT,),
    TypeKind.UNION: (_UNION,),
    TypeKind.ENUM: (_ENUM, _ENUM64),
    TypeKind.TYPEDEF: (_TYPEDEF,),
}
_QUALIFIER: Final = {_CONST: Qualifiers.CONST, _VOLATILE: Qualifiers.VOLATILE, _RESTRICT: Qualifiers.RESTRICT}
_INT_SIGNED, _INT_BOOL = 1, 4


class BtfTypes:
    """All types of one kernel, for one drgn program.

    `find_type` is a drgn type finder; `enumerator`, `variable` and `function` serve an object finder.
    The constructor checks the whole structure (every offset and count) and raises MalformedError;
    a type whose references lead in a circle or nowhere raises it when asked for. It is to live as long
    as the program is used: what the program holds of it does not keep it alive.
    """

    def __init__(self, program: Program, data: memoryview | bytes) -> None:
        self._program = program
        self._offsets: list[int] = [0]  # type 0 is void
        self._kinds = bytearray(1)
        self._names: dict[tuple[int, str], int] = {}
        self._enumerators: dict[str, tuple[int, int]] | None = None
        self._made: dict[int, Type] = {0: program.void_type(language=Language.C)}
        self._types, self._strings = _split(bytes(data))
        self._index()

    def __len__(self) -> int:
        return len(self._offsets)

    def find_type(
        self, _program: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        """Return the named type of one of the kinds (the drgn type finder interface)."""
        if filename:
            return None
        for kind in kinds:
            for btf_kind in _NAMED_KINDS.get(kind, ()):
                number = self._names.get((btf_kind, name))
                if number is not None:
                    found = self.type(number)
                    if found.kind == kind:
                        return found
        return None

    def enumerator(self, name: str) -> Object | None:
        """Return the enumeration constant with this name."""
        if self._enumerators is None:
            self._enumerators = {}
            for number, kind in enumerate(self._kinds):
                if kind in (_ENUM, _ENUM64):
                    for label, value in self._enum_values(number):
                        self._enumerators.setdefault(label, (number, value))
        found = self._enumerators.get(name)
        return None if found is None else Object(self._program, self.type(found[0]), value=found[1])

    def variable(self, name: str) -> Type | None:
        """Return the type of a variable; BTF before Linux 6.13 names only per-CPU ones."""
        number = self._names.get((_VAR, name))
        return None if number is None else self.type(self._header(number)[2])

    def function(self, name: str) -> Type | None:
        """Return the type of a function."""
        number = self._names.get((_FUNC, name))
        return None if number is None else self.type(self._header(number)[2])

    def type(self, number: int, _depth: int = 0) -> Type:
        """Return the type with this number, building what it is made of (members stay lazy)."""
        made = self._made.get(number)
        if made is None:
            if not 0 < number < len(self._offsets):
                raise MalformedError(f"BTF refers to type {number} of {len(self._offsets)}")
            if _depth > _DEEPEST:
                raise MalformedError(f"BTF type {number} is nested more than {_DEEPEST} deep")
            made = self._made[number] = self._make(number, _depth + 1)
        return made

    def _index(self) -> None:
        data, end = self._types, len(self._types)
        offset, number = 0, 0
        while offset < end:
            number += 1
            if number > _MOST_TYPES or offset + 12 > end:
                raise MalformedError("BTF ends within a type, or has too many")
            name, info, _ = _TYPE.unpack_from(data, offset)
            kind, parts = info >> 24 & 0x1F, info & 0xFFFF
            trailer = _TRAILER.get(kind)
            if trailer is None:
                raise MalformedError(f"BTF type {number} is of the unknown kind {kind}")
            self._offsets.append(offset)
            self._kinds.append(kind)
            if name:
                # The first of several types with one name wins, as with pahole's own order.
                self._names.setdefault((kind, self._string(name)), number)
            offset += 12 + trailer[0] + trailer[1] * parts
        if offset != end:
            raise MalformedError("BTF ends within a type")

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if offset >= len(self._strings) or end < 0:
            raise MalformedError(f"BTF refers to a string at {offset}, beyond its table")
        return self._strings[offset:end].decode("ascii", "replace")

    def _header(self, number: int) -> tuple[int, int, int]:
        name, info, size_or_type = _TYPE.unpack_from(self._types, self._offsets[number])
        return name, info, size_or_type

    def _make(self, number: int, depth: int) -> Type:
        program = self._program
        name_offset, info, argument = self._header(number)
        kind = self._kinds[number]
        name = self._string(name_offset) if name_offset else None
        if kind == _INT:
            return self._int(number, name or "", argument)
        if kind == _FLOAT:
            return program.float_type(name or "", argument, language=Language.C)
        if kind == _PTR:
            return program.pointer_type(self.type(argument, depth), language=Language.C)
        if kind == _ARRAY:
            element, _, count = _TYPE.unpack_from(self._types, self._offsets[number] + 12)
            if count == 0:  # a flexible array member, or `[0]`: both have no length of their own
                return program.array_type(self.type(element, depth), language=Language.C)
            return program.array_type(self.type(element, depth), count, language=Language.C)
        if kind in (_STRUCT, _UNION):
            make = program.struct_type if kind == _STRUCT else program.union_type
            return make(name, argument, list(self._members(number, info)), language=Language.C)
        if kind in (_ENUM, _ENUM64):
            return self._enum(number, name, info, argument)
        if kind == _FWD:
            make = program.union_type if info >> 31 else program.struct_type
            return make(name, language=Language.C)
        if kind == _TYPEDEF:
            return program.typedef_type(name or "", self.type(argument, depth), language=Language.C)
        if kind in _QUALIFIER:
            inner = self.type(argument, depth)
            return inner.qualified(inner.qualifiers | _QUALIFIER[kind])
        if kind in (_TYPE_TAG, _FUNC):
            return self.type(argument, depth)
        if kind == _FUNC_PROTO:
            return self._function(number, info, argument, depth)
        raise MalformedError(f"BTF type {number} of kind {kind} is no C type")

    def _int(self, number: int, name: str, size: int) -> Type:
        (detail,) = struct.unpack_from("<I", self._types, self._offsets[number] + 12)
        encoding = detail >> 24 & 0xF
        if encoding & _INT_BOOL:
            return self._program.bool_type(name, size, language=Language.C)
        return self._program.int_type(name, size, bool(encoding & _INT_SIGNED), language=Language.C)

    def _members(self, number: int, info: int) -> Iterator[TypeMember]:
        base = self._offsets[number] + 12
        for part in range(info & 0xFFFF):
            name, member_type, offset = _TYPE.unpack_from(self._types, base + 12 * part)
            # With the kind flag, the upper byte of the offset is the width of a bit field.
            width = offset >> 24 if info >> 31 else 0
            bits = offset & 0xFFFFFF if info >> 31 else offset
            yield TypeMember(self._lazy(member_type, width), self._string(name) if name else None, bits)

    def _lazy(self, number: int, width: int) -> Callable[[], Object | Type]:
        # The program keeps this as long as it lives, and must not keep what keeps the program.
        types = weakref.ref(self)

        def member() -> Object | Type:
            ours = types()
            if ours is None:
                raise ValueError("these types are gone: keep BtfTypes while its program is used")
            made = ours.type(number)
            return Object(ours._program, made, bit_field_size=width) if width else made

        return member

    def _enum(self, number: int, name: str | None, info: int, size: int) -> Type:
        signed = bool(info >> 31)
        values = [TypeEnumerator(label, value) for label, value in self._enum_values(number)]
        if not values:
            return self._program.enum_type(name, language=Language.C)
        compatible = self._program.int_type(
            _INT_NAMES.get((size, signed), "int"), size, signed, language=Language.C
        )
        return self._program.enum_type(name, compatible, values, language=Language.C)

    def _enum_values(self, number: int) -> Iterator[tuple[str, int]]:
        _, info, _ = self._header(number)
        base, signed = self._offsets[number] + 12, bool(info >> 31)
        for part in range(info & 0xFFFF):
            if self._kinds[number] == _ENUM:
                name, low = struct.unpack_from("<II", self._types, base + 8 * part)
                value, width = low, 32
            else:
                name, low, high = _TYPE.unpack_from(self._types, base + 12 * part)
                value, width = low | high << 32, 64
            if signed and value >> (width - 1):
                value -= 1 << width
            yield self._string(name), value

    def _function(self, number: int, info: int, result: int, depth: int) -> Type:
        parameters: list[TypeParameter] = []
        variadic = False
        base = self._offsets[number] + 12
        for part in range(info & 0xFFFF):
            name, parameter = struct.unpack_from("<II", self._types, base + 8 * part)
            if not name and not parameter:
                variadic = True  # the last part without name and type stands for `...`
                continue
            lazy = self._lazy(parameter, 0)
            parameters.append(TypeParameter(lazy, self._string(name) if name else None))
        return self._program.function_type(
            self.type(result, depth), parameters, variadic, language=Language.C
        )


_INT_NAMES: Final = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "unsigned short",
    (2, True): "short",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "unsigned long",
    (8, True): "long",
}


def _split(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < _HEADER.size:
        raise MalformedError("BTF is shorter than its header")
    magic, version, _, header, type_offset, type_size, string_offset, string_size = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != 1 or header < _HEADER.size:
        raise MalformedError("these bytes are not BTF version 1")
    if max(header + type_offset + type_size, header + string_offset + string_size) > len(data):
        raise MalformedError("BTF's sections exceed its bytes")
    types = data[header + type_offset : header + type_offset + type_size]
    return types, data[header + string_offset : header + string_offset + string_size]
