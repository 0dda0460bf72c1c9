"""Live kernel text against the relocated reference, byte for byte.

A running kernel differs from its file only where it patches itself. Every differing byte is
therefore attributed to a patch site of the reference; one outside any site is *unexplained*.
What may stand inside a site is decided by `site_content`, class by class: without it, or for a class
that it does not know, bytes are counted, accepted, and listed in `unchecked`, so that nobody takes
them for verified.

The text is read through the page tables that vCPUs run on, because that is what they execute. The
kernel image is physically contiguous: a page of text mapped elsewhere is `displaced`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.difference import Difference, Hook, Verdict
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.paging import AddressSpace, Extent
from affiant.kernel.objects.slide import KernelLocation
from affiant.kernel.reference.sites import SiteClass

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = [
    "CodeRegion",
    "RegionComparison",
    "SiteJudge",
    "compare_region",
    "differing",
    "rodata_regions",
    "text_region",
    "without",
]

MOST_DIFFERENCES = 256
"""Differences and displaced runs listed in one comparison; the rest is counted."""

_SHOWN_BYTES = 64
_MOST_PIECES = 64
_CHUNK = 1 << 20
# Runs of differing bytes closer than this are told as one: an instruction is rarely longer.
_NEAR = 8


@dataclass(frozen=True, slots=True, eq=False)
class CodeRegion:
    """A part of the reference as it must stand in this guest: built once for each slide.

    `kinds` has one byte for each byte of the region: the `SiteClass` that may change it, or 0.
    `skipped` marks bytes that are not compared at all (None: all are compared).
    """

    name: str
    start: int
    expected: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    sites: NDArray[np.void]
    skipped: NDArray[np.bool_] | None = None
    pieces: tuple[tuple[int, int], ...] | None = field(init=False)
    """The runs of bytes that are compared, as offsets; None if there are too many to count on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", _pieces(len(self.expected), self.skipped))

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.start + len(self.expected)


@dataclass(frozen=True, slots=True)
class RegionComparison:
    """What one look at a region found.

    `compared` + `unread` + skipped bytes make up the region. `by_class` counts differing bytes by the
    patch-site class they lie in; `unchecked` names the classes whose content nobody checked, and `sites`
    counts those that were judged. `unexplained` holds bytes outside of any site and sites that hold what
    they must not; `passing` are sites in a state that a healthy kernel is in for moments, `unjudged` says
    which rules could not be asked and why, `hooks` is who registered to be called. `displaced` are runs
    that the page tables map elsewhere than the linear image; they were compared all the same, at the place
    the CPU uses. `left_out` counts differences beyond 256.
    """

    region: str
    compared: int
    unread: int
    differing: int
    by_class: Mapping[str, int]
    unchecked: tuple[str, ...]
    unexplained: tuple[Difference, ...]
    unexplained_bytes: int
    left_out: int
    displaced: tuple[Extent, ...]
    writable: int
    passing: tuple[Difference, ...] = ()
    hooks: tuple[Hook, ...] = ()
    sites: Mapping[str, int] = field(default_factory=dict)
    unjudged: tuple[str, ...] = ()


