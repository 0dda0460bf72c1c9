"""The facts on the kernel image's own code and read-only data, as assertion scripts read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.comparison.difference import Difference, Hook
from affiant.kernel.comparison.differing import MOST_DIFFERENCES
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.facts.fact import Fact
from affiant.kernel.guest import Guest
from affiant.kernel.machine.leaves import Extent
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.modules.loaded import listed_modules, module_owners
from affiant.kernel.page_tables.executable_pages import named_owners
from affiant.kernel.transient.booting import is_booting
from affiant.kernel.transient.code_changes import is_changing_code
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["COMPARISON_FIELDS", "KernelCode", "kernel_rodata", "kernel_text"]

_MOST_FORMS: Final = 8  # forms of a patch site that are told

COMPARISON_FIELDS: Final = {
    "compared_bytes": "bytes compared with the reference, over all mappings",
    "differing_bytes": "bytes that differ, explained or not",
    "unread_bytes": "bytes that no RAM answered to",
    "writable_bytes": "bytes that the kernel's page tables make writable",
    "mappings": "distinct mappings of the region that vCPUs run with",
    "regions": "name and bytes of each section compared",
    "by_class": "differing bytes inside patch sites, by class of site",
    "unchecked_classes": "classes whose sites were accepted without a look at their content",
    "sites": "patch sites whose content was judged, by class",
    "unjudged": "rules for patch sites that could not be asked, and why",
    "hooks": "what the kernel was told to call: via, symbol, handler, owner, count",
    "hooks_left_out": "entries beyond the first 256",
    "settling": "patch sites in a state that lasts moments only, in the form of unexplained",
    "settling_left_out": "entries beyond the first 256",
    "unexplained": "bytes that no patch site explains, and sites that hold what they must not: address, "
    "symbol, expected, found, length; at sites also site, reason, allowed, owner of what it leads to",
    "unexplained_bytes": "their sum, including those left out",
    "unexplained_left_out": "runs beyond the first 256",
    "displaced": "runs mapped to other physical pages than the kernel image: address, physical, pages",
    "displaced_left_out": "runs beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class KernelCode:
    """Comparisons of one kind of region (text, or read-only data) through every mapping in use.

    `mappings` is how many distinct mappings of the region vCPUs run with: 1 in a healthy guest.
    `symbols` names the place of each difference and hook, `owners` what lies outside of the kernel image.
    """

    comparisons: tuple[RegionComparison, ...]
    symbols: Mapping[int, str]
    mappings: int
    owners: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the fact `kernel_text` or `kernel_rodata`."""
        hooks = [hook for comparison in self.comparisons for hook in comparison.hooks]
        settling = [run for comparison in self.comparisons for run in comparison.passing]
        unexplained = [run for comparison in self.comparisons for run in comparison.unexplained]
        displaced = [run for comparison in self.comparisons for run in comparison.displaced]
        left_out = sum(comparison.left_out for comparison in self.comparisons)
        return {
            "compared_bytes": sum(comparison.compared for comparison in self.comparisons),
            "differing_bytes": sum(comparison.differing for comparison in self.comparisons),
            "unread_bytes": sum(comparison.unread for comparison in self.comparisons),
            "writable_bytes": sum(comparison.writable for comparison in self.comparisons),
            "mappings": self.mappings,
            "regions": [
                {"name": comparison.region, "bytes": comparison.compared} for comparison in self.comparisons
            ],
            "by_class": _summed(comparison.by_class for comparison in self.comparisons),
            "unchecked_classes": sorted({name for each in self.comparisons for name in each.unchecked}),
            "sites": _summed(comparison.sites for comparison in self.comparisons),
            "unjudged": [text for comparison in self.comparisons for text in comparison.unjudged],
            **bounded("hooks", hooks, self._hook),
            **bounded("settling", settling, self._difference),
            "unexplained_bytes": sum(comparison.unexplained_bytes for comparison in self.comparisons),
            **bounded("unexplained", unexplained, self._difference, left_out=left_out),
            **bounded("displaced", displaced, _displaced),
        }

    def _difference(self, run: Difference) -> dict[str, Json]:
        return {
            "address": hex(run.address),
            "symbol": self.symbols.get(run.address, ""),
            "expected": run.expected.hex(),
            "found": run.found.hex(),
            "length": run.length,
            "owner": self.owners.get(run.culprit, ""),
            "site": run.site,
            "reason": run.reason,
            "allowed": [form.hex() for form in run.allowed[:_MOST_FORMS]],
        }

    def _hook(self, hook: Hook) -> dict[str, Json]:
        return {
            "via": hook.via,
            "symbol": self.symbols.get(hook.address, ""),
            "handler": self.symbols.get(hook.handler, "") or hex(hook.handler),
            "owner": self.owners.get(hook.handler, "") if hook.handler else "",
            "count": hook.count,
        }


