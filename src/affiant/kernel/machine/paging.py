"""x86-64 page tables in guest memory: 4 and 5 levels, read the way the CPU reads them.

Intel SDM vol. 3A, 4.5. Tables are hostile: they may point to themselves, to each other or outside
RAM. Every walk is bounded, and what could not be followed is counted, never passed over. What a
CPU still holds in its TLB can't be seen from here.

A walk whose tables hold, byte for byte, what they held at the walk before gives the same answer, so it
is not done again: the tables are read and compared, all of them, every time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory, KeptRanges, MemoryFault
from affiant.model.errors import MalformedError

__all__ = ["KERNEL_HALF", "AddressSpace", "Extent", "Leaves", "Translation"]

KERNEL_HALF = (0xFF00_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)
"""First and last address of what the kernel may map (5 levels; includes the 4-level half)."""

_PRESENT, _WRITABLE, _USER, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_EXECUTABLE = 1 << 0  # beside rights of entries, in place of the bit that says that there is one
_NO_EXECUTE = 1 << 63
_ACCESSED_DIRTY = 0x60  # set by the CPU
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ENTRIES = 512
_MOST_KEPT_WALKS = 1024  # the image's sections, the kernel half, a few ranges for each module
_MOST_KEPT_TABLES = 8192  # of all of them: 32 MiB of copies; a guest with more is walked anew
_MOST_TABLES = 1 << 16
_MOST_LEAVES = 1 << 22  # 16 GiB mapped page by page: 27 bytes each here, and four times that for a moment
_MOST_KEPT_RUNS = 1 << 16
_TABLES_AT_ONCE = 128  # half a MiB, which a processor's cache holds
_ALL = (1 << 64) - 1

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a virtual address leads: physical address, and the page of `page_size` around it."""

    physical: int
    page_size: int
    writable: bool
    executable: bool
    user: bool


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of virtual memory that is physically contiguous and has one set of permissions."""

    start: int
    physical: int
    size: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """First address after the run."""
        return self.start + self.size


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """All mapped pages of a range, ordered by address: parallel arrays, one element a leaf.

    `unreadable_tables` counts tables outside RAM whose pages are therefore missing here: a walk
    with any of them proves nothing about the range. `tables` counts those that were read.
    """

    address: NDArray[np.uint64]
    physical: NDArray[np.uint64]
    size: NDArray[np.uint64]
    writable: NDArray[np.bool_]
    executable: NDArray[np.bool_]
    user: NDArray[np.bool_]
    tables: int
    unreadable_tables: int

    def __len__(self) -> int:
        return len(self.address)

    def locate(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the physical address of each address, and which of them are mapped; 0 for the others."""
        if not len(self):
            return np.zeros(len(addresses), dtype=np.uint64), np.zeros(len(addresses), dtype=bool)
        place = np.maximum(np.searchsorted(self.address, addresses, side="right") - 1, 0)
        distance = addresses - self.address[place]
        mapped = (addresses >= self.address[place]) & (distance < self.size[place])
        return np.where(mapped, self.physical[place] + distance, np.uint64(0)), mapped

    def select(self, mask: NDArray[np.bool_]) -> Leaves:
        """Return the leaves where `mask` is true; the counts of tables stay those of the walk."""
        return Leaves(
            self.address[mask],
            self.physical[mask],
            self.size[mask],
            self.writable[mask],
            self.executable[mask],
            self.user[mask],
            self.tables,
            self.unreadable_tables,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """A walk that was done: the tables that it read, with what they held, and what came out.

    While each of the tables holds what it held, another walk would find the same.
    """

    tables: KeptRanges
    leaves: Leaves


class _Read:
    """The tables that a walk has read, as long as they are not too many to be kept."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]] | None = []
        self._tables = self.unreadable = 0

    def add(
        self, frames: NDArray[np.uint64], entries: NDArray[np.uint64], readable: NDArray[np.bool_]
    ) -> None:
        self._tables += len(frames)
        self.unreadable += int(np.count_nonzero(~readable))
        if self._tables > _MOST_KEPT_TABLES:
            self._parts = None
        if self._parts is not None:
            self._parts.append((frames, entries, readable))

    def walk(self, memory: GuestMemory, leaves: Leaves) -> _Walk | None:
        if self._parts is None:
            return None
        frames, entries, readable = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        # Which frames are not RAM does not change.
        addresses = (frames[readable] * np.uint64(PAGE_SIZE)).tolist()
        return _Walk(memory.keep(zip(addresses, entries[readable], strict=True)), leaves)


@dataclass(frozen=True, slots=True, eq=False)
class _Led:
    """What entries of one level lead to, parallel arrays: pages or tables, the addresses from which on they
    map, and the rights that this level and those above leave: writable, open to user mode, executable.
    """

    physical: NDArray[np.uint64]
    address: NDArray[np.uint64]
    rights: NDArray[np.uint8]

    @classmethod
    def to(cls, root: int) -> _Led:
        every = np.array([_WRITABLE | _USER | _EXECUTABLE], dtype=np.uint8)
        return cls(np.array([root], dtype=np.uint64), np.zeros(1, dtype=np.uint64), every)

    @classmethod
    def joined(cls, parts: list[_Led]) -> _Led:
        return cls(
            np.concatenate([part.physical for part in parts]),
            np.concatenate([part.address for part in parts]),
            np.concatenate([part.rights for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.physical)

    def select(self, which: NDArray[np.bool_] | slice) -> _Led:
        return _Led(self.physical[which], self.address[which], self.rights[which])


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """One set of page tables: its top-level table (physical address) and the number of levels.

    Remembers its last walks, so keep one rather than make many.
    """

    memory: GuestMemory
    root: int
    levels: int
    _walks: dict[tuple[int, int, int, int], _Walk] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
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
            slot = (address >> shift) & (_ENTRIES - 1)
            entry = int.from_bytes(self.memory.view(table + 8 * slot, 8), "little")
            if not entry & _PRESENT:
                raise MemoryFault(f"{address:#x} is not mapped (level {level})")
            writable = writable and bool(entry & _WRITABLE)
            user = user and bool(entry & _USER)
            executable = executable and not entry & _NO_EXECUTE
            large = level > 1 and bool(entry & _LARGE)
            if large and level > 3:
                raise MemoryFault(f"{address:#x} is mapped by a reserved large page (level {level})")
            if level == 1 or large:
                size = 1 << shift
                physical = (entry & _ADDRESS & ~(size - 1)) + (address & (size - 1))
                return Translation(physical, size, writable, executable, user)
            table = entry & _ADDRESS
        raise AssertionError("a walk ends at level 1")  # pragma: no cover

    def top_entry(self, address: int) -> int:
        """Return the top-level entry for `address`; spaces with equal entries share all below it."""
        slot = (address >> (12 + 9 * (self.levels - 1))) & (_ENTRIES - 1)
        return int.from_bytes(self.memory.view(self.root + 8 * slot, 8), "little") & ~_ACCESSED_DIRTY

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
        runs = _runs(leaves, start, end)
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
        wanted = (first, last, maximum_tables, maximum_leaves)
        known = self._walks.get(wanted)
        if known is not None and self.memory.still_holds(known.tables):
            return known.leaves
        leaves, walk = self._walk(first, last, maximum_tables, maximum_leaves)
        self._keep(wanted, walk)
        return leaves

    def _keep(self, wanted: tuple[int, int, int, int], walk: _Walk | None) -> None:
        """Keep a walk, and only its newest; one that cannot be kept takes the place of none."""
        self._walks.pop(wanted, None)
        if walk is None:
            return
        tables = sum(len(each.tables.contents) for each in (walk, *self._walks.values()))
        if tables > _MOST_KEPT_TABLES or len(self._walks) >= _MOST_KEPT_WALKS:
            self._walks.clear()
            self._extents.clear()  # they keep walks alive
        self._walks[wanted] = walk

    def _walk(
        self, first: int, last: int, maximum_tables: int, maximum_leaves: int
    ) -> tuple[Leaves, _Walk | None]:
        """Walk the tables; returns the walk as well, unless it read more of them than are kept."""
        tables = _Led.to(self.root)
        found, read = _Found(), _Read()
        visited = 0
        for level in range(self.levels, 0, -1):
            visited += len(tables)
            named = visited
            inner: list[_Led] = []
            # Piece by piece, so that tables that name too much are given up before memory is full of it.
            for start in range(0, len(tables), _TABLES_AT_ONCE):
                if named > maximum_tables:
                    raise MalformedError(f"the guest's page tables name more than {maximum_tables} tables")
                piece = tables.select(slice(start, start + _TABLES_AT_ONCE))
                frames = piece.physical >> np.uint64(12)
                entries, readable = self.memory.tables(frames)
                read.add(frames, entries, readable)
                pages, further = self._entries(piece, entries, level, (first, last))
                found.add(pages, 12 + 9 * (level - 1))
                if len(found) > maximum_leaves:
                    raise MalformedError(f"the guest's page tables map more than {maximum_leaves} pages")
                inner.append(further)
                named += len(further)
            tables = _Led.joined(inner)
            if not len(tables):
                break
        leaves = found.leaves(visited - read.unreadable, read.unreadable)
        return leaves, read.walk(self.memory, leaves)

    def _entries(
        self, tables: _Led, entries: NDArray[np.uint64], level: int, bounds: tuple[int, int]
    ) -> tuple[_Led, _Led]:
        """Return what entries of tables of one level lead to within bounds: pages, and further tables."""
        shift = 12 + 9 * (level - 1)
        addresses = self._addresses(tables.address, level)
        wanted = (entries & np.uint64(_PRESENT)).astype(bool)
        wanted &= (addresses <= np.uint64(bounds[1])) & (
            addresses + np.uint64((1 << shift) - 1) >= np.uint64(bounds[0])
        )
        rows, columns = np.nonzero(wanted)
        entry, address = entries[rows, columns], addresses[rows, columns]
        large = (entry & np.uint64(_LARGE)).astype(bool)
        leaf = np.ones(len(entry), dtype=bool) if level == 1 else large & (level <= 3)
        # A large-page bit above level 3 is reserved: the CPU faults, so nothing is mapped there.
        inner = ~leaf & ~large if level > 1 else np.zeros(len(entry), dtype=bool)
        own = (entry & np.uint64(_WRITABLE | _USER)).astype(np.uint8)
        own |= (entry < np.uint64(_NO_EXECUTE)).astype(np.uint8)
        led = _Led(entry, address, tables.rights[rows] & own)
        pages, further = led.select(leaf), led.select(inner)
        pages.physical[:] &= np.uint64(_ADDRESS & ~((1 << shift) - 1))
        further.physical[:] &= np.uint64(_ADDRESS)
        return pages, further

    def _addresses(self, bases: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        slots = np.arange(_ENTRIES, dtype=np.uint64) << np.uint64(12 + 9 * (level - 1))
        if level == self.levels:
            slots[_ENTRIES // 2 :] |= np.uint64(_ALL << (12 + 9 * level) & _ALL)
        addresses: NDArray[np.uint64] = bases[:, None] | slots[None, :]
        return addresses


def _runs(leaves: Leaves, start: int, end: int) -> tuple[Extent, ...]:
    """Return the runs of [start, end) that its leaves make."""
    if not len(leaves):
        return ()
    # A run breaks where address, physical address or permissions do not continue.
    follows = (leaves.address[:-1] + leaves.size[:-1] == leaves.address[1:]) & (
        leaves.physical[:-1] + leaves.size[:-1] == leaves.physical[1:]
    )
    follows &= (leaves.writable[:-1] == leaves.writable[1:]) & (
        leaves.executable[:-1] == leaves.executable[1:]
    )
    first = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    last = np.concatenate((first[1:] - 1, [len(leaves) - 1]))
    runs: list[Extent] = []
    for begin, finish in zip(first.tolist(), last.tolist(), strict=True):
        run_start, physical = int(leaves.address[begin]), int(leaves.physical[begin])
        run_end = int(leaves.address[finish]) + int(leaves.size[finish])
        skipped = max(start - run_start, 0)
        runs.append(
            Extent(
                run_start + skipped,
                physical + skipped,
                min(run_end, end) - run_start - skipped,
                bool(leaves.writable[begin]),
                bool(leaves.executable[begin]),
            )
        )
    return tuple(runs)


class _Found:
    """Pages that a walk has found, in parts, column by column: of many, no two copies are held for long."""

    def __init__(self) -> None:
        self._address: list[NDArray[np.uint64]] = []
        self._physical: list[NDArray[np.uint64]] = []
        self._rights: list[NDArray[np.uint8]] = []
        self._shift: list[NDArray[np.uint8]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, pages: _Led, shift: int) -> None:
        self._count += len(pages)
        self._address.append(pages.address)
        self._physical.append(pages.physical)
        self._rights.append(pages.rights)
        self._shift.append(np.full(len(pages), shift, dtype=np.uint8))

    def leaves(self, tables: int, unreadable: int) -> Leaves:
        """Return all pages, ordered by address, once."""
        address = _taken(self._address)
        order = np.argsort(address, kind="stable")
        address = address[order]
        physical = _taken(self._physical)[order]
        rights = _taken(self._rights)[order]
        size = np.left_shift(np.uint64(1), _taken(self._shift)[order], dtype=np.uint64)
        writable, user, executable = (
            (rights & np.uint8(bit)).astype(bool) for bit in (_WRITABLE, _USER, _EXECUTABLE)
        )
        return Leaves(address, physical, size, writable, executable, user, tables, unreadable)


def _taken(parts: list[NDArray[_Number]]) -> NDArray[_Number]:
    whole = np.concatenate(parts)
    parts.clear()
    return whole
