"""Integers at addresses that stay the same, to be read in each look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.site_content.image import KernelImage

__all__ = ["FixedIntegers"]


class FixedIntegers:
    """The integers of `width` bytes at some addresses: `read` tells what the guest holds there now.

    Page tables are compared in each look; where the addresses lie is looked up anew when these change.
    """

    def __init__(self, image: KernelImage, addresses: NDArray[np.uint64], width: int) -> None:
        self._image = image
        self._addresses = addresses
        self._width = width
        self._groups = image.neighbours(addresses, width)
        self._leaves: list[Leaves] = []
        self._physical = np.zeros(len(addresses), dtype=np.uint64)
        self._mapped = False

    def read(self) -> NDArray[np.uint64]:
        """Return all of them; raises what `KernelImage.integers` raises."""
        leaves = [self._image.space.leaves(first, last) for first, last, _ in self._groups]
        if len(leaves) != len(self._leaves) or any(
            now is not before for now, before in zip(leaves, self._leaves, strict=True)
        ):
            mapped = np.zeros(len(self._addresses), dtype=bool)
            for own, (_, _, group) in zip(leaves, self._groups, strict=True):
                self._physical[group], mapped[group] = own.locate(self._addresses[group])
            self._leaves, self._mapped = leaves, bool(mapped.all())
        if self._mapped:
            found, there = self._image.memory.integers(self._physical, self._width)
            if there.all():
                return found
        # Not aligned, perhaps across two pages; or not there.
        return self._image.integers(self._addresses, self._width)
