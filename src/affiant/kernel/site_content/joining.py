"""Rules for the sites of several regions joined into one, which judges all of them in one call.

Whoever joins rules asks many short questions at once: a call costs as much for ten sites as for a thousand.
The joined rule and its parts share what they remember of their sites, so that either may be asked next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.outside import NOBODY
from affiant.kernel.site_content.rule import Rule, SiteSet

__all__ = ["Joinable", "JoinedImage", "join_sites", "joined_rows", "share"]


@runtime_checkable
class Joinable(Protocol):
    """A rule of which several can be joined."""

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Rule:
        """Return a rule for `sites`, which are those of all parts, in order.

        What it calls legal, the part would call so; what it objects to is all that one of them would object
        to, or more. Where it needs to know more than the image tells, it says no.
        """
        ...


class JoinedImage(KernelImage):
    """The kernel with several regions in view. Functions are the kernel's: nobody vouches for others."""

    def __init__(self, kernel: KernelImage, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> None:
        super().__init__(kernel.memory, kernel.space, kernel.program, kernel.region, outside=NOBODY)
        self._kernel = kernel
        self._starts, self._ends = starts, ends

    def named(self, pattern: str) -> dict[str, int]:
        """Return the kernel's text symbols whose name matches."""
        return self._kernel.named(pattern)

    def contains(self, address: int) -> bool:
        """Tell whether an address lies in one of the regions."""
        place = np.uint64(address & (1 << 64) - 1)
        return bool(((place >= self._starts) & (place < self._ends)).any())


def join_sites(parts: Sequence[SiteSet], starts: Sequence[int]) -> SiteSet:
    """Return all sites; their offsets count from where the regions are joined, each at its start."""
    return SiteSet(
        address=np.concatenate([part.address for part in parts]),
        offset=np.concatenate([part.offset + start for part, start in zip(parts, starts, strict=True)]),
        length=np.concatenate([part.length for part in parts]),
        entry=np.concatenate([part.entry for part in parts]),
        table=np.concatenate([part.table for part in parts]),
    )


def share(whole: object, parts: Sequence[object], *names: str) -> None:
    """Give `whole` arrays with the rows of all parts' arrays, and have each part hold its rows of them.

    Rows are as large as the largest; what a part lacks is zero.
    """
    for name in names:
        arrays = [getattr(part, name) for part in parts]
        joined = joined_rows(arrays)
        start = 0
        for part, array in zip(parts, arrays, strict=True):
            setattr(part, name, joined[(slice(start, start + len(array)), *map(slice, array.shape[1:]))])
            start += len(array)
        setattr(whole, name, joined)


def joined_rows(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the rows of all arrays, as large as the largest; what is added to others is zero."""
    shape = tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
    joined = np.zeros((sum(map(len, arrays)), *shape), dtype=arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[(slice(start, start + len(array)), *map(slice, array.shape[1:]))] = array
        start += len(array)
    return joined
