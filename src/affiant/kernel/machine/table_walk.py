"""A walk over all page tables below a root, level by level, in vectors.

Tables are hostile: they may name themselves, each other, or more than there is memory for. The walk is
bounded in both, and goes piece by piece, so that tables that name too much are given up early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory
from affiant.kernel.machine.page_table_entry import (
    ADDRESS,
    ENTRIES,
    LARGE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
)
from affiant.model.errors import MalformedError

__all__ = ["MOST_KEPT_TABLES", "TableWalk", "WantedWalk", "walk_tables"]

MOST_KEPT_TABLES: Final = 8192
"""Tables that are kept of all walks of an address space: 32 MiB of copies; with more it is walked anew."""

_EXECUTABLE: Final = 1 << 0  # beside rights of entries, in place of the bit that says that there is one
_TABLES_AT_ONCE: Final = 128  # half a MiB, which a processor's cache holds
_ALL: Final = (1 << 64) - 1

_Number = TypeVar("_Number", bound=np.generic)


class WantedWalk(NamedTuple):
    """First and last address of what is to be found, and how much may take part in it."""

    first: int
    last: int
    maximum_tables: int
    maximum_leaves: int


@dataclass(frozen=True, slots=True, eq=False)
class TableWalk:
    """A walk that was done: the tables that it read, with what they held, and what came out.

    While each of the tables holds what it held, another walk would find the same.
    """

    tables: KeptRanges
    leaves: Leaves


def walk_tables(
    memory: GuestMemory, root: int, levels: int, wanted: WantedWalk
) -> tuple[Leaves, TableWalk | None]:
    """Walk the tables below a root; returns the walk as well, unless it read more of them than are kept.

    Raises MalformedError if more tables take part, or they map more pages, than are wanted.
    """
    tables = _Led.to(root)
    found, read = _Found(), _Read()
    visited = 0
    for level in range(levels, 0, -1):
        visited += len(tables)
        named = visited
        inner: list[_Led] = []
        # Piece by piece, so that tables that name too much are given up before memory is full of it.
        for start in range(0, len(tables), _TABLES_AT_ONCE):
            if named > wanted.maximum_tables:
                raise MalformedError(f"the guest's page tables name more than {wanted.maximum_tables} tables")
            piece = tables.select(slice(start, start + _TABLES_AT_ONCE))
            frames = piece.physical >> np.uint64(12)
            entries, readable = memory.tables(frames)
            read.add(frames, entries, readable)
            pages, further = _entries(piece, entries, level, levels, wanted)
            found.add(pages, 12 + 9 * (level - 1))
            if len(found) > wanted.maximum_leaves:
                raise MalformedError(f"the guest's page tables map more than {wanted.maximum_leaves} pages")
            inner.append(further)
            named += len(further)
        tables = _Led.joined(inner)
        if not len(tables):
            break
    leaves = found.leaves(visited - read.unreadable, read.unreadable)
    return leaves, read.walk(memory, leaves)


def _entries(
    tables: _Led, entries: NDArray[np.uint64], level: int, levels: int, bounds: WantedWalk
) -> tuple[_Led, _Led]:
    """Return what entries of tables of one level lead to within bounds: pages, and further tables."""
    shift = 12 + 9 * (level - 1)
    addresses = _addresses(tables.address, level, levels)
    wanted = (entries & np.uint64(PRESENT)).astype(bool)
    wanted &= (addresses <= np.uint64(bounds.last)) & (
        addresses + np.uint64((1 << shift) - 1) >= np.uint64(bounds.first)
    )
    rows, columns = np.nonzero(wanted)
    entry, address = entries[rows, columns], addresses[rows, columns]
    large = (entry & np.uint64(LARGE)).astype(bool)
    leaf = np.ones(len(entry), dtype=bool) if level == 1 else large & (level <= 3)
    # A large-page bit above level 3 is reserved: the CPU faults, so nothing is mapped there.
    inner = ~leaf & ~large if level > 1 else np.zeros(len(entry), dtype=bool)
    own = (entry & np.uint64(WRITABLE | USER)).astype(np.uint8)
    own |= (entry < np.uint64(NO_EXECUTE)).astype(np.uint8)
    led = _Led(entry, address, tables.rights[rows] & own)
    pages, further = led.select(leaf), led.select(inner)
    pages.physical[:] &= np.uint64(ADDRESS & ~((1 << shift) - 1))
    further.physical[:] &= np.uint64(ADDRESS)
    return pages, further


def _addresses(bases: NDArray[np.uint64], level: int, levels: int) -> NDArray[np.uint64]:
    slots = np.arange(ENTRIES, dtype=np.uint64) << np.uint64(12 + 9 * (level - 1))
    if level == levels:
        slots[ENTRIES // 2 :] |= np.uint64(_ALL << (12 + 9 * level) & _ALL)
    addresses: NDArray[np.uint64] = bases[:, None] | slots[None, :]
    return addresses


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
        if self._tables > MOST_KEPT_TABLES:
            self._parts = None
        if self._parts is not None:
            self._parts.append((frames, entries, readable))

    def walk(self, memory: GuestMemory, leaves: Leaves) -> TableWalk | None:
        if self._parts is None:
            return None
        frames, entries, readable = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        # Which frames are not RAM does not change.
        addresses = (frames[readable] * np.uint64(PAGE_SIZE)).tolist()
        return TableWalk(memory.keep(zip(addresses, entries[readable], strict=True)), leaves)


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
        every = np.array([WRITABLE | USER | _EXECUTABLE], dtype=np.uint8)
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
            (rights & np.uint8(bit)).astype(bool) for bit in (WRITABLE, USER, _EXECUTABLE)
        )
        return Leaves(address, physical, size, writable, executable, user, tables, unreadable)


def _taken(parts: list[NDArray[_Number]]) -> NDArray[_Number]:
    whole = np.concatenate(parts)
    parts.clear()
    return whole
