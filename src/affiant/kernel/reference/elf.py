"""ELF files (kernels and modules) as a plain list of sections and segments.

pyelftools does the reading; this module is the only one that knows it, because it is untyped and
raises whatever hostile bytes make it stumble over.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile

from affiant.model.errors import MalformedError

__all__ = ["ElfFile", "ElfSection", "ElfSegment", "read_elf"]

_MAX_SECTIONS = 4096  # a module has one for each function with its own section; a kernel has about 50
_MAX_SEGMENTS = 64
_SHN_LORESERVE = 0xFF00


@dataclass(frozen=True, slots=True)
class ElfSection:
    """One section header and, unless it occupies no file space (`SHT_NOBITS`), its bytes.

    `address` is `sh_addr`, `size` the size in memory in bytes. `data` is empty for NOBITS.
    """

    name: str
    address: int
    size: int
    offset: int
    allocated: bool
    writable: bool
    executable: bool
    stored: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """One PT_LOAD program header; addresses and sizes in bytes."""

    offset: int
    virtual_address: int
    physical_address: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfFile:
    """A 64-bit little-endian x86-64 ELF file.

    `end` is the file offset behind the last byte that a header describes (section contents, section
    headers, program headers); a kernel's relocation table lies behind it.
    """

    sections: tuple[ElfSection, ...]
    segments: tuple[ElfSegment, ...]
    entry: int
    end: int

    def section(self, name: str) -> ElfSection | None:
        """Return the first section of that name, or None."""
        return next((section for section in self.sections if section.name == name), None)


def read_elf(data: bytes | memoryview) -> ElfFile:
    """Return the sections and segments of an ELF file.

    Guaranteed: class 64, little-endian, machine x86-64; at most 4096 sections and 64 segments; all
    contents lie inside `data`; names are ASCII. Not guaranteed: that sections don't overlap.

    Raises `MalformedError` for anything else (System V gABI 4.1, chapters 4 and 5).
    """
    view = memoryview(data)
    _check_header(view)
    try:
        elf = ELFFile(io.BytesIO(view))
        sections = [_header(section) for section in elf.iter_sections()]
        segments = [dict(segment.header) for segment in elf.iter_segments()]
    except MalformedError:
        raise
    except Exception as error:  # the library raises of many kinds on hostile input
        raise MalformedError(f"ELF file cannot be read: {type(error).__name__}") from error
    header = elf.header
    end = header["e_shoff"] + header["e_shnum"] * header["e_shentsize"]
    end = max(end, header["e_phoff"] + header["e_phnum"] * header["e_phentsize"])
    read: list[ElfSection] = []
    for name, fields in sections:
        section = _section(name, fields, view)
        if section.stored:
            end = max(end, section.offset + section.size)
        read.append(section)
    if end > len(view):
        raise MalformedError("ELF headers reach beyond the end of the file")
    return ElfFile(
        sections=tuple(read),
        segments=tuple(_segment(fields, len(view)) for fields in segments if fields["p_type"] == "PT_LOAD"),
        entry=int(header["e_entry"]),
        end=int(end),
    )


def _check_header(view: memoryview) -> None:
    """Bound what the library is going to walk, before it walks."""
    if len(view) < 64 or bytes(view[:4]) != b"\x7fELF":
        raise MalformedError("not an ELF file")
    if view[4] != 2 or view[5] != 1 or int.from_bytes(view[18:20], "little") != 62:
        raise MalformedError("ELF file is not for x86-64")
    section_count = int.from_bytes(view[60:62], "little")
    if not 0 < section_count <= _MAX_SECTIONS or section_count >= _SHN_LORESERVE:
        raise MalformedError(
            f"ELF file has {section_count} sections; between 1 and {_MAX_SECTIONS} are accepted"
        )
    if int.from_bytes(view[56:58], "little") > _MAX_SEGMENTS:
        raise MalformedError(f"ELF file has more than {_MAX_SEGMENTS} segments")


def _header(section: object) -> tuple[str, dict[str, int | str]]:
    name: str = section.name  # type: ignore[attr-defined] # untyped library object
    header: dict[str, int | str] = dict(section.header)  # type: ignore[attr-defined] # as above
    return name, header


def _section(name: str, fields: dict[str, int | str], view: memoryview) -> ElfSection:
    flags, offset, size = int(fields["sh_flags"]), int(fields["sh_offset"]), int(fields["sh_size"])
    stored = fields["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
    if not name.isascii() or (name and not name.isprintable()) or len(name) > 255:
        raise MalformedError("ELF section has an unprintable name")
    if stored and offset + size > len(view):
        raise MalformedError(f"ELF section {name!r} reaches beyond the end of the file")
    return ElfSection(
        name=name,
        address=int(fields["sh_addr"]),
        size=size,
        offset=offset,
        allocated=bool(flags & 0x2),
        writable=bool(flags & 0x1),
        executable=bool(flags & 0x4),
        stored=stored,
        data=view[offset : offset + size] if stored else view[:0],
    )


def _segment(fields: dict[str, int], length: int) -> ElfSegment:
    if fields["p_offset"] + fields["p_filesz"] > length or fields["p_filesz"] > fields["p_memsz"]:
        raise MalformedError("ELF segment reaches beyond the end of the file")
    return ElfSegment(
        offset=int(fields["p_offset"]),
        virtual_address=int(fields["p_vaddr"]),
        physical_address=int(fields["p_paddr"]),
        file_size=int(fields["p_filesz"]),
        memory_size=int(fields["p_memsz"]),
    )
