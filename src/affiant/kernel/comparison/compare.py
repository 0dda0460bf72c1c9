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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.difference import Difference, Hook, Verdict
from affiant.kernel.comparison.differing import MOST_DIFFERENCES, DifferingRuns, differing, without
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.leaves import Extent
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.slide import KernelLocation
from affiant.kernel.reference.sites import SiteClass

__all__ = ["RegionComparison", "SiteJudge", "compare_region"]

_CHUNK = 1 << 20


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
    def raw(self) -> bytearray | None:
        """The same bytes, where they can be compared by memcmp."""

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
    known, raw = (region.expected, region.raw) if content is None else (content.accepted, content.raw)
    nothing = np.empty(0, dtype=np.int64)
    chunks = None if anew else _changed_chunks(memory, extents, known, region, raw)
    if chunks is not None and not chunks and content is None:
        return _as_expected(region, extents, location)
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
    alien_runs = DifferingRuns.of(without(alien, probed))
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
        **_mapped(extents, location),
        **_judged(verdict),
    )


def _as_expected(
    region: CodeRegion, extents: tuple[Extent, ...], location: KernelLocation
) -> RegionComparison:
    """Return what is told of a region that holds what is expected, to the byte."""
    compared = sum(end - start for start, end in region.pieces or ())
    return RegionComparison(region.name, compared, 0, 0, {}, (), (), 0, 0, **_mapped(extents, location))


def _mapped(extents: tuple[Extent, ...], location: KernelLocation) -> dict[str, Any]:
    displaced = (run for run in extents if run.physical != location.physical(run.start))
    return {
        "displaced": tuple(displaced)[:MOST_DIFFERENCES],
        "writable": sum(run.size for run in extents if run.writable),
    }


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
    elif not len(changed):
        counts = content.explained
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


def _changed_chunks(
    memory: GuestMemory,
    extents: tuple[Extent, ...],
    known: NDArray[np.uint8],
    region: CodeRegion,
    raw: bytearray | None,
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
            place = run.physical + first - offset
            if raw is not None and first < last and memory.holds_part(place, raw, first, last):
                continue
            for at in range(first, last, _CHUNK):
                size = min(_CHUNK, last - at)
                if not memory.holds(run.physical + at - offset, known[at : at + size]):
                    found.append((at, run.physical + at - offset, size))
    return found


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
