"""Walks over the kernel's lists and trees that need not be done again.

A walk reads words, and what it finds follows from them. If each of these words is what it was, another walk
would read the same and find the same: so all of them are read at once and compared, which takes a fraction
of the time of reading one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.lists import Words
from affiant.kernel.walks.snapshot import NotingSnapshot, Snapshot
from affiant.model.errors import MalformedError

__all__ = ["looked_through", "walked"]

_Found = TypeVar("_Found")
_Arguments = ParamSpec("_Arguments")

_WORD: Final = 8
_EVERY_BIT: Final = np.uint64((1 << 64) - 1)
_MOST_KEPT: Final = 1 << 17
"""Words of one walk that are kept, 4 MiB with what is kept beside them: one of more is done each time."""


def walked(program: KernelProgram, walk: Callable[[KernelProgram, Words], _Found]) -> _Found:
    """Return what a walk finds now, and remember it. Raises what the walk raises.

    `walk` is a function of a module, and must read the guest through the words that it is given, and through
    nothing else.
    """
    known = program.walks.get(walk)
    if isinstance(known, _Known) and known.still_holds(program):
        return cast(_Found, known.found)
    recorder = _Recorder(program)
    made = walk(program, recorder)
    addresses = np.array(list(recorder.read), dtype=np.uint64)
    words = np.array(list(recorder.read.values()), dtype=np.uint64)
    program.walks[walk] = _Known(addresses, words, np.full(len(words), _EVERY_BIT), made)
    return made


def looked_through(
    memory: Snapshot,
    walk: Callable[Concatenate[KernelProgram, Snapshot, _Arguments], _Found],
    *arguments: _Arguments.args,
    **named: _Arguments.kwargs,
) -> _Found:
    """Return what a walk through a snapshot finds now, and remember it. Raises what the walk raises.

    `walk` is a function of a module. What it returns must follow from its arguments, which can be hashed,
    from the kernel's reference, and from what it reads of the guest through the snapshot that it is given;
    nobody may change it. A walk that has met memory that is not there, or too much of it, is not remembered.
    """
    program = memory.program
    key: Hashable = (walk, arguments, tuple(sorted(named.items())))
    known = program.walks.pop(key, None)
    if not isinstance(known, _Known) or not known.still_holds(program):
        noting = NotingSnapshot(memory)
        found = walk(program, noting, *arguments, **named)
        known = _noted(noting, found)
        if known is None:
            return found
    program.walks[key] = known
    return cast(_Found, known.found)


@dataclass(slots=True, eq=False)
class _Known:
    """What a walk found, and each word that it read: where, what it held, and which of its bits were read."""

    addresses: NDArray[np.uint64]
    words: NDArray[np.uint64]
    bits: NDArray[np.uint64]
    found: object
    _leaves: Leaves | None = None
    _physical: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    def still_holds(self, program: KernelProgram) -> bool:
        """Tell whether all that was read is mapped, and holds what it held; page tables are compared, too."""
        try:
            leaves = program.space.leaves()
        except MalformedError:
            return False
        if leaves is not self._leaves:
            physical, mapped = leaves.locate(self.addresses)
            if not mapped.all():
                return False
            self._leaves, self._physical = leaves, physical
        found, there = program.space.memory.integers(self._physical, _WORD)
        return bool(there.all()) and not ((found ^ self.words) & self.bits).any()


def _noted(memory: NotingSnapshot, found: object) -> _Known | None:
    """Return what is to be remembered of a walk; None if not all of it is known, or it is too much."""
    starts = np.frombuffer(memory.addresses, dtype=np.uint64)
    lasts = starts + (np.frombuffer(memory.sizes, dtype=np.uint64) - np.uint64(1))
    first, last = starts // np.uint64(_WORD), lasts // np.uint64(_WORD)
    counts = (last - first).astype(np.int64) + 1
    total = int(counts.sum())
    if not memory.whole or total > _MOST_KEPT:
        return None
    begins = np.cumsum(counts) - counts
    steps = np.arange(total) - np.repeat(begins, counts)
    addresses = (np.repeat(first, counts) + steps.astype(np.uint64)) * np.uint64(_WORD)
    # Of the first and the last word of a read, only some bytes are read: the others may be anything.
    bits = np.full(total, _EVERY_BIT)
    bits[begins] &= _EVERY_BIT << (starts % np.uint64(_WORD) * np.uint64(8))
    bits[begins + counts - 1] &= _EVERY_BIT >> ((np.uint64(7) - lasts % np.uint64(_WORD)) * np.uint64(8))
    offsets = addresses % np.uint64(PAGE_SIZE)
    pages, inverse = np.unique(addresses - offsets, return_inverse=True)
    contents = [memory.page(page) for page in pages.tolist()]
    kept = [page for page in contents if page is not None]
    if len(kept) < len(contents):
        return None
    held = (
        np.frombuffer(b"".join(kept), dtype="<u8")
        .astype(np.uint64, copy=False)
        .reshape(-1, PAGE_SIZE // _WORD)
    )
    return _Known(addresses, held[inverse, (offsets // np.uint64(_WORD)).astype(np.int64)], bits, found)


@dataclass(frozen=True, slots=True)
class _Recorder:
    program: KernelProgram
    read: dict[int, int] = field(default_factory=dict)

    def word(self, address: int) -> int:
        """Return the 64-bit word at a virtual address, and note it; asked again, as it was noted."""
        place = address & (1 << 64) - 1
        if place not in self.read:
            self.read[place] = self.program.word(address)
        return self.read[place]
