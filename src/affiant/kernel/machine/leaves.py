"""What page tables map, as values: pages in parallel arrays, and runs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Extent", "Leaves"]


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

    def runs(self, start: int, end: int) -> tuple[Extent, ...]:
        """Return the runs of [start, end) that the leaves make."""
        if not len(self):
            return ()
        # A run breaks where address, physical address or permissions do not continue.
        follows = (self.address[:-1] + self.size[:-1] == self.address[1:]) & (
            self.physical[:-1] + self.size[:-1] == self.physical[1:]
        )
        follows &= (self.writable[:-1] == self.writable[1:]) & (self.executable[:-1] == self.executable[1:])
        first = np.concatenate(([0], np.flatnonzero(~follows) + 1))
        last = np.concatenate((first[1:] - 1, [len(self) - 1]))
        runs: list[Extent] = []
        for begin, finish in zip(first.tolist(), last.tolist(), strict=True):
            run_start, physical = int(self.address[begin]), int(self.physical[begin])
            run_end = int(self.address[finish]) + int(self.size[finish])
            skipped = max(start - run_start, 0)
            runs.append(
                Extent(
                    run_start + skipped,
                    physical + skipped,
                    min(run_end, end) - run_start - skipped,
                    bool(self.writable[begin]),
                    bool(self.executable[begin]),
                )
            )
        return tuple(runs)
