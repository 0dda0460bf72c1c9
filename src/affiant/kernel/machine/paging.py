"""x86-64 page tables in guest memory: 4 and 5 levels, read the way the CPU reads them.

Intel SDM vol. 3A, 4.5. Tables are hostile: they may point to themselves, to each other or outside
RAM. Every walk is bounded, and what could not be followed is counted, never passed over. What a
CPU still holds in its TLB can't be seen from here.

A walk whose tables hold, byte for byte, what they held at the walk before gives the same answer, so it
is not done again: the tables are read and compared, all of them, every time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Extent, Leaves
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory, MemoryFault
from affiant.kernel.machine.page_table_entry import (
    ACCESSED_DIRTY,
    ADDRESS,
    ENTRIES,
    LARGE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from affiant.kernel.machine.table_walk import MOST_KEPT_TABLES, TableWalk, WantedWalk, walk_tables

__all__ = ["KERNEL_HALF", "AddressSpace", "Translation"]

KERNEL_HALF = (0xFF00_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)
"""First and last address of what the kernel may map (5 levels; includes the 4-level half)."""

_MOST_KEPT_WALKS = 1024  # the image's sections, the kernel half, a few ranges for each module
_MOST_TABLES = 1 << 16
_MOST_LEAVES = 1 << 22  # 16 GiB mapped page by page: 27 bytes each here, and four times that for a moment
_MOST_KEPT_RUNS = 1 << 16
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a virtual address leads: physical address, and the page of `page_size` around it."""

    physical: int
    page_size: int
    writable: bool
    executable: bool
    user: bool


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """One set of page tables: its top-level table (physical address) and the number of levels.

    Remembers its last walks, so keep one rather than make many.
    """

    memory: GuestMemory
    root: int
    levels: int
    _walks: dict[WantedWalk, TableWalk] = field(default_factory=dict, init=False, repr=False, compare=False)
    _extents: dict[tuple[int, int], tuple[Leaves, tuple[Extent, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.levels not in (4, 5) or self.root % PAGE_SIZE:
            raise ValueError("an address space has 4 or 5 levels and a page-aligned root")

    def translate(self, address: int) -> Translation:
        """Walk to the page that holds `address`; raises MemoryFault if there is none."""
        if not self.canonical(address):
            raise MemoryFault(f"{address:#x} is not a canonical address")
        table, writable, executable, user = self.root, True, True, True
        for level in range(self.levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            slot = (address >> shift) & (ENTRIES - 1)
            entry = int.from_bytes(self.memory.view(table + 8 * slot, 8), "little")
            if not entry & PRESENT:
                raise MemoryFault(f"{address:#x} is not mapped (level {level})")
            writable = writable and bool(entry & WRITABLE)
            user = user and bool(entry & USER)
            executable = executable and not entry & NO_EXECUTE
            large = level > 1 and bool(entry & LARGE)
            if large and level > 3:
                raise MemoryFault(f"{address:#x} is mapped by a reserved large page (level {level})")
            if level == 1 or large:
                size = 1 << shift
                physical = (entry & ADDRESS & ~(size - 1)) + (address & (size - 1))
                return Translation(physical, size, writable, executable, user)
            table = entry & ADDRESS
        raise AssertionError("a walk ends at level 1")  # pragma: no cover

    def top_entry(self, address: int) -> int:
        """Return the top-level entry for `address`; spaces with equal entries share all below it."""
        slot = (address >> (12 + 9 * (self.levels - 1))) & (ENTRIES - 1)
        return int.from_bytes(self.memory.view(self.root + 8 * slot, 8), "little") & ~ACCESSED_DIRTY

    def canonical(self, address: int) -> bool:
        """Tell whether the CPU accepts the address with this number of levels (SDM vol. 1, 3.3.7.1)."""
        top = address >> (12 + 9 * self.levels - 1)
        return 0 <= address <= _ALL and top in (0, _ALL >> (12 + 9 * self.levels - 1))

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of virtual memory; raises MemoryFault if a page is missing."""
        parts: list[bytes] = []
        while size > 0:
            page = self.translate(address)
            take = min(size, page.page_size - address % page.page_size)
            parts.append(self.memory.read(page.physical, take))
            address, size = address + take, size - take
        return b"".join(parts)

    def words(
        self, addresses: NDArray[np.uint64], leaves: Leaves
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the little-endian 8-byte word at each address, where `leaves` of this space map it.

        The second array tells which could be read: mapped, in RAM, and at a multiple of 8.
        """
        physical, mapped = leaves.locate(addresses)
        words, there = self.memory.integers(physical, 8)
        return words, there & mapped

    def extents(self, start: int, end: int) -> tuple[Extent, ...]:
        """Return the runs that [start, end) is mapped by; gaps are simply absent.

        Raises what `leaves` raises.
        """
        leaves = self.leaves(start, end - 1)
        known = self._extents.get((start, end))
        if known is not None and known[0] is leaves:
            return known[1]
        runs = leaves.runs(start, end)
        kept = len(runs) + sum(len(others) for _, others in self._extents.values())
        if kept > _MOST_KEPT_RUNS or len(self._extents) >= _MOST_KEPT_WALKS:
            self._extents.clear()
        if len(runs) <= _MOST_KEPT_RUNS:
            self._extents[start, end] = leaves, runs
        return runs

    def leaves(
        self,
        first: int = KERNEL_HALF[0],
        last: int = KERNEL_HALF[1],
        *,
        maximum_tables: int = _MOST_TABLES,
        maximum_leaves: int = _MOST_LEAVES,
    ) -> Leaves:
        """Walk all tables that map [first, last], level by level, in vectors.

        Raises MalformedError if more than `maximum_tables` tables take part, or they map more than
        `maximum_leaves` pages: tables that point to themselves grow by 512 a level. At these bounds, a walk
        takes 300 MiB of memory at most. Raises MemoryFault where the ends are no addresses of 64 bits. A
        table outside RAM is counted in `unreadable_tables`.
        """
        if not 0 <= first <= _ALL or not 0 <= last <= _ALL:
            raise MemoryFault(f"{first:#x} to {last:#x} are no addresses")
        wanted = WantedWalk(first, last, maximum_tables, maximum_leaves)
        known = self._walks.get(wanted)
        if known is not None and self.memory.still_holds(known.tables):
            return known.leaves
        leaves, walk = walk_tables(self.memory, self.root, self.levels, wanted)
        self._keep(wanted, walk)
        return leaves

    def _keep(self, wanted: WantedWalk, walk: TableWalk | None) -> None:
        """Keep a walk, and only its newest; one that cannot be kept takes the place of none."""
        self._walks.pop(wanted, None)
        if walk is None:
            return
        tables = sum(len(each.tables.contents) for each in (walk, *self._walks.values()))
        if tables > MOST_KEPT_TABLES or len(self._walks) >= _MOST_KEPT_WALKS:
            self._walks.clear()
            self._extents.clear()  # they keep walks alive
        self._walks[wanted] = walk
