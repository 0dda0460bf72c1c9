"""Which bytes differ: found eight at a time, and told in runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.difference import Difference
from affiant.kernel.comparison.regions import CodeRegion

__all__ = ["MOST_DIFFERENCES", "DifferingRuns", "differing", "without"]

MOST_DIFFERENCES = 256
"""Differences and displaced runs listed in one comparison; the rest is counted."""

_SHOWN_BYTES = 64
_CHUNK = 1 << 20
# Runs of differing bytes closer than this are told as one: an instruction is rarely longer.
_NEAR = 8


def differing(live: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the offsets of bytes that differ, found eight at a time: most of them do not."""
    parts = [
        _differing_near(live[at : at + _CHUNK], known[at : at + _CHUNK]) + at
        for at in range(0, len(live), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _differing_near(live: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.int64]:
    size = len(live) // 8 * 8
    ours, theirs = live[:size].view(np.uint64), known[:size].view(np.uint64)
    differs = ours != theirs
    words = np.flatnonzero(differs) if differs.any() else np.empty(0, dtype=np.int64)
    near = np.flatnonzero(ours[words].view(np.uint8) != theirs[words].view(np.uint8))
    rest = np.flatnonzero(live[size:] != known[size:]) + size
    return np.concatenate((words[near >> 3] * 8 + (near & 7), rest))


def without(offsets: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets that are not among the others; `np.setdiff1d` would hash all of them."""
    return offsets[~np.isin(offsets, others)] if len(others) else offsets


@dataclass(frozen=True, slots=True, eq=False)
class DifferingRuns:
    """Differing bytes that are near each other: the offsets of the first and the last of each run."""

    firsts: NDArray[np.int64]
    lasts: NDArray[np.int64]

    @classmethod
    def of(cls, offsets: NDArray[np.int64]) -> DifferingRuns:
        """Return the runs that bytes at these offsets, in ascending order, make up."""
        if not len(offsets):
            return cls(offsets, offsets)
        pieces = ((at, offsets[at : at + _CHUNK + 1]) for at in range(0, len(offsets), _CHUNK))
        breaks = np.concatenate([np.flatnonzero(np.diff(piece) > _NEAR) + at for at, piece in pieces])
        return cls(
            offsets[np.concatenate(([0], breaks + 1))], offsets[np.concatenate((breaks, [len(offsets) - 1]))]
        )

    @property
    def bytes(self) -> int:
        """All bytes from the first to the last of each run, those between that do not differ as well."""
        return int((self.lasts - self.firsts).sum()) + len(self.firsts)

    def told(self, region: CodeRegion, live: NDArray[np.uint8]) -> Iterator[Difference]:
        """Yield the first runs, as many as are listed: a guest may change every twelfth byte of its text."""
        listed = slice(MOST_DIFFERENCES)
        for first, last in zip(self.firsts[listed].tolist(), self.lasts[listed].tolist(), strict=True):
            shown = slice(first, min(last + 1, first + _SHOWN_BYTES))
            yield Difference(
                region.start + first,
                last + 1 - first,
                region.expected[shown].tobytes(),
                live[shown].tobytes(),
            )
