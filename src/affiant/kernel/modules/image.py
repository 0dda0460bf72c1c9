"""A module as it must stand in memory: sections laid out and relocated as the kernel's loader does.

layout_sections(), simplify_symbols() and apply_relocate_add() of the kernel (kernel/module/main.c,
arch/x86/kernel/module.c), from the module's file. Where its memory begins is what the guest says: a wrong
place gives other bytes, and so differs from what is there. Symbols of the kernel come from the
reference, those of other modules from their files, laid out likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.relocatable import Relocatable, RelocatableSection
from affiant.model.errors import MalformedError

__all__ = [
    "LATER_READ_ONLY",
    "PER_CPU",
    "Area",
    "LinkedModule",
    "ModulePlaces",
    "link_module",
    "section_places",
]

_WRITE, _ALLOC, _EXECUTE = 1 << 0, 1 << 1, 1 << 2
_UNDEFINED, _ABSOLUTE = 0, 0xFFF1
PER_CPU: Final = ".data..percpu"
_NOT_LOADED: Final = (".modinfo", "__versions", "__version_ext_names", "__version_ext_crcs", PER_CPU)
LATER_READ_ONLY: Final = frozenset({".data..ro_after_init", "__jump_table"})
"""The sections of data that are made read-only after init, where the kernel does not tell."""

_LARGEST: Final = 64 << 20
_PAGE: Final = 4096
# x86-64 psABI, 4.4.1, table 4.9: width in bytes, and whether the place is subtracted.
_TYPES: Final[Mapping[int, tuple[int, bool]]] = {
    1: (8, False),  # R_X86_64_64
    2: (4, True),  # R_X86_64_PC32
    4: (4, True),  # R_X86_64_PLT32: modules have no PLT
    10: (4, False),  # R_X86_64_32
    11: (4, False),  # R_X86_64_32S
    24: (8, True),  # R_X86_64_PC64
}


@dataclass(frozen=True, slots=True)
class ModulePlaces:
    """Where the guest says that a module's memory begins: by area, and its per-CPU data.

    Areas are `text`, `rodata`, `ro_after_init`, `data` and the same with `init_` before. With
    `contiguous` (until 6.3), all areas follow each other from `text` (or `init_text`) on, each at a page.
    What was freed after init has its place where it does not matter, and is `freed`. `later` are the
    sections of data that this kernel makes read-only after init.
    """

    bases: Mapping[str, int]
    per_cpu: int
    contiguous: bool
    freed: frozenset[str] = frozenset()
    later: frozenset[str] = LATER_READ_ONLY


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """Bytes that must stand at `start`; `unknown` marks those that no symbol could be found for."""

    name: str
    start: int
    expected: NDArray[np.uint8]
    unknown: NDArray[np.bool_]
    padding: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class LinkedModule:
    """The areas of a module, where each section lies, and the names of symbols that nobody has."""

    areas: Mapping[str, Area]
    sections: Mapping[int, int]
    unresolved: tuple[str, ...]
    file: Relocatable

    def section(self, name: str) -> tuple[int, NDArray[np.uint8]] | None:
        """Return address and linked bytes of a section that was laid out, None if there is none."""
        found = self.file.section(name)
        if found is None or found.index not in self.sections:
            return None
        start = self.sections[found.index]
        for area in self.areas.values():
            offset = start - area.start
            if offset >= 0 and offset + found.size <= len(area.expected):
                return start, area.expected[offset : offset + found.size]
        return None


def section_places(file: Relocatable, places: ModulePlaces) -> dict[int, tuple[str, int]]:
    """Return for each section that is loaded its area and address."""
    laid: dict[int, tuple[str, int]] = {}
    for prefix in ("", "init_"):
        position = places.bases.get(f"{prefix}text", 0)
        for area in ("text", "rodata", "ro_after_init", "data"):
            name = prefix + area
            position = _up(position, _PAGE) if places.contiguous else places.bases.get(name, 0)
            for section in file.sections:
                if _area(section, places.later) == name:
                    position = _up(position, section.align)
                    laid[section.index] = (name, position)
                    position += section.size
    return laid


def link_module(
    file: Relocatable, places: ModulePlaces, resolve: Callable[[str], int | None]
) -> LinkedModule:
    """Return the areas of a module as they must stand, up to the end of their last page.

    `resolve` gives the address of a symbol that the module does not define. A relocation that the
    kernel would refuse is a MalformedError.
    """
    laid = section_places(file, places)
    where = {index: place for index, (_, place) in laid.items()}
    freed = {index for index, (area, _) in laid.items() if area in places.freed}
    values, known, unresolved = _symbols(file, where, freed, places.per_cpu, resolve)
    areas: dict[str, Area] = {}
    for name in dict.fromkeys(area for area, _ in laid.values()):
        own = {index: place for index, (area, place) in laid.items() if area == name}
        start = min(own.values()) // _PAGE * _PAGE
        end = _up(max(place + file.sections[index].size for index, place in own.items()), _PAGE)
        if end - start > _LARGEST:
            raise MalformedError(f"the module's area {name} has {end - start} bytes")
        if end > start:
            areas[name] = _area_bytes(file, name, start, end - start, own, values, known)
    return LinkedModule(areas, where, unresolved, file)


def _area_bytes(
    file: Relocatable,
    name: str,
    start: int,
    size: int,
    sections: Mapping[int, int],
    values: NDArray[np.uint64],
    known: NDArray[np.bool_],
) -> Area:
    expected = np.zeros(size, dtype=np.uint8)
    unknown, padding = np.zeros(size, dtype=bool), np.ones(size, dtype=bool)
    for index, place in sections.items():
        section, offset = file.sections[index], place - start
        padding[offset : offset + section.size] = False
        if section.stored:
            expected[offset : offset + section.size] = np.frombuffer(section.data, dtype=np.uint8)
        _relocate(
            file, index, place, expected[offset : offset + section.size], values, known, unknown[offset:]
        )
    return Area(name, start, expected, unknown, padding)


def _relocate(
    file: Relocatable,
    index: int,
    place: int,
    data: NDArray[np.uint8],
    values: NDArray[np.uint64],
    known: NDArray[np.bool_],
    unknown: NDArray[np.bool_],
) -> None:
    entries = file.relocations.get(index)
    if entries is None or not len(entries):
        return
    for kind in np.unique(entries["type"]).tolist():
        if kind == 0:
            continue
        if kind not in _TYPES:
            raise MalformedError(f"a module has relocations of type {kind}")
        width, relative = _TYPES[kind]
        chosen = entries[entries["type"] == kind]
        offsets = chosen["offset"].astype(np.int64)
        if int(offsets.max()) + width > len(data):
            raise MalformedError("a module's relocation lies outside its section")
        result = values[chosen["symbol"]] + chosen["addend"].view(np.uint64)
        if relative:
            result = result - (np.uint64(place) + chosen["offset"])
        where = offsets[:, None] + np.arange(width)
        data[where] = np.ascontiguousarray(result).view(np.uint8).reshape(-1, 8)[:, :width]
        unknown[where[~known[chosen["symbol"]]]] = True


def _symbols(
    file: Relocatable,
    sections: Mapping[int, int],
    freed: set[int],
    per_cpu_base: int,
    resolve: Callable[[str], int | None],
) -> tuple[NDArray[np.uint64], NDArray[np.bool_], tuple[str, ...]]:
    """Return the value of each symbol, whether it is known, and the names of those that are not."""
    bases = np.zeros(len(file.sections), dtype=np.uint64)
    present = np.zeros(len(file.sections), dtype=bool)
    for index, place in sections.items():
        bases[index], present[index] = place, index not in freed
    per_cpu = file.section(PER_CPU)
    if per_cpu is not None and per_cpu_base:
        bases[per_cpu.index], present[per_cpu.index] = per_cpu_base, True
    owner = file.symbols["section"].astype(np.int64)
    inside = (owner != _UNDEFINED) & (owner < 0xFF00)
    values = file.symbols["value"].astype(np.uint64)
    known = owner == _ABSOLUTE
    values[inside] += bases[owner[inside]]
    known[inside] = present[owner[inside]]
    unresolved: list[str] = []
    for index in np.flatnonzero(owner == _UNDEFINED).tolist():
        if index == 0:
            known[0] = True  # the symbol of relocations that name none
            continue
        found = resolve(file.names[index])
        if found is None:
            unresolved.append(file.names[index])
        else:
            values[index], known[index] = found & (1 << 64) - 1, True
    return values, known, tuple(unresolved)


def _area(section: RelocatableSection, later: frozenset[str]) -> str:
    """Return the area that a section is laid into, "" for none (move_module(), layout_sections())."""
    if not section.flags & _ALLOC or section.name in _NOT_LOADED:
        return ""
    prefix = "init_" if section.name.startswith(".init") else ""
    if section.flags & _EXECUTE:
        return prefix + "text"
    if not section.flags & _WRITE:
        return prefix + "rodata"
    return prefix + ("ro_after_init" if section.name in later else "data")


def _up(value: int, align: int) -> int:
    return -(-value // align) * align
