"""Volatility's symbol file (ISF) of a kernel, made from the same BTF and kallsyms that Affiant reads.

Volatility expects what dwarf2json makes of debug information. BTF has the same structures, but not the
types of variables (before Linux 6.13); the few that plugins ask for are named here.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from affiant.kernel.reference import ReferenceImage
from affiant.kernel.reference.btf import BtfKind

__all__ = ["volatility_symbols"]

_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_PER_ELEMENT: Final = {
    BtfKind.STRUCT: 12,
    BtfKind.UNION: 12,
    BtfKind.ENUM: 8,
    BtfKind.ENUM64: 12,
    BtfKind.FUNC_PROTO: 8,
    BtfKind.DATASEC: 12,
}
_FIXED: Final = {BtfKind.INT: 4, BtfKind.ARRAY: 12, BtfKind.VAR: 4, BtfKind.DECL_TAG: 4}
_SIGNED = 1  # BTF_INT_SIGNED
_MODIFIERS = {BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
_VOID = {"kind": "base", "name": "void"}
_BASE_TYPES: Final = {
    "void": (0, False, "void"),
    "pointer": (8, False, "int"),
    "char": (1, True, "char"),
    "int": (4, True, "int"),
    "unsigned int": (4, False, "int"),
    "long int": (8, True, "int"),
    "unsigned long": (8, False, "int"),
    "long unsigned int": (8, False, "int"),
    "long long int": (8, True, "int"),
    "long long unsigned int": (8, False, "int"),
    "short int": (2, True, "int"),
    "short unsigned int": (2, False, "int"),
    "unsigned char": (1, False, "char"),
    "signed char": (1, True, "char"),
    "_Bool": (1, False, "bool"),
}
_STRUCTURES: Final = {
    "init_task": "task_struct",
    "modules": "list_head",
    "mod_tree": "mod_tree_root",
    "init_mm": "mm_struct",
    "init_pid_ns": "pid_namespace",
    "init_uts_ns": "uts_namespace",
    "init_files": "files_struct",
    "prog_idr": "idr",
    "idt_table": "gate_struct",
}
_TAINTS = 18  # TAINT_FLAGS_COUNT of 6.1; later kernels append


def volatility_symbols(reference: ReferenceImage) -> bytes:
    """Return the file's content: JSON, uncompressed."""
    btf = _Btf(bytes(reference.btf))
    base = {
        name: {"size": size, "signed": signed, "kind": kind, "endian": "little"}
        for name, (size, signed, kind) in _BASE_TYPES.items()
    }
    content = {
        "metadata": {
            "format": "6.2.0",
            # The plugin that looks for hidden modules refuses what nobody or an older one has made.
            "producer": {"name": "dwarf2json", "version": "0.8.0"},
            "linux": {"symbols": [], "types": []},
        },
        "base_types": base | btf.integers(),
        "user_types": btf.structures(),
        "enums": btf.enumerations(),
        "symbols": dict(_symbols(reference)),
    }
    return json.dumps(content).encode()


def _symbols(reference: ReferenceImage) -> Iterator[tuple[str, dict[str, Any]]]:
    for symbol in reference.symbols:
        told: dict[str, Any] = {"address": symbol.address, "type": _VOID}
        if symbol.name in _STRUCTURES:
            told["type"] = {"kind": "struct", "name": _STRUCTURES[symbol.name]}
        elif symbol.name == "taint_flags":
            flags = {"kind": "struct", "name": "taint_flag"}
            told["type"] = {"kind": "array", "count": _TAINTS, "subtype": flags}
        elif symbol.name == "module_kset":
            told["type"] = {"kind": "pointer", "subtype": {"kind": "struct", "name": "kset"}}
        elif symbol.name == "linux_banner":
            banner = (reference.banner + "\n\0").encode()
            told["type"] = {
                "kind": "array",
                "count": len(banner),
                "subtype": {"kind": "base", "name": "char"},
            }
            told["constant_data"] = base64.b64encode(banner).decode()
        yield symbol.name, told


