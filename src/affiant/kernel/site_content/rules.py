"""Which rules judge the patch sites of a region: a row for each class of sites.

Where sites overlap, one rule judges: the strongest, and it is told what the sites inside may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.alternatives import Alternatives, Nested
from affiant.kernel.site_content.ftrace import FtraceCallers, FtraceSites
from affiant.kernel.site_content.ftrace_hooks import FtraceHooks
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.jump_labels import JumpLabels
from affiant.kernel.site_content.mitigations import call_padding, calls, landing_pads, returns, smp_locks
from affiant.kernel.site_content.paravirt import Paravirt, PvOps
from affiant.kernel.site_content.retpolines import Retpolines
from affiant.kernel.site_content.rule import Rule, SiteSet
from affiant.kernel.site_content.runtime_constants import RuntimeConstants
from affiant.kernel.site_content.static_calls import StaticCalls, StaticCallTrampolines

__all__ = ["RULES", "make_rules"]

# Of sites that overlap, one rule judges: an alternative with what lies inside it, a trampoline with the
# return in it, a traced call with the call. Stronger ones first.
_STRENGTH: Final = (
    SiteClass.ALTERNATIVE,
    SiteClass.STATIC_CALL_TRAMPOLINE,
    SiteClass.FTRACE_CALLER,
    SiteClass.FTRACE,
)

_Maker = Callable[[KernelImage, SiteSet], Rule]

RULES: Final[Mapping[SiteClass, _Maker]] = {
    SiteClass.RETPOLINE: Retpolines,
    SiteClass.RETURN: returns,
    SiteClass.CALL: calls,
    SiteClass.CALL_PADDING: call_padding,
    SiteClass.ENDBR: landing_pads,
    SiteClass.SMP_LOCK: smp_locks,
    SiteClass.JUMP_LABEL: JumpLabels,
    SiteClass.STATIC_CALL: StaticCalls,
    SiteClass.STATIC_CALL_TRAMPOLINE: StaticCallTrampolines,
    SiteClass.RUNTIME_SHIFT: lambda image, sites: RuntimeConstants(image, SiteClass.RUNTIME_SHIFT, sites),
    SiteClass.RUNTIME_POINTER: lambda image, sites: RuntimeConstants(image, SiteClass.RUNTIME_POINTER, sites),
}
"""Rules that need nothing but their sites; a class without any is left unchecked, and told as such."""

# What a rule reads of its class's tables. A table that does not tell it leaves the class unchecked.
_FIELDS: Final[Mapping[SiteClass, frozenset[str]]] = {
    SiteClass.ALTERNATIVE: frozenset({"replacement", "feature", "replacement_length"}),
    SiteClass.PARAVIRT: frozenset({"type"}),
    SiteClass.JUMP_LABEL: frozenset({"target", "key"}),
    SiteClass.STATIC_CALL: frozenset({"key"}),
}


def make_rules(image: KernelImage, region: CodeRegion, hooks: FtraceHooks) -> tuple[Rule, ...]:
    """Return a rule for each class of sites in a region that its table tells enough about."""
    chosen, nested = _claims(region)
    pv_ops = PvOps(image)
    rules: list[Rule] = []
    inner: list[Nested] = []
    alternatives = _site_set(region, chosen, SiteClass.ALTERNATIVE)
    for kind in SiteClass:
        if not _readable(image, kind):
            continue
        own = _site_set(region, chosen, kind)
        inside = _inside(_site_set(region, nested, kind), alternatives)
        if kind is SiteClass.PARAVIRT:
            if len(own):
                rules.append(Paravirt(image, own, pv_ops))
            if len(inside):
                inner += _forms_inside(Paravirt(image, inside, pv_ops))
        elif kind in (SiteClass.RETURN, SiteClass.CALL, SiteClass.RETPOLINE) and len(inside):
            inner += _forms_inside(RULES[kind](image, inside))
        if kind in RULES and len(own):
            rules.append(RULES[kind](image, own))
    for kind, caller in ((SiteClass.FTRACE, FtraceSites), (SiteClass.FTRACE_CALLER, FtraceCallers)):
        own = _site_set(region, chosen, kind)
        if len(own):
            rules.append(caller(image, own, hooks))
    if len(alternatives) and _readable(image, SiteClass.ALTERNATIVE):
        inner += _inside_replacements(image)
        rules.append(Alternatives(image, alternatives, pv_ops, inner))
    return tuple(rules)


def _readable(image: KernelImage, kind: SiteClass) -> bool:
    """Tell whether the tables of a class have what its rule reads."""
    wanted = _FIELDS.get(kind, frozenset())
    own = (number for number, table in enumerate(image.reference.tables) if table.kind is kind)
    return all(wanted <= set(image.reference.table_entries(number).dtype.names or ()) for number in own)


def _claims(region: CodeRegion) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which sites of a region are judged by themselves, and which are part of a stronger one."""
    sites = region.sites
    count = len(sites)
    start = (sites["address"] - np.uint64(region.start)).astype(np.int64)
    end = start + sites["length"].astype(np.int64)
    weakness = np.full(256, len(_STRENGTH), dtype=np.int64)
    for rank, kind in enumerate(_STRENGTH):
        weakness[int(kind)] = rank
    rank = weakness[sites["kind"]]
    order = np.lexsort((-end, start))
    reach = np.maximum.accumulate(end[order])
    fresh = np.ones(count, dtype=bool)
    fresh[1:] = start[order][1:] >= reach[:-1]
    cluster = np.cumsum(fresh) - 1
    size = int(cluster[-1]) + 1 if count else 0
    best = np.full(size, len(_STRENGTH), dtype=np.int64)
    np.minimum.at(best, cluster, rank[order])
    strong = rank[order] == best[cluster]
    low, high = np.full(size, np.iinfo(np.int64).max), np.zeros(size, dtype=np.int64)
    np.minimum.at(low, cluster[strong], start[order][strong])
    np.maximum.at(high, cluster[strong], end[order][strong])
    inside = ~strong & (start[order] >= low[cluster]) & (end[order] <= high[cluster])
    nested = np.zeros(count, dtype=bool)
    nested[order] = inside
    return ~nested, nested


