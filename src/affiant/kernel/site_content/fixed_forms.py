"""Classes whose sites hold one of a few contents that are known in advance, and choose alike.

The kernel patches all sites of such a class once, while it boots, by the features of its CPU. What a
single site may hold is therefore one of a few forms, and sites that the kernel treats alike hold the
same one. A site that holds a legal form that its neighbours do not is one that somebody else patched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import joined_rows, share
from affiant.kernel.site_content.rule import ROW_BYTES, Objection, SiteSet

__all__ = ["FixedForms", "FormTable"]


@dataclass(frozen=True, slots=True, eq=False)
class FormTable:
    """What the sites of a class may hold.

    `content[site, form]` are bytes, as wide as the longest site; `offered[site, form]` tells whether
    the form exists for that site, and form 0 is what was linked. Sites of one `group` hold forms of
    one name; group -1 is free to differ.
    """

    names: tuple[str, ...]
    content: NDArray[np.uint8]
    offered: NDArray[np.bool_]
    group: NDArray[np.int64]


class FixedForms:
    """The rule for such a class."""

    def __init__(self, kind: SiteClass, sites: SiteSet, table: FormTable) -> None:
        self.kind = kind
        self.sites = sites
        self._table = table
        inside = np.arange(table.content.shape[2]) < sites.length[:, None]
        self._inside = _as_words(np.full(inside.shape, 0xFF, dtype=np.uint8), inside)
        self._words = _as_words(table.content, inside[:, None, :])
        self._held = np.zeros(len(sites), dtype=np.int64)
        # What is objected to, and to which forms: a joined rule may change these.
        self._odd: tuple[NDArray[np.int64], tuple[Objection, ...]] | None = None

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`: sites of one part are alike or not among themselves."""
        whole = cls.__new__(cls)
        whole.kind, whole.sites = parts[0].kind, sites
        share(whole, parts, "_inside", "_words", "_held")
        whole._table = _joined_tables([part._table for part in parts])
        whole._odd = None
        return whole

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: legal is what equals one of the forms."""
        words = _wide(found, ROW_BYTES * self._inside.shape[1]).view(np.uint64) & self._inside[indices]
        # Most sites hold the form that they held. Of two forms with the same bytes the first is meant, as it
        # was when the form that a site held was found.
        forms = len(self._table.names)
        own = indices * forms + self._held[indices]
        legal: NDArray[np.bool_] = self._table.offered.reshape(-1)[own]
        for word in range(words.shape[1]):
            legal &= self._words[:, :, word].reshape(-1)[own] == words[:, word]
        left = np.flatnonzero(~legal)
        for form in range(forms if len(left) else 0):
            sites = indices[left]
            equal = self._table.offered[sites, form]
            for word in range(words.shape[1]):
                equal &= self._words[sites, form, word] == words[left, word]
            legal[left[equal]] = True
            self._held[sites[equal]] = form
            left = left[~equal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`: form 0 is what was linked."""
        return np.asarray((self._held == 0) & self._table.offered[:, 0])

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`."""
        length = int(self.sites.length[index])
        rows = self._table.content[index][self._table.offered[index]]
        return tuple(dict.fromkeys(row[:length].tobytes() for row in rows))

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the kernel changes these before anything else runs, or with all else stopped."""
        return False

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields the sites that do not hold what most of their group hold."""
        if self._odd is None or not np.array_equal(self._odd[0], self._held):
            self._odd = self._held.copy(), tuple(self._strays())
        return self._odd[1]

    def _strays(self) -> Iterable[Objection]:
        forms = len(self._table.names)
        grouped = self._table.group >= 0
        if not grouped.any():
            return
        groups = int(self._table.group.max()) + 1
        places = self._table.group[grouped] * forms + self._held[grouped]
        counts = np.bincount(places, minlength=groups * forms).reshape(groups, forms)
        usual = counts.argmax(axis=1)
        for index in np.flatnonzero(grouped & (self._held != usual[self._table.group])).tolist():
            group = int(self._table.group[index])
            form = int(usual[group])
            yield Objection(
                index,
                f"{self._table.names[int(self._held[index])]}, where {int(counts[group, form])} sites "
                f"like it have {self._table.names[form]}",
                allowed=(self._table.content[index, form][: int(self.sites.length[index])].tobytes(),),
            )


def _joined_tables(tables: Sequence[FormTable]) -> FormTable:
    """Return the forms of all tables' sites; groups stay those of each table."""
    group: list[NDArray[np.int64]] = []
    groups = 0
    for table in tables:
        group.append(np.where(table.group >= 0, table.group + groups, -1))
        groups = max(groups, int(group[-1].max(initial=-1)) + 1)
    return FormTable(
        max((table.names for table in tables), key=len),
        joined_rows([table.content for table in tables]),
        joined_rows([table.offered for table in tables]),
        np.concatenate(group),
    )


def _as_words(rows: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return rows of bytes as 64-bit words, zeros where a row is not inside its site: quick to compare."""
    return _wide(rows * inside, -(-rows.shape[-1] // ROW_BYTES) * ROW_BYTES).view(np.uint64)


def _wide(rows: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return rows `width` bytes wide, of those of the longest site or of the longest form there may be."""
    if rows.shape[-1] == width:
        return np.ascontiguousarray(rows)
    wide = np.zeros((*rows.shape[:-1], width), dtype=np.uint8)
    common = min(width, rows.shape[-1])
    wide[..., :common] = rows[..., :common]
    return wide
