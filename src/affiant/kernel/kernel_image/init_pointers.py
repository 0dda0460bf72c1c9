"""Pointers to functions in data that the kernel fills while it boots and then protects (`__ro_after_init`).

Such data differs from the reference, so it cannot be compared byte by byte. But what was linked as a
pointer to a function of the kernel still is one: boot code only chooses another function of the same
kind (the delay loop by the TSC, the platform's calibration). And no word of it points into the
middle of a function, because nothing that the kernel calls begins there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.compare import RegionComparison
from affiant.kernel.comparison.difference import Difference
from affiant.kernel.comparison.differing import MOST_DIFFERENCES
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.leaves import Extent
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.site_content.function_types import FunctionTypes
from affiant.kernel.site_content.image import KernelImage

__all__ = ["InitPointers"]

_NAME = "__ro_after_init pointers"
_POINTER = 8
_LARGEST = 1 << 24


class InitPointers:
    """The pointers of one kernel, as they were linked; `compare` looks at them in the guest."""

    def __init__(self, image: KernelImage, types: FunctionTypes, judged: Iterable[CodeRegion] = ()) -> None:
        """`judged` are regions of code, compared byte by byte elsewhere: they may look like pointers."""
        self._image = image
        self._types = types
        reference = image.reference
        start, end = (reference.symbols.unique(f"__{edge}_ro_after_init") for edge in ("start", "end"))
        first, last = (start.address, end.address) if start and end else (0, 0)
        if not 0 <= last - first <= _LARGEST:
            first = last = 0
        self._words = np.arange(first, last - _POINTER + 1, _POINTER, dtype=np.uint64) + np.uint64(
            image.slide
        )
        for region in judged:
            inside = (self._words >= np.uint64(region.start)) & (self._words < np.uint64(region.end))
            self._words = self._words[~inside]
        begin = int(self._words.min(initial=last + image.slide))
        self._row = begin, begin + (last + image.slide - begin) // _POINTER * _POINTER
        self._in_row = ((self._words - np.uint64(begin)) // np.uint64(_POINTER)).astype(np.int64)
        self._places, self._linked = _linked_functions(image, reference, first, last)
        self._is_place = np.isin(self._words, self._places)
        found = np.searchsorted(self._words, self._places)
        # None unless each place is one of the words.
        whole = len(self._places) == np.count_nonzero(self._is_place)
        self._place_in_row = self._in_row[found] if whole else None
        self._kept: tuple[tuple[Extent, ...], KeptRanges, RegionComparison] | None = None

    def compare(self) -> RegionComparison | None:
        """Return what the pointers lead to; None if the kernel has no such data.

        `compared` counts the bytes of pointers that were linked to functions, and of words that lead
        into text. What cannot be read is `unread`.
        """
        image, words = self._image, self._words
        if not len(words):
            return None
        if self._kept is not None and self._still_holds(self._kept):
            return self._kept[2]
        self._kept = None
        try:
            extents = image.space.extents(*self._row)
            row = image.row(self._row[0], (self._row[1] - self._row[0]) // _POINTER)
            live = image.words(self._places) if self._place_in_row is None else row[self._place_in_row]
        except MemoryFault:
            return _comparison(0, len(words) * _POINTER, [])
        found = self._judge(row[self._in_row], live)
        if self._place_in_row is not None:
            # All else follows from the reference.
            content = row.astype("<u8", copy=False).view(np.uint8)
            parts = ((run.physical, content[run.start - self._row[0] :][: run.size]) for run in extents)
            self._kept = extents, image.memory.keep(parts), found
        return found

    def _still_holds(self, kept: tuple[tuple[Extent, ...], KeptRanges, RegionComparison]) -> bool:
        """Tell whether all of the data is where it was, and holds what it held: pointers are part of it."""
        extents, held, _ = kept
        return self._image.space.extents(*self._row) is extents and self._image.memory.still_holds(held)

    def _judge(self, held: NDArray[np.uint64], live: NDArray[np.uint64]) -> RegionComparison:
        """Judge all words, and those that were linked as pointers to functions."""
        image, words, places = self._image, self._words, self._places
        functions = image.functions_at(live)
        wrong = [
            _difference(places, self._linked, live, index, "leads to no function of the kernel image")
            for index in np.flatnonzero(~functions & (live != 0)).tolist()
        ]
        wrong += [
            _difference(places, self._linked, live, index, "leads to a function with other parameters")
            for index in np.flatnonzero(functions & (live != self._linked)).tolist()
            if self._types.differ(int(self._linked[index]), int(live[index]))
        ]
        # Of all words only those that were not linked as pointers to functions, and lead into text. What is
        # as it was linked is no pointer: other data may look like one at some slides.
        inside = (held >= np.uint64(image.region.start)) & (held < np.uint64(image.region.end))
        others = np.flatnonzero(inside & ~self._is_place)
        lost = others[~image.functions_at(held[others])].tolist()
        wrong += [
            _difference(words, np.zeros_like(held), held, index, "leads into a function")
            for index in lost
            if _word(image.reference, int(words[index]) - image.slide) != int(held[index])
        ]
        return _comparison((len(places) + len(others)) * _POINTER, 0, wrong)


def _linked_functions(
    image: KernelImage, reference: ReferenceImage, start: int, end: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the running addresses of pointers that were linked to functions, and of those functions."""
    places = reference.relocations.absolute64
    places = places[(places >= np.uint64(start)) & (places < np.uint64(end))]
    values = np.array([_word(reference, int(place)) for place in places], dtype=np.uint64)
    running: NDArray[np.uint64] = values + np.uint64(image.slide)
    functions = image.functions_at(running)
    return (places + np.uint64(image.slide))[functions], running[functions]


def _word(reference: ReferenceImage, address: int) -> int:
    try:
        return int.from_bytes(reference.read(address, _POINTER), "little")
    except KeyError:
        return 0


def _difference(
    places: NDArray[np.uint64],
    expected: NDArray[np.uint64],
    found: NDArray[np.uint64],
    index: int,
    reason: str,
) -> Difference:
    return Difference(
        int(places[index]),
        _POINTER,
        int(expected[index]).to_bytes(_POINTER, "little"),
        int(found[index]).to_bytes(_POINTER, "little"),
        site="pointer",
        reason=reason,
        culprit=int(found[index]),
    )


def _comparison(compared: int, unread: int, wrong: list[Difference]) -> RegionComparison:
    return RegionComparison(
        region=_NAME,
        compared=compared,
        unread=unread,
        differing=sum(run.length for run in wrong),
        by_class={},
        unchecked=(),
        unexplained=tuple(wrong[:MOST_DIFFERENCES]),
        unexplained_bytes=sum(run.length for run in wrong),
        left_out=max(0, len(wrong) - MOST_DIFFERENCES),
        displaced=(),
        writable=0,
    )