def _site_set(region: CodeRegion, mask: NDArray[np.bool_], kind: SiteClass) -> SiteSet:
    sites = region.sites[mask & (region.sites["kind"] == int(kind))]
    sites = sites[np.argsort(sites["address"], kind="stable")]
    return SiteSet.of(sites, region.start)


def _inside(sites: SiteSet, outer: SiteSet) -> SiteSet:
    """Return those of `sites` that lie in one of `outer`."""
    if not len(outer):
        return sites.select(np.zeros(len(sites), dtype=bool))
    reach = np.maximum.accumulate(outer.offset + outer.length)
    before = np.searchsorted(outer.offset, sites.offset, side="right") - 1
    held = (before >= 0) & (sites.offset + sites.length <= reach[np.maximum(before, 0)])
    return sites.select(held)


def _forms_inside(rule: Rule) -> list[Nested]:
    return [Nested(int(address), rule.allowed(index)) for index, address in enumerate(rule.sites.address)]


def _inside_replacements(image: KernelImage) -> list[Nested]:
    """Return the sites in `.altinstr_replacement`: they are patched before they are copied."""
    try:
        address, data = image.reference.section(".altinstr_replacement")
    except KeyError:
        return []
    found = image.reference.sites_between(address, address + len(data)).copy()
    found["address"] += np.uint64(image.slide)
    region = CodeRegion(
        ".altinstr_replacement",
        address + image.slide,
        image.reference.relocated_section(".altinstr_replacement", image.slide),
        np.zeros(len(data), dtype=np.uint8),
        found,
    )
    within = image.within(region)
    nested: list[Nested] = []
    for kind in (SiteClass.RETURN, SiteClass.CALL, SiteClass.RETPOLINE):
        sites = _site_set(region, np.ones(len(found), dtype=bool), kind)
        if len(sites):
            nested += _forms_inside(RULES[kind](within, sites))
    return nested