class _Btf:
    """The types of one kernel, by number (Documentation/bpf/btf.rst)."""

    def __init__(self, data: bytes) -> None:
        _, _, _, header, types, type_size, strings, string_size = _HEADER.unpack_from(data)
        self._strings = data[header + strings :][:string_size]
        self._types: list[tuple[str, BtfKind, int, bool, int, bytes]] = [("", BtfKind.FWD, 0, False, 0, b"")]
        position, end = header + types, header + types + type_size
        while position < end:
            name, info, value = _TYPE.unpack_from(data, position)
            kind, count = BtfKind(info >> 24 & 0x1F), info & 0xFFFF
            size = _FIXED.get(kind, 0) + count * _PER_ELEMENT.get(kind, 0)
            extra = data[position + 12 : position + 12 + size]
            self._types.append((self._name(name), kind, count, bool(info >> 31), value, extra))
            position += 12 + size

    def integers(self) -> dict[str, Any]:
        """Return the integers that the kernel names, by name."""
        return {
            name: {
                "size": size,
                "signed": bool(extra[3] & _SIGNED),
                "kind": "bool" if name == "_Bool" else "char" if size == 1 else "int",
                "endian": "little",
            }
            for name, kind, _, _, size, extra in self._types
            if kind is BtfKind.INT
        }

    def structures(self) -> dict[str, Any]:
        """Return structures and unions; those without a name go by their number."""
        return {
            self._called(number): {
                "size": size,
                "kind": "struct" if kind is BtfKind.STRUCT else "union",
                "fields": dict(self._fields(number)),
            }
            for number, (_, kind, _, _, size, _) in enumerate(self._types)
            if kind in (BtfKind.STRUCT, BtfKind.UNION)
        }

    def enumerations(self) -> dict[str, Any]:
        """Return enumerations with their constants."""
        found = {}
        for number, (_, kind, count, signed, size, extra) in enumerate(self._types):
            if kind not in (BtfKind.ENUM, BtfKind.ENUM64):
                continue
            step = _PER_ELEMENT[kind]
            constants = {}
            for index in range(count):
                name, low = struct.unpack_from("<Ii" if signed else "<II", extra, index * step)
                high = struct.unpack_from("<I", extra, index * step + 8)[0] if step == 12 else 0
                constants[self._name(name)] = low + (high << 32)
            base = "int" if signed else "unsigned int"
            found[self._called(number)] = {"size": size, "base": base, "constants": constants}
        return found

    def _fields(self, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
        _, _, count, bits, _, extra = self._types[number]
        for index in range(count):
            name, kind, offset = struct.unpack_from("<III", extra, 12 * index)
            width, offset = (offset >> 24, offset & 0xFFFFFF) if bits else (0, offset)
            told: dict[str, Any] = {"type": self._described(kind), "offset": offset // 8}
            if width:
                size = 8 * self._size(kind)
                start = offset // size * size
                field = {"bit_position": offset - start, "bit_length": width, "type": self._described(kind)}
                told = {"type": {"kind": "bitfield", **field}, "offset": start // 8}
            called = self._name(name)
            if not called:
                told["anonymous"] = True
            yield called or f"unnamed_field_{index}", told

    def _described(self, number: int) -> dict[str, Any]:
        number = self._resolved(number)
        name, kind, _, _, value, extra = self._types[number]
        match kind:
            case BtfKind.INT:
                return {"kind": "base", "name": name}
            case BtfKind.PTR:
                return {"kind": "pointer", "subtype": self._pointed_at(value)}
            case BtfKind.ARRAY:
                element, _, count = struct.unpack("<III", extra)
                return {"kind": "array", "count": count, "subtype": self._described(element)}
            case BtfKind.STRUCT | BtfKind.UNION:
                return {"kind": "struct" if kind is BtfKind.STRUCT else "union", "name": self._called(number)}
            case BtfKind.ENUM | BtfKind.ENUM64:
                return {"kind": "enum", "name": self._called(number)}
            case BtfKind.FUNC_PROTO:
                return {"kind": "function"}
        return _VOID

    def _pointed_at(self, number: int) -> dict[str, Any]:
        # Behind a pointer only names are told, so that circles of types end.
        number = self._resolved(number)
        if self._types[number][1] is BtfKind.PTR:
            return {"kind": "pointer", "subtype": _VOID}
        return self._described(number)

    def _resolved(self, number: int) -> int:
        while number and self._types[number][1] in _MODIFIERS:
            number = self._types[number][4]
        return number

    def _size(self, number: int) -> int:
        return self._types[self._resolved(number)][4]

    def _called(self, number: int) -> str:
        return self._types[number][0] or f"unnamed_{number}"

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()