class SiteJudge(Protocol):
    """Tells which contents of a region's patch sites are legal, and keeps a copy of it as last found so."""

    @property
    def accepted(self) -> NDArray[np.uint8]:
        """The region as it was last found legal."""

    @property
    def classes(self) -> frozenset[SiteClass]:
        """The classes that are judged."""

    @property
    def explained(self) -> NDArray[np.int64]:
        """How many bytes of `accepted` are not as linked, by class (an array of 256)."""

    def begin(self) -> bool:
        """Begin a look; returns whether all sites are to be judged in it, from what was linked."""

    def judge(self, live: NDArray[np.uint8], changed: NDArray[np.int64] | None) -> Verdict:
        """Judge the sites in a copy of the region that hold one of the `changed` offsets, or all (None)."""


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
        regions.append(
            CodeRegion(
                section.name,
                section.load_address + slide,
                reference.relocated_section(section.name, slide),
                np.zeros(size, dtype=np.uint8),
                reference.sites[:0],
                skipped,
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


def compare_region(
    memory: GuestMemory,
    space: AddressSpace,
    location: KernelLocation,
    region: CodeRegion,
    content: SiteJudge | None = None,
) -> RegionComparison:
    """Compare what `space` maps at the region with what must stand there.

    `content` judges the region's patch sites and remembers what it found legal; give the same one for
    the same region and space again. Pages that are not mapped, or not in RAM, are `unread`. Raises
    MemoryFault for a region that ends behind the last address, as one of a module may that lies where the
    guest says, and nothing else that the guest could cause.
    """
    extents = space.extents(region.start, region.end)
    anew = content is not None and content.begin()
    known = region.expected if content is None else content.accepted
    nothing = np.empty(0, dtype=np.int64)
    chunks = None if anew else _changed_chunks(memory, extents, known, region)
    if chunks is not None:
        # As it was last found legal, to the byte, but for a few chunks: only these are copied.
        live, unread, changed = known, 0, nothing
        compared = sum(end - start for start, end in region.pieces or ())
        if chunks:
            live = known.copy()
            for start, physical, size in chunks:
                live[start : start + size] = memory.array(physical, size)
            changed = np.concatenate(
                [differing(live[at : at + size], known[at : at + size]) + at for at, _, size in chunks]
            )
    else:
        live, read = _copy(memory, extents, region)
        unread = 0 if read is None else len(read) - int(np.count_nonzero(read))
        usable = read if region.skipped is None else ~region.skipped
        if usable is not None:
            usable = usable if read is None else usable & read
            live[~usable] = known[~usable]
        compared = len(live) if usable is None else int(np.count_nonzero(usable))
        changed = nothing if anew else differing(live, known)
    verdict = None
    if content is not None:
        verdict = content.judge(live, None if anew else changed)
        left = differing(live, content.accepted) if anew else changed
        changed = left[live[left] != content.accepted[left]]
    probed = nothing if verdict is None else verdict.probed
    alien = changed[region.kinds[changed] == 0]
    alien_runs = _Runs.of(without(alien, probed))
    wrong = () if verdict is None else verdict.wrong
    unexplained = sorted((*alien_runs.told(region, live), *wrong), key=lambda run: run.address)
    by_class = _differing_by_class(region, live, changed, content)
    checked = {kind.name.lower() for kind in content.classes} if content else set()
    return RegionComparison(
        region=region.name,
        compared=compared,
        unread=unread,
        differing=sum(by_class.values()) + len(alien),
        by_class=by_class,
        unchecked=tuple(name for name in by_class if name not in checked),
        unexplained=tuple(unexplained[:MOST_DIFFERENCES]),
        unexplained_bytes=alien_runs.bytes + sum(run.length for run in wrong),
        left_out=max(0, len(alien_runs.firsts) + len(wrong) - MOST_DIFFERENCES),
        displaced=tuple(run for run in extents if run.physical != location.physical(run.start))[
            :MOST_DIFFERENCES
        ],
        writable=sum(run.size for run in extents if run.writable),
        **_judged(verdict),
    )


def _judged(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    return {
        "passing": verdict.passing,  # all of them: those that last must not hide behind those that do not
        "hooks": verdict.hooks,
        "sites": verdict.sites,
        "unjudged": verdict.unreadable,
    }


def _differing_by_class(
    region: CodeRegion, live: NDArray[np.uint8], changed: NDArray[np.int64], content: SiteJudge | None
) -> dict[str, int]:
    """Count the bytes inside sites that are not as linked, by class; `changed` are those not legal yet."""
    if content is None:
        counts = _by_kind(region.kinds[changed])
    else:
        # What is legal has been counted; of the rest, what stands there takes the place of what was legal.
        expected, kinds = region.expected[changed], region.kinds[changed]
        counts = content.explained + _by_kind(kinds[live[changed] != expected])
        counts = counts - _by_kind(kinds[content.accepted[changed] != expected])
    return {
        SiteClass(kind).name.lower(): int(counts[kind]) for kind in (np.flatnonzero(counts[1:]) + 1).tolist()
    }


def _by_kind(kinds: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count bytes by the class that may change them; `np.bincount` makes eight bytes of each."""
    counts = np.zeros(256, dtype=np.int64)
    for at in range(0, len(kinds), _CHUNK):
        counts += np.bincount(kinds[at : at + _CHUNK], minlength=256)
    return counts


def _pieces(size: int, skipped: NDArray[np.bool_] | None) -> tuple[tuple[int, int], ...] | None:
    if skipped is None:
        return ((0, size),)
    edges = np.flatnonzero(np.diff(skipped, prepend=True, append=True))
    return (
        tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        if len(edges) <= 2 * _MOST_PIECES
        else None
    )


def _changed_chunks(
    memory: GuestMemory, extents: tuple[Extent, ...], known: NDArray[np.uint8], region: CodeRegion
) -> list[tuple[int, int, int]] | None:
    """Return the chunks (offset, physical address, size) that do not hold what is known where it counts.

    None unless all of the region is in RAM: then nothing is known of what is missing.
    """
    if region.pieces is None or sum(run.size for run in extents) != len(known):
        return None
    found: list[tuple[int, int, int]] = []
    for run in extents:
        offset = run.start - region.start
        if not memory.contains(run.physical, run.size):
            return None
        for start, end in region.pieces:
            first, last = max(start, offset), min(end, offset + run.size)
            for at in range(first, last, _CHUNK):
                size = min(_CHUNK, last - at)
                if not memory.holds(run.physical + at - offset, known[at : at + size]):
                    found.append((at, run.physical + at - offset, size))
    return found


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


def _copy(
    memory: GuestMemory, extents: tuple[Extent, ...], region: CodeRegion
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Copy the region out of the guest once; what was not readable stays zero and is marked.

    Without marks, all of it was readable.
    """
    size = len(region.expected)
    whole = [run for run in extents if memory.contains(run.physical, run.size)]
    if len(whole) == 1 and whole[0].size == size:
        return memory.array(whole[0].physical, size).copy(), None
    live = np.zeros(size, dtype=np.uint8)
    read = np.zeros(size, dtype=bool)
    for run in whole:
        offset = run.start - region.start
        live[offset : offset + run.size] = memory.array(run.physical, run.size)
        read[offset : offset + run.size] = True
    return live, read


def without(offsets: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets that are not among the others; `np.setdiff1d` would hash all of them."""
    return offsets[~np.isin(offsets, others)] if len(others) else offsets


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Differing bytes that are near each other: the offsets of the first and the last of each run."""

    firsts: NDArray[np.int64]
    lasts: NDArray[np.int64]

    @classmethod
    def of(cls, offsets: NDArray[np.int64]) -> _Runs:
        if not len(offsets):
            return cls(offsets, offsets)
        pieces = ((at, offsets[at : at + _CHUNK + 1]) for at in range(0, len(offsets), _CHUNK))
        breaks = np.concatenate([np.flatnonzero(np.diff(piece) > _NEAR) + at for at, piece in pieces])
        return cls(
            offsets[np.concatenate(([0], breaks + 1))], offsets[np.concatenate((breaks, [len(offsets) - 1]))]
        )

    @property
    def bytes(self) -> int:
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
