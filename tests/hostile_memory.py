"""Guest memory that lies where it is read: the words that a look reads, replaced by those that hurt most.

Nothing here knows a structure of the kernel. A look at healthy memory is traced; what it read, word for
word, is what a later look can be lied to about: every structure that is walked, those of tomorrow too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.guest import Guest
from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory
from affiant.kernel.walks.snapshot import Snapshot

__all__ = ["Lie", "Trace", "TracedMemory", "lies", "told", "traced"]

_KERNEL = 0xFFFF_0000_0000_0000
_LONGEST_STRUCTURE = 1 << 15  # longer reads are of code and tables as a whole: no structure that is walked


@dataclass
class Trace:
    """What a look read: physical addresses of words in structures, and of page tables."""

    words: set[int] = field(default_factory=set)
    tables: set[int] = field(default_factory=set)

    def thinned(self, most: int) -> Trace:
        """Return as much of it as `most` words and tables, drawn evenly."""
        return Trace(_drawn(self.words, most), _drawn(self.tables, most))


def _drawn(places: set[int], most: int) -> set[int]:
    return places if len(places) <= most else set(random.Random(0).sample(sorted(places), most))


class TracedMemory(GuestMemory):
    """Guest memory that tells what was read of it."""

    trace: Trace | None = None

    def view(self, address: int, size: int) -> memoryview:
        self._note(address, size)
        return super().view(address, size)

    def array(self, address: int, size: int) -> NDArray[np.uint8]:
        self._note(address, size)
        return super().array(address, size)

    def integers(
        self, addresses: NDArray[np.uint64], width: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        values, readable = super().integers(addresses, width)
        if self.trace is not None:
            self.trace.words.update((addresses[readable] & ~np.uint64(7)).tolist())
        return values, readable

    def tables(self, frames: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        if self.trace is not None:
            self.trace.tables.update((frames * np.uint64(PAGE_SIZE)).tolist())
        return super().tables(frames)

    def still_holds(self, kept: KeptRanges) -> bool:
        if self.trace is not None:
            for address, content in zip(kept.addresses, kept.contents, strict=True):
                if len(content) < PAGE_SIZE:  # whole pages are code, and tables that were walked before
                    self._note(address, len(content))
        return super().still_holds(kept)

    def _note(self, address: int, size: int) -> None:
        if self.trace is not None and size <= _LONGEST_STRUCTURE:
            self.trace.words.update(range(address & ~7, address + size, 8))


@contextmanager
def traced(guest: Guest) -> Iterator[Trace]:
    """Trace what is read of a guest whose memory is traced, by whichever way."""
    memory, program = guest.memory, guest.program
    assert isinstance(memory, TracedMemory)
    trace, read, read_page = Trace(), program.read, Snapshot.read

    def note(address: int, size: int) -> None:
        for start in range(address & ~7, address + size, 8):
            trace.words.add(guest.kernel_space.translate(start & (1 << 64) - 1).physical)

    def noted(address: int, size: int) -> bytes:
        data = read(address, size)
        if size < PAGE_SIZE:
            note(address, size)
        return data

    def noted_in_page(snapshot: Snapshot, address: int, size: int) -> bytes:
        data = read_page(snapshot, address, size)
        note(address, size)
        return data

    memory.trace = trace
    guest.kernel_space._walks.clear()  # page tables that are walked anew are traced
    program.read = noted  # type: ignore[method-assign]
    # Queries copy whole pages first; what they look at in those is what matters.
    Snapshot.read = noted_in_page  # type: ignore[method-assign]
    try:
        yield trace
    finally:
        memory.trace = None
        del program.read  # type: ignore[attr-defined]
        Snapshot.read = read_page  # type: ignore[method-assign]


@dataclass(frozen=True)
class Lie:
    """A word of RAM, by its physical address, and what it says instead."""

    place: int
    value: int


def lies(trace: Trace, memory: GuestMemory, seed: int, *, most: int) -> list[Lie]:
    """Return lies about what a look read: circles, pointers into nothing, huge counts, tables in tables."""
    draw = random.Random(seed)
    words, tables = sorted(trace.words), sorted(trace.tables)
    told: list[Lie] = []
    for _ in range(draw.randint(1, most)):
        if tables and (not words or draw.random() < 0.25):
            place = draw.choice(tables) + 8 * draw.randrange(512)
            told.append(Lie(place, _entry(draw, tables, memory)))
        elif words:
            place = draw.choice(words)
            told.append(Lie(place, _word(draw, place, words, memory)))
    return [lie for lie in told if memory.contains(lie.place, 8)]


def _word(draw: random.Random, place: int, words: list[int], memory: GuestMemory) -> int:
    """Return what a word of a structure may say: another of the pointers, a near miss, nonsense."""
    held = _at(memory, place)
    other = _at(memory, draw.choice(words))
    small = draw.choice([0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1, 1 << 40])
    pointers = [
        held,
        held + draw.choice([-16, -8, 8, 16, 1, PAGE_SIZE]),
        other,
        other + draw.choice([-16, -8, 8, 16]),
        draw.getrandbits(64) | _KERNEL,
        0x8000_0000_0000_0000,
        (1 << 64) - draw.randrange(1, 64),
    ]
    return (
        draw.choice([*pointers, small, held ^ 1 << draw.randrange(64), draw.getrandbits(64)]) & (1 << 64) - 1
    )


def _entry(draw: random.Random, tables: list[int], memory: GuestMemory) -> int:
    """Return what an entry of a page table may say: another table, itself, a page of any size, nowhere."""
    flags = draw.choice([0x3, 0x63, 0xE3, 0x1E3, 0x67, 0xE7, 0x1, 0x81, 0])
    target = draw.choice(
        [draw.choice(tables), draw.randrange(memory.size) & ~0xFFF, draw.getrandbits(52) & ~0xFFF, 0]
    )
    return target | flags | draw.getrandbits(1) << 63


def _at(memory: GuestMemory, place: int) -> int:
    return int.from_bytes(memory.read(place, 8), "little") if memory.contains(place, 8) else 0


@contextmanager
def told(ram: Any, lies: list[Lie], offset: Any = int) -> Iterator[None]:
    """Have lies stand in `ram` meanwhile; `offset` returns where a physical address lies in it."""
    before = [(offset(lie.place), bytes(ram[offset(lie.place) : offset(lie.place) + 8])) for lie in lies]
    try:
        for lie in lies:
            ram[offset(lie.place) : offset(lie.place) + 8] = lie.value.to_bytes(8, "little")
        yield
    finally:
        for place, content in reversed(before):
            ram[place : place + 8] = content
