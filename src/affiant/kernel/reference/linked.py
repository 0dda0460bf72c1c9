"""A kernel as it was linked: its allocated sections at the addresses where they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.elf import ElfFile, ElfSection
from affiant.model.errors import MalformedError

__all__ = ["KERNEL_MAP", "LinkedKernel", "Section", "linked_kernel"]

KERNEL_MAP = 0xFFFFFFFF_80000000
"""__START_KERNEL_map: where physical address zero is mapped in an unrelocated x86-64 kernel."""

_MAX_SECTIONS = 512
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Section:
    """An allocated section. `address` is where the kernel's own pointers say it is, `load_address`
    where the loader puts it; they differ only for per-CPU data linked at zero (until 6.15).

    `size` is in bytes; `data` is empty when the section is made of zeros (`.bss`, `.brk`).
    """

    name: str
    address: int
    load_address: int
    size: int
    writable: bool
    executable: bool
    data: memoryview

    def holds(self, address: int, size: int = 1) -> bool:
        """Tell whether all `size` bytes at the load address `address` are stored here."""
        return self.load_address <= address and address + size <= self.load_address + len(self.data)


@dataclass(frozen=True, slots=True)
class LinkedKernel:
    """The sections in ascending order of load address; they don't overlap."""

    sections: tuple[Section, ...]

    def section(self, name: str) -> Section:
        """Return the section of that name; raises `MalformedError` if the kernel has none."""
        found = self.find(name)
        if found is None:
            raise MalformedError(f"the kernel has no section {name}")
        return found

    def find(self, name: str) -> Section | None:
        """Return the section of that name, or None."""
        return next((section for section in self.sections if section.name == name), None)

    def read(self, address: int, size: int) -> memoryview:
        """Return `size` linked bytes at a load address; raises `MalformedError` if not all are stored."""
        for section in self.sections:
            if size >= 0 and section.holds(address, size):
                return section.data[address - section.load_address :][:size]
        raise MalformedError(f"no section holds {size} bytes at {address:#x}")

    def gather(self, addresses: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
        """Return the `width` bytes at each address, shape (n, width); zeros where nothing is stored."""
        out = np.zeros((len(addresses), width), dtype=np.uint8)
        for section in self.sections:
            if len(section.data) < width:
                continue
            offsets = addresses - np.uint64(section.load_address)  # wraps to huge when below
            inside = offsets <= np.uint64(len(section.data) - width)
            data = np.frombuffer(section.data, dtype=np.uint8)
            out[inside] = data[offsets[inside].astype(np.int64)[:, None] + np.arange(width)]
        return out


def linked_kernel(elf: ElfFile) -> LinkedKernel:
    """Return the allocated sections of a vmlinux at their load addresses.

    Guaranteed: `.text` and `.rodata` are there and stored; names are unique and have 1 to 64
    characters; sections lie in the kernel's 2 GiB and don't overlap. Raises `MalformedError` otherwise.
    """
    allocated = [section for section in elf.sections if section.allocated and section.size]
    if len(allocated) > _MAX_SECTIONS:
        raise MalformedError(f"a kernel of {len(allocated)} sections")
    sections = sorted((_loaded(section, elf) for section in allocated), key=lambda part: part.load_address)
    _check_layout(sections)
    kernel = LinkedKernel(sections=tuple(sections))
    if not kernel.section(".text").data or not kernel.section(".rodata").data:
        raise MalformedError("the kernel's text or read-only data is empty")
    return kernel


def _loaded(section: ElfSection, elf: ElfFile) -> Section:
    for segment in elf.segments:
        distance = section.address - segment.virtual_address
        if distance >= 0 and distance + section.size <= segment.memory_size:
            load_address = segment.physical_address + distance + KERNEL_MAP
            break
    else:
        raise MalformedError(f"kernel section {section.name} lies in no loadable segment")
    return Section(
        name=section.name,
        address=section.address,
        load_address=load_address,
        size=section.size,
        writable=section.writable,
        executable=section.executable,
        data=section.data,
    )


def _check_layout(sections: Sequence[Section]) -> None:
    end = KERNEL_MAP
    names: set[str] = set()
    for section in sections:
        if not 0 < len(section.name) <= _MAX_NAME:
            raise MalformedError("a kernel section has no name, or one that is too long")
        if section.load_address < end or section.load_address + section.size > 1 << 64:
            raise MalformedError(
                f"kernel section {section.name} overlaps another or leaves the kernel's range"
            )
        end = section.load_address + section.size
        if section.name in names:
            raise MalformedError(f"two kernel sections are called {section.name}")
        names.add(section.name)
