"""The vDSO: code that the kernel lends to every process, and patches once while it boots.

An image is an ELF file among the kernel's read-only data, `raw_data` of a C file that vdso2c writes. It has
alternatives of its own (init_vdso_image() in arch/x86/entry/vdso/vma.c), and nothing else of it
changes: each byte is as linked, or of an alternative that the processor's features select, told by the
kernel's own text. All processes map these very pages (vdso_fault()), so that what is true of the kernel's
view is true of theirs. A process whose page was copied on write, as a debugger does, or whose page
tables somebody changed, has its own.

The alternatives are those of the image's file, never of what the guest holds. Code of 32-bit images is
decoded as 64-bit code: the instructions that take part in it are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.difference import Difference, Verdict
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.kernel_image.overlaid_reference import OverlaidReference
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.patch_tables import find_sites
from affiant.kernel.reference.sites import Sites
from affiant.kernel.site_content.alternatives import Alternatives
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.paravirt import PvOps
from affiant.kernel.site_content.rule import ROW_BYTES, SiteSet
from affiant.model.errors import MalformedError

__all__ = ["VdsoImage", "vdso_images"]

_STRUCT: Final = "struct vdso_image"
_NAMES: Final = r"vdso_image_(64|x32|32)|vdso(64|x32|32)_image"
"""Names until 6.12 at least, and as seen in 7.2."""

_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class VdsoImage:
    """One image: `region` as it must stand in this guest, `content` that judges what boot patched."""

    region: CodeRegion
    content: _VdsoContent


def vdso_images(
    memory: GuestMemory, space: AddressSpace, program: KernelProgram, voters: Sequence[Alternatives]
) -> tuple[VdsoImage, ...]:
    """Return the images that this kernel was built with, by name; `voters` tell the processor's features.

    Raises MalformedError if an image of the reference has no known form.
    """
    found: list[VdsoImage] = []
    earlier: list[Alternatives] = []
    for symbol in sorted(program.reference.symbols.matching(_NAMES), key=lambda symbol: symbol.name):
        start, data, table = _linked(program, symbol.address)
        sites = _sites(start, data, table)
        region = _region(symbol.name, data, start, sites, program.location.slide)
        reference = OverlaidReference(program.reference, _sections(start, data, table), sites)
        image = KernelImage(memory, space, program, region, reference=reference)
        rule = Alternatives(
            image, SiteSet.of(region.sites, region.start), PvOps(image), fellows=(*voters, *earlier)
        )
        earlier.append(rule)
        found.append(VdsoImage(region, _VdsoContent(region, rule)))
    return tuple(found)


class _VdsoContent:
    """Judges an image whole, unless it and what the kernel's text says of the CPU are what they were."""

    raw: bytearray | None = None

    def __init__(self, region: CodeRegion, rule: Alternatives) -> None:
        self.rule = rule
        self.classes = frozenset({rule.kind})
        self.accepted: NDArray[np.uint8] = region.expected.copy()
        self._region = region
        self._before: tuple[NDArray[np.uint8], tuple[object, ...], Verdict] | None = None

    def forget(self) -> None:
        """Have the next look judge all sites, whatever was found before."""
        self._before = None

    @property
    def explained(self) -> NDArray[np.int64]:
        """See `SiteJudge`."""
        differing = self.accepted != self._region.expected
        return np.bincount(self._region.kinds[differing], minlength=256).astype(np.int64)

    def begin(self) -> bool:
        """See `SiteJudge`: yes, always."""
        return True

    def judge(self, live: NDArray[np.uint8], changed: NDArray[np.int64] | None) -> Verdict:
        """See `SiteJudge`."""
        heard = self.rule.heard()
        if self._before is not None and heard is not None:
            seen, heard_before, verdict = self._before
            if all(map(is_, heard, heard_before)) and np.array_equal(live, seen):
                return verdict
        verdict = self._judged(live)
        self._before = None if heard is None else (live.copy(), heard, verdict)
        return verdict

    def _judged(self, live: NDArray[np.uint8]) -> Verdict:
        sites = self.rule.sites
        self.accepted[:] = self._region.expected
        width = int(sites.length.max(initial=ROW_BYTES))
        index = np.minimum(sites.offset[:, None] + np.arange(width), len(live) - 1)
        legal = self.rule.take(np.arange(len(sites)), live[index])
        for site in np.flatnonzero(legal).tolist():
            place = self._place(site)
            self.accepted[place] = live[place]
        wrong = [
            self._told(live, site, "holds none of its forms", self.rule.allowed(site))
            for site in np.flatnonzero(~legal).tolist()
        ]
        wrong += [
            self._told(live, told.site, told.reason, told.allowed)
            for told in self.rule.review()
            if legal[told.site]
        ]
        return Verdict(tuple(wrong), (), (), {self.rule.kind.name.lower(): len(sites)}, ())

    def _place(self, site: int) -> slice:
        offset = int(self.rule.sites.offset[site])
        return slice(offset, offset + int(self.rule.sites.length[site]))

    def _told(
        self, live: NDArray[np.uint8], site: int, reason: str, allowed: tuple[bytes, ...]
    ) -> Difference:
        place = self._place(site)
        return Difference(
            address=self._region.start + place.start,
            length=place.stop - place.start,
            expected=allowed[0] if allowed else b"",
            found=live[place].tobytes(),
            site=self.rule.kind.name.lower(),
            reason=reason,
            allowed=allowed,
        )


def _linked(program: KernelProgram, address: int) -> tuple[int, memoryview, slice]:
    """Return an image's link address, its bytes, and where in them its alternatives are listed."""
    try:
        start, size, table, length = (
            int.from_bytes(program.reference.read(address + program.offset(_STRUCT, name), 8), "little")
            for name in ("data", "size", "alt", "alt_len")
        )
        if not 0 < size <= _LARGEST or size % PAGE_SIZE or table + length > size:
            raise MalformedError("a vDSO image of the reference has no known form")
        return start, program.reference.read(start, size), slice(table, table + length)
    except KeyError:
        raise MalformedError("a vDSO image is not among what the reference stores") from None


def _sections(start: int, data: memoryview, table: slice) -> tuple[Section, ...]:
    """Return an image as the kernel's patch tables would have it: replacements may lie anywhere in it."""
    place = start + table.start
    listed = data[table]
    return (
        Section(".altinstructions", place, place, len(listed), writable=False, executable=False, data=listed),
        Section(".altinstr_replacement", start, start, len(data), writable=False, executable=True, data=data),
    )


def _sites(start: int, data: memoryview, table: slice) -> Sites:
    return find_sites(LinkedKernel(_sections(start, data, table)), {})


def _region(name: str, data: memoryview, start: int, sites: Sites, slide: int) -> CodeRegion:
    own = sites.sites.copy()
    kinds = np.zeros(len(data), dtype=np.uint8)
    for site in own:
        offset = int(site["address"]) - start
        kinds[offset : offset + int(site["length"])] = site["kind"]
    own["address"] += np.uint64(slide)
    return CodeRegion(name, start + slide, np.frombuffer(data, dtype=np.uint8).copy(), kinds, own)
