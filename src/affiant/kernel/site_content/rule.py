"""What a class of patch sites must offer, and what it may object to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass

__all__ = ["ROW_BYTES", "Objection", "Rule", "SiteSet", "is_tail_of"]


ROW_BYTES: Final = 8
"""Rows of live bytes are a multiple of this wide, however short a region's sites are."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteSet:
    """Sites of one class inside one region, in ascending order: parallel arrays.

    `address` is where they run, `offset` counts from the region's start, `length` is in bytes;
    `entry` and `table` name the entry of the reference's patch table.
    """

    address: NDArray[np.uint64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    entry: NDArray[np.int64]
    table: NDArray[np.int64]

    @classmethod
    def of(cls, sites: NDArray[np.void], start: int) -> SiteSet:
        """Return sites of the reference (in order of address) in a region that runs at `start`."""
        return cls(
            address=np.ascontiguousarray(sites["address"]),
            offset=(sites["address"] - np.uint64(start)).astype(np.int64),
            length=sites["length"].astype(np.int64),
            entry=sites["entry"].astype(np.int64),
            table=sites["table"].astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.address)

    def select(self, mask: NDArray[np.bool_]) -> SiteSet:
        """Return the sites where `mask` is true."""
        return SiteSet(
            self.address[mask], self.offset[mask], self.length[mask], self.entry[mask], self.table[mask]
        )


@dataclass(frozen=True, slots=True)
class Objection:
    """What is wrong with a site whose bytes have a legal form: `site` is an index into the class's sites.

    `passing`: a healthy kernel is in this state for moments (between changing a key and the code).
    `allowed` are the forms that would have been right. `culprit` is an address that the site leads to,
    outside of what was verified; 0 if there is none.
    """

    site: int
    reason: str
    passing: bool = False
    allowed: tuple[bytes, ...] = ()
    culprit: int = 0


def is_tail_of(tail: bytes, forms: Iterable[bytes]) -> bool:
    """Tell whether `tail` is one of the forms without its first byte."""
    return any(form[1:] == tail for form in forms)


class Rule(Protocol):
    """One class of patch sites. It remembers the last legal content of each of its sites."""

    kind: SiteClass
    sites: SiteSet

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Judge the form of sites that changed: `found` has a row of live bytes for each.

        Rows are as wide as the longest site of the class, or wider (`ROW_BYTES`); bytes behind a site
        are to be ignored. Returns which rows are a form that is entitled to stand there. Those, and only
        those, are remembered.
        """

    def as_linked(self) -> NDArray[np.bool_]:
        """Tell of which sites it is remembered that they hold what was linked, and that this is legal.

        To judge such a site again while it holds these very bytes would change nothing: `take` would call it
        legal, whatever the guest's data, and remember what it remembers. Whoever cannot tell says no. The
        array is the caller's.
        """

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """Return the forms that may stand at a site, the linked one first."""

    def may_become(self, index: int, tail: bytes) -> bool:
        """Tell whether the kernel, while it changes the site, may have written all but the first byte so.

        text_poke_bp() puts INT3 first, then the rest of the new form, then its first byte.
        """

    def review(self) -> Iterable[Objection]:
        """Yield what is wrong with the remembered contents, measured against the guest's data of now.

        Raises MemoryFault where that data cannot be read.
        """
