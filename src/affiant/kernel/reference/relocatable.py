"""Relocatable ELF files (modules) with symbols and relocations, as arrays.

System V gABI 4.1, chapter 4; relocation types: x86-64 psABI, 4.4. Unlike `elf`, which gives people's
eyes a list of sections, this is what a loader needs, and it reads thousands of relocations at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.model.errors import MalformedError

__all__ = ["RELOCATION", "SYMBOL", "Relocatable", "RelocatableSection", "read_relocatable"]

SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RELOCATION: Final = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_HEADER: Final = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("align", "<u8"),
        ("entry", "<u8"),
    ]
)
_SYMTAB, _STRTAB, _RELA, _NOBITS, _NULL = 2, 3, 4, 8, 0
_RELOCATABLE, _X86_64 = 1, 62
_MOST_SECTIONS, _MOST_SYMBOLS, _MOST_RELOCATIONS = 4096, 1 << 20, 1 << 22
_LARGEST_ALIGNMENT = 1 << 21
_LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class RelocatableSection:
    """One section header; `data` is empty for sections of zeros. `flags` are SHF_* bits."""

    index: int
    name: str
    type: int
    flags: int
    size: int
    align: int
    data: memoryview

    @property
    def stored(self) -> bool:
        """Tell whether the section has bytes in the file."""
        return self.type not in (_NOBITS, _NULL)


@dataclass(frozen=True, slots=True, eq=False)
class Relocatable:
    """A module as its file has it.

    `symbols` has dtype `SYMBOL`, with `names` beside it; `relocations` maps the index of a section to
    what is to be changed in it (dtype `RELOCATION`).
    """

    sections: tuple[RelocatableSection, ...]
    symbols: NDArray[np.void]
    names: tuple[str, ...]
    relocations: dict[int, NDArray[np.void]]

    def section(self, name: str) -> RelocatableSection | None:
        """Return the first section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def read_relocatable(data: bytes) -> Relocatable:
    """Return a module's sections, symbols and relocations.

    Guaranteed: an x86-64 ELF relocatable file; at most 4096 sections; contents lie inside `data`; each
    relocation lies inside its section and names a symbol that is there; each symbol names a section that
    is there, or a reserved one; alignments are powers of two up to 2 MiB. Raises `MalformedError` else.
    """
    headers = _headers(data)
    names = _strings(data, headers, int.from_bytes(data[62:64], "little"))
    sections = tuple(_section(data, index, header, names) for index, header in enumerate(headers))
    tables = [section.index for section in sections if section.type == _SYMTAB]
    if len(tables) != 1:
        raise MalformedError("a module has one symbol table")
    table = tables[0]
    raw = sections[table].data
    if len(raw) % SYMBOL.itemsize or len(raw) // SYMBOL.itemsize > _MOST_SYMBOLS:
        raise MalformedError("a module's symbol table is broken")
    symbols = np.frombuffer(raw, dtype=SYMBOL)
    reserved = symbols["section"] >= 0xFF00
    if np.any(~reserved & (symbols["section"] >= len(sections))):
        raise MalformedError("a module's symbol lies in no section")
    text = _strings(data, headers, int(headers[table]["link"]))
    relocations: dict[int, NDArray[np.void]] = {}
    for section in sections:
        if section.type == _RELA:
            target = int(headers[section.index]["info"])
            if not 0 < target < len(sections) or target in relocations:
                raise MalformedError("a module's relocations belong to no section")
            relocations[target] = _relocations(section, sections[target], len(symbols))
    return Relocatable(
        sections, symbols, tuple(_text(text, at) for at in symbols["name"].tolist()), relocations
    )


def _headers(data: bytes) -> NDArray[np.void]:
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise MalformedError("not an ELF file")
    kind, machine = int.from_bytes(data[16:18], "little"), int.from_bytes(data[18:20], "little")
    start, size, count = (
        int.from_bytes(data[at : at + width], "little") for at, width in ((40, 8), (58, 2), (60, 2))
    )
    if kind != _RELOCATABLE or machine != _X86_64:
        raise MalformedError("not a relocatable file for x86-64")
    if size != _HEADER.itemsize or not 0 < count <= _MOST_SECTIONS or start + size * count > len(data):
        raise MalformedError("a module's section headers are broken")
    return np.frombuffer(data, dtype=_HEADER, count=count, offset=start)


def _section(data: bytes, index: int, header: np.void, names: bytes) -> RelocatableSection:
    kind, offset, size = int(header["type"]), int(header["offset"]), int(header["size"])
    align = int(header["align"]) or 1
    if align & (align - 1) or align > _LARGEST_ALIGNMENT or size > 1 << 30:
        raise MalformedError("a module's section has an impossible size or alignment")
    stored = kind not in (_NOBITS, _NULL)
    if stored and offset + size > len(data):
        raise MalformedError("a module's section reaches beyond the file")
    return RelocatableSection(
        index=index,
        name=_text(names, int(header["name"])),
        type=kind,
        flags=int(header["flags"]),
        size=size,
        align=align,
        data=memoryview(data)[offset : offset + size] if stored else memoryview(b""),
    )


def _strings(data: bytes, headers: NDArray[np.void], index: int) -> bytes:
    if not 0 < index < len(headers) or headers[index]["type"] != _STRTAB:
        raise MalformedError("a module's names are missing")
    offset, size = int(headers[index]["offset"]), int(headers[index]["size"])
    if offset + size > len(data) or not size or data[offset + size - 1]:
        raise MalformedError("a module's names are broken")
    return data[offset : offset + size]


def _text(names: bytes, at: int) -> str:
    end = names.find(b"\0", at, at + _LONGEST_NAME)
    if at >= len(names) or end < 0:
        raise MalformedError("a module's name has no end")
    return names[at:end].decode("utf-8", "backslashreplace")


def _relocations(section: RelocatableSection, target: RelocatableSection, symbols: int) -> NDArray[np.void]:
    if (
        len(section.data) % RELOCATION.itemsize
        or len(section.data) // RELOCATION.itemsize > _MOST_RELOCATIONS
    ):
        raise MalformedError("a module's relocations are broken")
    entries = np.frombuffer(section.data, dtype=RELOCATION)
    if len(entries) and (
        int(entries["offset"].max()) >= max(target.size, 1) or int(entries["symbol"].max()) >= symbols
    ):
        raise MalformedError("a module's relocation lies outside its section, or names no symbol")
    return entries
