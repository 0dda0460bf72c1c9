"""Parts of the kernel as they must stand in one guest: relocated, with the sites that may change them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["CodeRegion", "rodata_regions", "text_region"]

_MOST_PIECES = 64


@dataclass(frozen=True, slots=True, eq=False)
class CodeRegion:
    """A part of the reference as it must stand in this guest: built once for each slide.

    `kinds` has one byte for each byte of the region: the `SiteClass` that may change it, or 0.
    `skipped` marks bytes that are not compared at all (None: all are compared). `raw` is given where
    `expected` is a view of it: an array of bytes is compared by memcmp, in two thirds of numpy's time.
    """

    name: str
    start: int
    expected: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    sites: NDArray[np.void]
    skipped: NDArray[np.bool_] | None = None
    raw: bytearray | None = None
    pieces: tuple[tuple[int, int], ...] | None = field(init=False)
    """The runs of bytes that are compared, as offsets; None if there are too many to count on."""

    def __post_init__(self) -> None:
        if self.raw is not None and not np.may_share_memory(self.expected, np.frombuffer(self.raw, np.uint8)):
            raise ValueError("raw bytes are those that are expected")
        object.__setattr__(self, "pieces", _pieces(len(self.expected), self.skipped))

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.start + len(self.expected)


def text_region(reference: ReferenceImage, slide: int) -> CodeRegion:
    """Return the kernel's `.text` as it must stand at this slide, with its patch sites."""
    expected = reference.relocated_text(slide)
    linked, _ = reference.section(".text")
    everything = reference.sites
    ends = everything["address"] + everything["length"]
    inside = (everything["address"] >= linked) & (ends <= np.uint64(linked + len(expected)))
    sites = everything[inside].copy()
    offsets = (sites["address"] - np.uint64(linked)).astype(np.int64)
    sites["address"] += np.uint64(slide)
    kinds = np.zeros(len(expected), dtype=np.uint8)
    lengths = sites["length"].astype(np.int64)
    # Sites may overlap (a call inside an alternative): the shorter one, written last, names the byte.
    order = np.argsort(-lengths, kind="stable")
    offsets, lengths = offsets[order], lengths[order]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kinds[np.repeat(offsets, lengths) + within] = np.repeat(sites["kind"][order], lengths)
    return CodeRegion(".text", linked + slide, expected, kinds, sites)


def rodata_regions(reference: ReferenceImage, slide: int) -> tuple[CodeRegion, ...]:
    """Return the read-only sections between `__start_rodata` and `__end_rodata`, without patch sites.

    Data that the kernel writes while it boots and protects afterwards (`__ro_after_init`) lies among
    them and is skipped.
    """
    bounds = _range(reference, "__start_rodata", "__end_rodata")
    if bounds is None:
        return ()
    changing = _range(reference, "__start_ro_after_init", "__end_ro_after_init")
    regions: list[CodeRegion] = []
    for section in reference.sections:
        size = len(section.data)
        if not (size and bounds[0] <= section.load_address and section.load_address + size <= bounds[1]):
            continue
        skipped = None
        if changing and changing[0] < section.load_address + size and section.load_address < changing[1]:
            skipped = np.zeros(size, dtype=bool)
            skipped[max(0, changing[0] - section.load_address) : changing[1] - section.load_address] = True
        raw = bytearray(reference.relocated_section(section.name, slide))
        regions.append(
            CodeRegion(
                section.name,
                section.load_address + slide,
                np.frombuffer(raw, dtype=np.uint8),
                np.zeros(size, dtype=np.uint8),
                reference.sites[:0],
                skipped,
                raw,
            )
        )
    return tuple(regions)


def _range(reference: ReferenceImage, start: str, end: str) -> tuple[int, int] | None:
    first, last = reference.symbols.unique(start), reference.symbols.unique(end)
    return (
        None
        if first is None or last is None or first.address >= last.address
        else (first.address, last.address)
    )


def _pieces(size: int, skipped: NDArray[np.bool_] | None) -> tuple[tuple[int, int], ...] | None:
    if skipped is None:
        return ((0, size),)
    edges = np.flatnonzero(np.diff(skipped, prepend=True, append=True))
    return (
        tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        if len(edges) <= 2 * _MOST_PIECES
        else None
    )