def kernel_text(guest: Guest, now: float) -> Fact:
    """Read the fact `kernel_text`: all mappings of the text, and what each patch site holds."""
    content = guest.text_content
    compare = partial(compare_region, guest.memory, guest.kernel_space, guest.location, guest.text, content)
    seen = compare()
    if (seen.unexplained or seen.passing) and not guest.paused:
        # Code is changed in steps; a copy made in the middle of one shows what never stood there.
        seen = compare()
    if seen.unexplained and is_booting(guest.program, guest.patience, now):
        # Alternatives are patched while the kernel boots, one after the other: believed for two minutes,
        # and never as health.
        raise UnavailableError("the kernel still boots, and patches its code meanwhile")
    half_done = {(run.site, run.address) for run in seen.passing}
    # One change waits for the other: in a guest that is short of processor time, for many seconds.
    excused = bool(half_done) and is_changing_code(guest.program)
    unjudged = {reason.partition(":")[0] for reason in seen.unjudged}
    lasting = guest.patience.settled(
        "sites", half_done, now, excused=excused, unseen=lambda key: key[0] in unjudged
    )
    stuck = tuple(run for run in seen.passing if (run.site, run.address) in lasting)
    seen = replace(
        seen,
        unexplained=(seen.unexplained + stuck)[:MOST_DIFFERENCES],
        unexplained_bytes=seen.unexplained_bytes + sum(run.length for run in stuck),
        left_out=seen.left_out + max(0, len(seen.unexplained) + len(stuck) - MOST_DIFFERENCES),
        passing=tuple(run for run in seen.passing if (run.site, run.address) not in lasting),
    )
    # Any other mapping of the text must hold, byte for byte, what was found legal in the kernel's own.
    others = guest.other_spaces()
    legal = (
        [replace(guest.text, expected=content.accepted, kinds=np.zeros_like(guest.text.kinds))]
        if others
        else []
    )
    return _told(guest, [seen], legal, others)


def kernel_rodata(guest: Guest, now: float) -> Fact:
    """Read the fact `kernel_rodata`: read-only data, pointers set while booting, and the vDSO's code."""
    if not guest.rodata:
        raise UnavailableError("the reference does not tell where read-only data lies")
    own = [
        compare_region(guest.memory, guest.kernel_space, guest.location, region) for region in guest.rodata
    ]
    pointers = guest.init_pointers.compare()
    if pointers is not None and any(region.compared for region in own):
        own.append(pointers)
    own += _vdso(guest, now)
    legal = [replace(image.region, expected=image.content.accepted) for image in guest.vdso]
    images = [image.region for image in guest.vdso]
    return _told(guest, own, [*guest.rodata, *legal], guest.other_spaces(), named=images)


def _vdso(guest: Guest, now: float) -> list[RegionComparison]:
    """Compare the code that the kernel lends to processes."""

    def compare() -> list[RegionComparison]:
        return [
            compare_region(guest.memory, guest.kernel_space, guest.location, image.region, image.content)
            for image in guest.vdso
        ]

    seen = compare()
    if any(region.unexplained for region in seen):
        # The kernel's text tells what the processor can do, and was perhaps looked at before it was patched.
        guest.text_content.refresh()
        seen = compare()
        if any(region.unexplained for region in seen) and is_booting(guest.program, guest.patience, now):
            raise UnavailableError("the kernel still boots, and patches its code meanwhile")
    return seen


def _told(
    guest: Guest,
    comparisons: list[RegionComparison],
    regions: Iterable[CodeRegion],
    others: Sequence[AddressSpace],
    *,
    named: Iterable[CodeRegion] = (),
) -> KernelCode:
    """Tell of comparisons; what lies in one of the regions `named` is told by that name."""
    for region in regions:
        for space in others:
            comparison = compare_region(guest.memory, space, guest.location, region)
            # What such a space does not map, no vCPU executes through it: that is no gap in the look.
            comparisons.append(replace(comparison, unread=0))
    if not any(comparison.compared for comparison in comparisons):
        raise UnavailableError("none of the kernel's memory could be read")
    runs = [run for seen in comparisons for run in (*seen.unexplained, *seen.passing)]
    hooks = [hook for seen in comparisons for hook in seen.hooks]
    addresses = {run.address for run in runs} | {
        place for hook in hooks for place in (hook.address, hook.handler)
    }
    symbols = {address: guest.program.describe(address) for address in addresses}
    for region in named:
        inside = (address for address in addresses if region.start <= address < region.end)
        symbols |= {address: f"{region.name}+{address - region.start:#x}" for address in inside}
    culprits = {run.culprit for run in runs if run.culprit} | {
        hook.handler for hook in hooks if not symbols[hook.handler]
    }
    return KernelCode(tuple(comparisons), symbols, 1 + len(others), _owners(guest, culprits))


def _owners(guest: Guest, addresses: set[int]) -> dict[int, str]:
    """Return who owns addresses outside of the kernel image, as far as the kernel's lists tell."""
    if not addresses:
        return {}
    spans: list[tuple[int, int, str]] = []
    try:
        owners = module_owners(guest.program, listed_modules(guest.program))
        owners += named_owners(guest.program)
        spans += [(owned.start, owned.end, f"{owned.kind} {owned.owner}") for owned in owners]
    except AffiantError:
        pass  # nobody's, then: whoever is to blame is told by address
    return {
        address: next((name for start, end, name in spans if start <= address < end), hex(address))
        for address in addresses
    }


def _displaced(run: Extent) -> dict[str, Json]:
    return {"address": hex(run.start), "physical": hex(run.physical), "pages": run.size // PAGE_SIZE}


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
