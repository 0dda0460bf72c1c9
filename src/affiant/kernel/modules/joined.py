"""All modules compared with their files at once, to tell which of them need a look of their own.

Sixty modules have a few pages and a few hundred patch sites each. What is asked of each of them takes longer
to ask than to answer, so that here it is asked of all: their pages are copied one behind the other, and
each rule judges the sites of all modules in one call. Only whether a module is odd comes out; what is wrong
with it is for `comparison` to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from operator import is_
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.modules.frames import ModuleFrames
from affiant.kernel.modules.places import ModuleKey
from affiant.kernel.modules.references import KnownModule
from affiant.kernel.modules.sites import NamedImage
from affiant.kernel.modules.verdict import AS_PACKAGED, ModuleCode
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.site_content.joined_content import JoinedContent
from affiant.kernel.site_content.joining import JoinedImage

__all__ = ["JoinedModules"]

_PAGES_AT_ONCE: Final = 128  # half a MiB, which a processor's cache holds
_MOST_KEPT: Final = 8192  # pages whose content is kept as it was found: 32 MiB
_BEYOND: Final = 1  # a page behind the last one: sites are read in rows that may reach beyond their region


class JoinedModules:
    """Modules that were compared before, each by itself, with what was found legal in them.

    From now on the modules' own memory of their code is a part of the array that is here.
    """

    def __init__(self, image: NamedImage, members: Mapping[ModuleKey, KnownModule]) -> None:
        self._keys, self._members = tuple(members), tuple(members.values())
        coded = [(number, *known.code) for number, known in enumerate(self._members) if known.code]
        data = [(number, known.rodata) for number, known in enumerate(self._members) if known.rodata]
        regions = [region for _, region, _ in coded] + [region for _, region in data]
        owners = [number for number, *_ in coded] + [number for number, _ in data]
        sizes = np.array([len(region.expected) // PAGE_SIZE for region in regions], dtype=np.int64)
        self._frames = ModuleFrames(regions)
        self._owner = np.repeat(np.array(owners, dtype=np.int64), sizes)  # of each page
        pages = len(self._owner)
        self._live = np.zeros((pages + _BEYOND, PAGE_SIZE // 8), dtype=np.uint64)
        self._scratch = np.zeros((_PAGES_AT_ONCE, PAGE_SIZE // 8), dtype=np.uint64)
        self._texts_end = int(sizes[: len(coded)].sum())  # pages of data follow
        # What was found legal, and the bytes of it that count (all bits set).
        self._wanted = np.zeros((pages, PAGE_SIZE), dtype=np.uint8)
        self._compared = np.zeros_like(self._wanted)
        # What was linked, and the bytes of it that no site explains.
        self._linked = np.zeros((self._texts_end, PAGE_SIZE), dtype=np.uint8)
        self._fixed = np.zeros_like(self._linked)
        ends = np.cumsum(sizes)
        places = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
        for region, place in zip(regions, places, strict=True):
            self._wanted[place] = region.expected.reshape(-1, PAGE_SIZE)
            counts = True if region.skipped is None else ~region.skipped.reshape(-1, PAGE_SIZE)
            self._compared[place] = np.where(counts, 0xFF, 0)
        for (_, region, content), place in zip(coded, places, strict=False):
            content.keep_in(self._wanted[place].reshape(-1))
            self._linked[place] = region.expected.reshape(-1, PAGE_SIZE)
            free = region.kinds.reshape(-1, PAGE_SIZE) == 0
            self._fixed[place] = self._compared[place] * free
        self._texts = {
            number: (content, place) for (number, _, content), place in zip(coded, places, strict=False)
        }
        # What all pages held when they were last compared and none differed: where they are, what they held,
        # and how often what is legal had changed by then.
        self._kept: tuple[NDArray[np.uint64], KeptRanges, int] | None = None
        self._text_ends = _Spans([region for _, region, _ in coded])
        self._coded = np.array([number for number, *_ in coded], dtype=np.int64)
        self._content = JoinedContent(
            JoinedImage(image, self._text_ends.starts, self._text_ends.ends),
            [content for _, _, content in coded],
            [place.start * PAGE_SIZE for place in places[: len(coded)]],
        )

    def has_just(self, members: Mapping[ModuleKey, KnownModule]) -> bool:
        """Tell whether these are the modules, all of them, as they are linked now."""
        return self._keys == tuple(members) and all(map(is_, self._members, members.values()))

    def whole(self, kernel: RunningKernel) -> dict[ModuleKey, ModuleCode]:
        """Return what is found of the modules that are as packaged now: the others need a look of their own.

        Every byte of a module that is returned was compared now: with what was last found legal or, if it is
        due, with its file. All of its sites agree with their keys of now. Raises AffiantError where the page
        tables or the table of probes have no end.
        """
        due = np.array([known.due for known in self._members], dtype=bool)
        missing, changed = self._compare(kernel, keep=bool(due.any()))
        odd = self._owners_of(missing) | self._probed(kernel)
        odd |= ~due & self._owners_of(changed)
        odd |= self._owners_of(changed[changed >= self._texts_end])  # nothing may change there
        if due.any():
            odd |= self._owners_of(self._unlike_linked())
            odd |= self._with_odd_content(self._content.take(self._live.reshape(-1).view(np.uint8)))
        odd |= self._with_odd_content(self._content.review())
        found: dict[ModuleKey, ModuleCode] = {}
        anew = self._owners_of(changed)
        for number, (key, known) in enumerate(zip(self._keys, self._members, strict=True)):
            if known.result is None or known.result.verdict != AS_PACKAGED or odd[number]:
                continue
            if due[number]:
                self._keep(number, known, changed=bool(anew[number]))
            found[key] = known.result
        return found

    def holds(self, kernel: RunningKernel, known: KnownModule) -> bool:
        """Tell whether a module was as packaged when it was last compared, and no byte of it has changed."""
        number = next((number for number, each in enumerate(self._members) if each is known), None)
        if number is None:  # it was linked anew since
            return False
        if known.due or known.result is None or known.result.verdict != AS_PACKAGED:
            return False
        frames, mapped = self._frames.find(kernel)
        own = np.flatnonzero(self._owner == number)
        rows, readable = kernel.memory.tables(frames[own])
        differs = (rows.view(np.uint8) ^ self._wanted[own]) & self._compared[own]
        return bool(mapped[own].all() and readable.all() and not differs.any())

    def _as_before(self, kernel: RunningKernel) -> bool:
        """Tell whether all pages hold what they held when nothing was missing and all of it was legal.

        They are where they were, and what is legal is what it was.
        """
        if self._kept is None:
            return False
        frames, held, changes = self._kept
        return (
            self._frames.find(kernel)[0] is frames
            and self._changes() == changes
            and kernel.memory.still_holds(held)
        )

    def _changes(self) -> int:
        return sum(content.changes for content, _ in self._texts.values())

    def _compare(self, kernel: RunningKernel, *, keep: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Copy all pages, and compare the copies with what was found legal.

        Returns the pages that are not in RAM, and those that differ where it counts. The copies of all pages
        are of use afterwards if they are to be kept.
        """
        if not keep and self._as_before(kernel):
            return _joined([]), _joined([])
        self._kept = None
        frames, there = self._frames.find(kernel)
        # In place, or each piece where the one before was, which is in the processor's cache.
        in_place = keep or len(frames) <= _MOST_KEPT
        wanted, counts = self._wanted.view(np.uint64), self._compared.view(np.uint64)
        found: list[NDArray[np.int64]] = []
        for first, end in _pieces(len(frames)):
            live = self._live[first:end] if in_place else self._live[: end - first]
            readable = kernel.memory.copy_pages(frames[first:end], live)
            if not readable.all():
                there = there.copy()
                there[first:end] &= readable
            if not np.array_equal(live, wanted[first:end]):
                found.append(self._differing(live, first, wanted, counts))
        missing, changed = np.flatnonzero(~there), _joined(found)
        if len(frames) <= _MOST_KEPT and not len(missing) and not len(changed):
            held = kernel.memory.keep(
                (int(frames[first]) * PAGE_SIZE, self._live[first:end]) for first, end in _runs(frames)
            )
            self._kept = frames, held, self._changes()
        return missing, changed

    def _unlike_linked(self) -> NDArray[np.int64]:
        """Return the pages of text whose copy differs from what was linked, where no site explains it."""
        linked, fixed = self._linked.view(np.uint64), self._fixed.view(np.uint64)
        return _joined(
            [
                self._differing(self._live[first:end], first, linked, fixed)
                for first, end in _pieces(self._texts_end)
            ]
        )

    def _probed(self, kernel: RunningKernel) -> NDArray[np.bool_]:
        probes = kernel.text_content.probes
        probes.refresh()
        places = np.array(list(probes.by_address), dtype=np.uint64)
        odd = np.zeros(len(self._members), dtype=bool)
        odd[self._coded[self._text_ends.holding(places)]] = True
        return odd

    def _differing(
        self, live: NDArray[np.uint64], first: int, wanted: NDArray[np.uint64], mask: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Return the pages, of which `first` is that of the first copy, that differ where the mask is set."""
        own = slice(first, first + len(live))
        differs = np.bitwise_xor(live, wanted[own], out=self._scratch[: len(live)])
        differs &= mask[own]
        return np.flatnonzero(differs.any(axis=1)) + first

    def _owners_of(self, pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        odd = np.zeros(len(self._members), dtype=bool)
        odd[self._owner[pages]] = True
        return odd

    def _with_odd_content(self, odd: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self._members), dtype=bool)
        mask[self._coded[odd]] = True
        return mask

    def _keep(self, number: int, known: KnownModule, *, changed: bool) -> None:
        """Note that a module was judged from its file; what it holds now is what is legal."""
        known.due = False
        if number not in self._texts or known.result is None:
            return
        content, place = self._texts[number]
        if changed:
            counts = self._compared[place].reshape(-1) != 0
            content.settle(self._live[place].reshape(-1).view(np.uint8), counts)
            known.result = replace(known.result, by_class=_by_class(content.explained))
        else:
            content.settle()


def _pieces(pages: int) -> Iterator[tuple[int, int]]:
    """Yield first and end of each piece of pages that is looked at at once."""
    return pairwise((*range(0, pages, _PAGES_AT_ONCE), pages))


def _runs(frames: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield first and end of each piece of pages that follow each other in RAM as well."""
    if not len(frames):
        return iter(())
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    return pairwise((0, *breaks.tolist(), len(frames)))


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _by_class(counts: NDArray[np.int64]) -> dict[str, int]:
    return {
        SiteClass(kind).name.lower(): int(counts[kind]) for kind in np.flatnonzero(counts).tolist() if kind
    }


class _Spans:
    """Finds the region that an address lies in."""

    def __init__(self, regions: list[CodeRegion]) -> None:
        self.starts = np.array([region.start for region in regions], dtype=np.uint64)
        self.ends = np.array([region.end for region in regions], dtype=np.uint64)

    def holding(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which regions hold one of the addresses."""
        inside = (addresses >= self.starts[:, None]) & (addresses < self.ends[:, None])
        return np.asarray(inside.any(axis=1))
