"""The sites of several regions, judged together: which regions have a site that needs a look of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.site_content.ftrace import FtraceSites
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import Joinable, join_sites
from affiant.kernel.site_content.rule import Rule
from affiant.kernel.site_content.site_rows import row_width, rows_at
from affiant.model.errors import AffiantError

__all__ = ["JoinedContent"]

_MOST_OBJECTIONS: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class _JoinedRule:
    """A rule for the sites of all regions, and which region each site is of."""

    rule: Rule
    region: NDArray[np.int64]


class JoinedContent:
    """The patch sites of regions that lie one behind the other in one array.

    A region with a class of sites that cannot be joined is always odd.
    """

    def __init__(self, image: KernelImage, contents: Sequence[SiteContent], starts: Sequence[int]) -> None:
        self._count = len(contents)
        self._alone = np.zeros(self._count, dtype=bool)
        self._rules: list[_JoinedRule] = []
        kinds: dict[SiteClass, list[tuple[int, Rule]]] = {}
        for number, content in enumerate(contents):
            for rule in content.rules:
                kinds.setdefault(rule.kind, []).append((number, rule))
        for own in kinds.values():
            numbers, rules = zip(*own, strict=True)
            if not isinstance(rules[0], Joinable):
                self._alone[list(numbers)] = True
                continue
            sites = join_sites([rule.sites for rule in rules], [starts[number] for number in numbers])
            region = np.repeat(np.array(numbers, dtype=np.int64), [len(rule.sites) for rule in rules])
            self._rules.append(_JoinedRule(type(rules[0]).joined(image, sites, rules), region))

    def take(self, live: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Judge all sites, of which `live` holds a copy; return the regions with one that has no legal form.

        `live` is longer than the regions by a site's length at least.
        """
        odd = self._alone.copy()
        for each in self._rules:
            sites = each.rule.sites
            legal = each.rule.take(np.arange(len(sites)), rows_at(live, sites.offset, row_width(sites)))
            odd[each.region[~legal]] = True
        return odd

    def review(self) -> NDArray[np.bool_]:
        """Return the regions with sites that the guest's data of now contradicts, or where it cannot be read.

        What is traced is so, too: who traces is told one by one.
        """
        odd = self._alone.copy()
        for each in self._rules:
            if isinstance(each.rule, FtraceSites):
                odd[each.region[each.rule.calling()]] = True
                continue
            try:
                told = list(islice(each.rule.review(), _MOST_OBJECTIONS))
            except AffiantError:
                odd[each.region] = True
                continue
            if len(told) == _MOST_OBJECTIONS:
                odd[each.region] = True
            odd[each.region[[objection.site for objection in told]]] = True
        return odd
