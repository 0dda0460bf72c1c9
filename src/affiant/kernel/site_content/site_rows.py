"""Where sites lie in a region, and the bytes of each of them as a row, all as wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.site_content.rule import ROW_BYTES, Rule, SiteSet

__all__ = ["Spans", "differing_words", "put_rows", "row_masks", "row_width", "rows_at"]


def row_width(sites: SiteSet) -> int:
    """Return how wide the rows of sites are: as the longest of them, in whole words."""
    return -(-int(sites.length.max(initial=1)) // ROW_BYTES) * ROW_BYTES


_MASKS: Final = np.array([(1 << 8 * count) - 1 for count in range(ROW_BYTES + 1)], dtype=np.uint64)
"""The first bytes of a word, by how many."""


class Spans:
    """Finds the sites that offsets lie in."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self.width = [row_width(rule.sites) for rule in rules]
        self.masks = [
            row_masks(rule.sites.length, width) for rule, width in zip(rules, self.width, strict=True)
        ]
        """Which bits of the words of each site's row are of the site."""
        ends = [rule.sites.offset + rule.sites.length for rule in rules]
        self.apart = [
            not (rule.sites.offset[1:] < end[:-1]).any() for rule, end in zip(rules, ends, strict=True)
        ]
        """Whether no byte is of two sites of a rule."""
        self._most_words = [
            int(((end - 1 >> 3) - (rule.sites.offset >> 3)).max(initial=0))
            for rule, end in zip(rules, ends, strict=True)
        ]

    def set_in(self, number: int, words: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell of each site of a rule whether a word of the region is set that it lies in."""
        sites = self._rules[number].sites
        first, last = sites.offset >> 3, sites.offset + sites.length - 1 >> 3
        found: NDArray[np.bool_] = words[first]
        for between in range(1, self._most_words[number]):
            found |= words[np.minimum(first + between, last)]
        found |= words[last]
        return found

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


def put_rows(
    code: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    rows: NDArray[np.uint8],
    masks: NDArray[np.uint64],
    *,
    apart: bool,
) -> NDArray[np.uint8]:
    """Put rows, as `rows_at` returns them, into the code at their offsets; return the rows as they were.

    Of each row, those bytes count that are set in its mask: the first ones. Offsets are in ascending order,
    `apart` tells that these bytes do not overlap.
    """
    width = rows.shape[1]
    before = rows_at(code, offsets, width)
    if not len(offsets):
        return before
    if not apart or int(offsets[-1]) + width > len(code):
        inside = masks.view(np.uint8)
        for column in range(width):
            own = np.flatnonzero(inside[:, column])
            code[offsets[own] + column] = rows[own, column]
        return before
    anywhere = np.ndarray((len(code) - ROW_BYTES + 1,), dtype=np.uint64, buffer=code, strides=(1,))
    new = rows.view(np.uint64) ^ before.view(np.uint64)
    new &= masks
    new ^= before.view(np.uint64)
    # What follows a site within its last word is written as it was. It may belong to the first word of the
    # sites that follow, and to no other of their words: so first words are written last, and in order.
    for word in reversed(range(width // ROW_BYTES)):
        used = slice(None) if word == 0 else np.flatnonzero(masks[:, word])
        anywhere[offsets[used] + ROW_BYTES * word] = new[used, word]
    return before


def row_masks(lengths: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """Return for rows of `width` bytes which bits of their words are of the first `lengths` bytes."""
    inside = lengths[:, None] - np.arange(0, width, ROW_BYTES)
    return np.asarray(_MASKS[np.clip(inside, 0, ROW_BYTES)])


def differing_words(live: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell of each word of a region, the last perhaps a part of one, whether a byte of it differs."""
    words, rest = divmod(len(live), ROW_BYTES)
    found = np.ones(words + bool(rest), dtype=bool)
    size = ROW_BYTES * words
    np.not_equal(live[:size].view(np.uint64), known[:size].view(np.uint64), out=found[:words])
    found[words:] = not np.array_equal(live[size:], known[size:])
    return found


def _around(offsets: NDArray[np.int64], sites: SiteSet, width: int) -> NDArray[np.int64]:
    """Return the indices of the sites, none longer than `width`, that hold one of the offsets."""
    first = np.searchsorted(sites.offset, offsets - width, side="right")
    counts = np.searchsorted(sites.offset, offsets, side="right") - first
    steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.repeat(first, counts) + steps
    held = sites.offset[indices] + sites.length[indices] > np.repeat(offsets, counts)
    return np.unique(indices[held])
