"""Sets of pages of a guest's RAM file, by number: what was read, and what was copied."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["PageSet"]

_PAGE_SHIFT = 12
# Runs of pages closer than this are one run: a few pages more cost less than another entry in a list.
_NEAR = 8


class PageSet:
    """Which of the pages of a RAM file; page `n` is the bytes from `n` * 4096 of the file on."""

    def __init__(self, pages: int) -> None:
        self._marks = bytearray(pages)
        self._array: NDArray[np.uint8] = np.frombuffer(self._marks, dtype=np.uint8)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._array))

    def add(self, offset: int, size: int) -> None:
        """Add the pages that [offset, offset + size) of the file lies in."""
        first, end = offset >> _PAGE_SHIFT, (offset + size - 1 >> _PAGE_SHIFT) + 1
        if end - first == 1:
            self._marks[first] = 1
        elif size:
            self._array[first:end] = 1

    def add_each(self, pages: NDArray[np.uint64]) -> None:
        """Add pages by number."""
        self._array[pages] = 1

    def add_runs(self, runs: Iterable[tuple[int, int]]) -> None:
        """Add runs of pages, each a first page and how many."""
        for first, count in runs:
            self._array[first : first + count] = 1

    def has(self, offset: int, size: int) -> bool:
        """Tell whether all pages that [offset, offset + size) of the file lies in are here."""
        return self._marks.find(0, offset >> _PAGE_SHIFT, (offset + size - 1 >> _PAGE_SHIFT) + 1) < 0

    def without(self, pages: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return those of some pages, by number, that are not here."""
        missing: NDArray[np.uint64] = pages[self._array[pages] == 0]
        return missing

    def runs(self) -> list[tuple[int, int]]:
        """Return runs (first page, how many) that hold all pages that are here, and a few between them."""
        pages = np.flatnonzero(self._array)
        if not len(pages):
            return []
        breaks = np.flatnonzero(np.diff(pages) > _NEAR)
        firsts = pages[np.concatenate(([0], breaks + 1))].tolist()
        lasts = pages[np.concatenate((breaks, [len(pages) - 1]))].tolist()
        return [(first, last + 1 - first) for first, last in zip(firsts, lasts, strict=True)]
