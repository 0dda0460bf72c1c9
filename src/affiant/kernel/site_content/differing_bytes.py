"""How many bytes of a region's patch sites are not as linked, by class.

They are told at every look. To count them in all of the text takes as long as to judge it, so that they are
counted where sites change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.differing import differing
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.site_content.rule import Rule
from affiant.kernel.site_content.site_rows import Spans, rows_at

__all__ = ["DifferingBytes"]


class DifferingBytes:
    """Counts of one copy of a region, which is as linked at first, and else changes at its sites alone."""

    def __init__(self, region: CodeRegion, rules: tuple[Rule, ...], spans: Spans) -> None:
        self._region = region
        self._rules = rules
        self._apart = spans.apart
        self._counts: NDArray[np.int64] | None = np.zeros(256, dtype=np.int64)
        # Which class names each byte of a site: its own, unless sites overlap.
        self._kinds: list[NDArray[np.uint8] | None] = []
        for rule, width, masks in zip(rules, spans.width, spans.masks, strict=True):
            rows = rows_at(region.kinds, rule.sites.offset, width)
            foreign = (rows != int(rule.kind)) & (masks.view(np.uint8) != 0)
            self._kinds.append(rows if foreign.any() else None)

    def all_as_linked(self) -> None:
        """Note that the copy holds what was linked."""
        self._counts = np.zeros(256, dtype=np.int64)

    def forget(self) -> None:
        """Have all of the copy be counted when it is asked for next."""
        self._counts = None

    def changed(
        self,
        number: int,
        sites: NDArray[np.int64],
        before: NDArray[np.uint8],
        after: NDArray[np.uint8],
        masks: NDArray[np.uint64],
    ) -> None:
        """Note that different sites of a rule changed; rows are as `rows_at` gives them, masked as told."""
        if not self._apart[number]:
            self.forget()  # a byte of two sites would count twice
        if self._counts is None:
            return
        linked = rows_at(self._region.expected, self._rules[number].sites.offset[sites], after.shape[1])
        for rows, sign in ((after, 1), (before, -1)):
            differs = rows.view(np.uint64) ^ linked.view(np.uint64)
            differs &= masks
            self._counts += sign * self._count(number, sites, differs)

    def by_class(self, copy: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return how many bytes of the copy are not as linked, by class (an array of 256)."""
        if self._counts is None:
            offsets = differing(copy, self._region.expected)
            self._counts = np.bincount(self._region.kinds[offsets], minlength=256).astype(np.int64)
        return self._counts

    def _count(self, number: int, sites: NDArray[np.int64], differs: NDArray[np.uint64]) -> NDArray[np.int64]:
        counts = np.zeros(256, dtype=np.int64)
        kinds = self._kinds[number]
        if kinds is None:
            counts[int(self._rules[number].kind)] = np.count_nonzero(differs.view(np.uint8))
        elif differs.any():
            counts += np.bincount(kinds[sites][differs.view(np.uint8) != 0], minlength=256)
        return counts
