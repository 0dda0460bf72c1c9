"""Where sites lie in a region, and the bytes of each of them as a row, all as wide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.site_content.rule import ROW_BYTES, Rule, SiteSet

__all__ = ["Spans", "row_width", "rows_at"]


def row_width(sites: SiteSet) -> int:
    """Return how wide the rows of sites are: as the longest of them, in whole words."""
    return -(-int(sites.length.max(initial=1)) // ROW_BYTES) * ROW_BYTES


class Spans:
    """Finds the sites that offsets lie in."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.width = [row_width(rule.sites) for rule in rules]
        self._rules = rules

    def touched(self, offsets: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield for each rule the indices of its sites that hold one of the offsets (in ascending order)."""
        if not len(offsets):
            return
        for number, rule in enumerate(self._rules):
            sites = rule.sites
            # Whichever are fewer are searched for among the others.
            if len(offsets) < len(sites):
                indices = _around(offsets, sites, self.width[number])
            else:
                first = np.searchsorted(offsets, sites.offset)
                last = np.searchsorted(offsets, sites.offset + sites.length)
                indices = np.flatnonzero(last > first)
            if len(indices):
                yield number, indices


def rows_at(code: NDArray[np.uint8], offsets: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Return the bytes at each offset, a multiple of 8; behind the end of the code, its last byte."""
    words = width // ROW_BYTES
    if len(offsets) and int(offsets.max()) + width <= len(code):
        # Eight bytes at once, wherever they begin.
        anywhere = np.ndarray((len(code) - ROW_BYTES + 1,), dtype=np.uint64, buffer=code, strides=(1,))
        rows = np.empty((len(offsets), words), dtype=np.uint64)
        for word in range(words):
            rows[:, word] = anywhere[offsets + ROW_BYTES * word]
        return rows.view(np.uint8)
    return np.asarray(code[np.minimum(offsets[:, None] + np.arange(width), len(code) - 1)])


def _around(offsets: NDArray[np.int64], sites: SiteSet, width: int) -> NDArray[np.int64]:
    """Return the indices of the sites, none longer than `width`, that hold one of the offsets."""
    first = np.searchsorted(sites.offset, offsets - width, side="right")
    counts = np.searchsorted(sites.offset, offsets, side="right") - first
    steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.repeat(first, counts) + steps
    held = sites.offset[indices] + sites.length[indices] > np.repeat(offsets, counts)
    return np.unique(indices[held])
