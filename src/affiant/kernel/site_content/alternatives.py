"""Alternatives: code that the kernel replaces at boot by what suits its CPU (apply_alternatives()).

A site holds what was linked, or one of its replacements, as instructions at the same places (see
`instructions`). Entries for one site apply in the order of the table, so the last one whose condition
holds is what stands there. Conditions are features of the CPU, and the features are the same for
every site: each site votes for what it implies, and a site that contradicts the others was patched by
somebody else. What the guest says about its features is not asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.instructions import Meaning, meaning
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.paravirt import DIRECT_CALL_BYTES, PvOps
from affiant.kernel.site_content.rule import Objection, SiteSet
from affiant.model.errors import MalformedError

__all__ = ["Alternatives", "Nested"]

_NOP: Final = b"\x90"
_NOT_OLD: Final = 1 << 15  # ALTINSTR_FLAG_INV, part of the feature number until 6.3
_NOT, _DIRECT_CALL = 1, 2  # ALT_FLAG_NOT, ALT_FLAG_DIRECT_CALL
_MOST_VARIANTS: Final = 64


@dataclass(frozen=True, slots=True)
class Nested:
    """A site of another class that lies inside an alternative or a replacement: where, and its forms."""

    address: int
    forms: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    feature: int
    inverted: bool
    direct: bool
    replacement: bytes
    replacement_address: int


@dataclass(slots=True)
class _Place:
    """One address with all its entries, in the order of the table."""

    address: int
    linked: bytes
    entries: list[_Entry]
    nested: list[Nested] = field(default_factory=list)
    forms: dict[Meaning, list[int]] | None = None
    held: tuple[int, ...] = (-1,)
    slot: int = 0
    """Where the call that may become a direct one finds its target; 0 if none may."""

    def direct(self) -> tuple[int, ...]:
        """Return the entries that make a call direct."""
        return tuple(number for number, entry in enumerate(self.entries) if entry.direct)


class Alternatives:
    """The rule for alternatives."""

    kind = SiteClass.ALTERNATIVE

    def __init__(
        self,
        image: KernelImage,
        sites: SiteSet,
        pv_ops: PvOps,
        nested: Iterable[Nested] = (),
        *,
        fellows: Sequence[Alternatives] = (),
    ) -> None:
        """`sites` may name an address several times, once for each entry; they are judged as one.

        `fellows` are sites of the same kernel elsewhere, which have a vote on features here.
        """
        self._fellows = fellows
        self._image = image
        self._pv_ops = pv_ops
        self._replacements = _replacement_section(image)
        self._places: list[_Place] = []
        self._all = sites
        first, self._place_of = np.unique(sites.address, return_inverse=True)
        lengths = np.zeros(len(first), dtype=np.int64)
        np.maximum.at(lengths, self._place_of, sites.length)
        starts = np.searchsorted(sites.address, first)
        self.sites = SiteSet(first, sites.offset[starts], lengths, sites.entry[starts], sites.table[starts])
        self._read_entries(sorted(nested, key=lambda site: site.address))
        self._odd: tuple[Objection, ...] | None = None
        self._parts: tuple[Alternatives, ...] = ()
        self._votes: Mapping[int, tuple[int, int]] | None = None
        width = int(lengths.max(initial=1))
        self._inside = np.arange(width) < lengths[:, None]
        # The bytes from which `held` of each site follows, where it follows from the reference alone.
        self._explained = image.linked(self.sites.offset, width)
        self._lasting = np.ones(len(first), dtype=bool)
        self._linked = np.ones(len(first), dtype=bool)
        # The slots of calls that may become direct ones (0: none), and those that were found legal last, with
        # what their slot asked for then.
        self._slot = np.array([place.slot for place in self._places], dtype=np.uint64)
        self._calls = np.zeros(len(first), dtype=bool)
        self._called = np.zeros_like(self._explained)
        self._asked = np.zeros((len(first), 2), dtype=np.uint64)

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`: what sites say of the CPU's features is held against those of their own part."""
        whole = cls.__new__(cls)
        whole._image, whole._pv_ops, whole._parts = image, PvOps(image), tuple(parts)
        whole.sites = sites
        whole._places = [place for part in parts for place in part._places]
        share(whole, parts, "_inside", "_explained", "_lasting", "_linked")
        share(whole, parts, "_slot", "_calls", "_called", "_asked")
        return whole

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`."""
        found = found[:, : self._explained.shape[1]]
        legal: NDArray[np.bool_] = self._lasting[indices] & self._same(found, self._explained, indices)
        self._pv_ops.forget()
        left = np.flatnonzero(~legal)
        slots = np.unique(self._slot[indices[left]])
        self._pv_ops.read(slots[slots != 0])
        called = self._still_called(indices[left], found[left])
        legal[left] = called
        for row in left[~called].tolist():
            index = int(indices[row])
            place = self._places[index]
            code = found[row, : len(place.linked)].tobytes()
            held, lasting = self._judge(place, code)
            if not held:
                continue
            legal[row] = True
            self._lasting[index], self._linked[index] = lasting, code == place.linked
            self._calls[index] = not lasting
            if lasting:
                self._explained[index, : len(code)] = np.frombuffer(code, dtype=np.uint8)
            else:
                self._called[index, : len(code)] = np.frombuffer(code, dtype=np.uint8)
                self._asked[index] = np.array(self._pv_ops.form(place.slot), dtype=np.uint64)
            if held != place.held:
                place.held = held
                for rule in (self, *self._parts):
                    rule._odd = rule._votes = None
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`."""
        return self._linked & self._lasting

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`: as linked and as stored, before operands are moved."""
        place = self._places[index]
        stored = (entry.replacement.ljust(len(place.linked), _NOP) for entry in place.entries)
        return tuple(dict.fromkeys((place.linked, *stored)))

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the kernel changes these before anything else runs, or with all else stopped."""
        return False

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields sites that contradict what the others say about the CPU's features."""
        if self._parts:
            return self._objections_of_parts()
        if self._odd is None or self._fellows:
            self._odd = tuple(self._contradictions())
        return self._odd

    def _objections_of_parts(self) -> Iterable[Objection]:
        before = 0
        for part in self._parts:
            for objection in part.review():
                yield replace(objection, site=before + objection.site)
            before += len(part.sites)

    def heard(self) -> tuple[Mapping[int, tuple[int, int]], ...] | None:
        """Return what the judgement of the same bytes depends on: the votes of fellows, each the same object
        while it stands. None if it depends on more: on the functions that calls find in the guest's data.
        """
        return None if self._slot.any() else tuple(fellow.votes() for fellow in self._fellows)

    def votes(self) -> Mapping[int, tuple[int, int]]:
        """Return for each feature how many sites, as last judged, imply that it is missing, and there."""
        if self._votes is None:
            counts: dict[int, list[int]] = {}
            for place in self._places:
                for feature, there in _implied(place).items():
                    counts.setdefault(feature, [0, 0])[there] += 1
            self._votes = {feature: (missing, there) for feature, (missing, there) in counts.items()}
        return self._votes

    def _same(
        self, found: NDArray[np.uint8], wanted: NDArray[np.uint8], indices: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        return np.asarray(~((found != wanted[indices]) & self._inside[indices]).any(axis=1))

    def _still_called(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell which sites hold the direct call that was last found legal, and have it asked for now."""
        same: NDArray[np.bool_] = self._calls[indices] & self._same(found, self._called, indices)
        slots, of_slot = np.unique(self._slot[indices[same]], return_inverse=True)
        asked = np.array([self._pv_ops.form(slot) for slot in slots.tolist()], dtype=np.uint64).reshape(-1, 2)
        same[same] = (asked[of_slot] == self._asked[indices[same]]).all(axis=1)
        return same

    def _judge(self, place: _Place, code: bytes) -> tuple[tuple[int, ...], bool]:
        """Return the entries that `code` may come from (-1: none applied), none if it has no explanation.

        And whether that follows from the reference alone: then the same bytes need no decoding again.
        """
        if code == place.linked:
            return (-1,), True
        seen = meaning(code, place.address)
        if seen is None:
            return (), False
        found = self._forms(place).get(seen)
        return (tuple(found), True) if found is not None else (self._direct_call(place, code), False)

    def _forms(self, place: _Place) -> dict[Meaning, list[int]]:
        if place.forms is None:
            place.forms = {}
            for variant in _variants(place.linked, place.address, place.nested):
                _add(place.forms, meaning(variant, place.address), -1)
            for number, entry in enumerate(place.entries):
                if entry.direct:
                    continue
                inner = [
                    site
                    for site in place.nested
                    if _within(site, entry.replacement_address, len(entry.replacement))
                ]
                for variant in _variants(entry.replacement, entry.replacement_address, inner):
                    padded = variant.ljust(len(place.linked), _NOP)
                    what = meaning(
                        padded, entry.replacement_address, copied_to=place.address, inner=len(variant)
                    )
                    _add(place.forms, what, number)
        return place.forms

    def _direct_call(self, place: _Place, code: bytes) -> tuple[int, ...]:
        """A call through pv_ops made direct (alt_replace_call(), since 6.8)."""
        if not place.slot:
            return ()
        for form in self._pv_ops.direct_forms(place.slot, place.address, len(place.linked)):
            if meaning(form, place.address) == meaning(code, place.address):
                return place.direct()
        return ()

    def _contradictions(self) -> Iterable[Objection]:
        votes: dict[int, tuple[int, int]] = {}
        for voter in (self, *self._fellows):
            for feature, (missing, there) in voter.votes().items():
                before = votes.get(feature, (0, 0))
                votes[feature] = (before[0] + missing, before[1] + there)
        contested = {feature: count for feature, count in votes.items() if all(count)}
        if not contested:
            return
        for index, place in enumerate(self._places):
            for feature, says in _implied(place).items():
                against = contested.get(feature, (0, 0))
                if against[not says] > against[says]:
                    yield Objection(
                        index,
                        f"patched as if CPU feature {feature // 32}*32+{feature % 32} were "
                        f"{'there' if says else 'missing'}, which {against[not says]} sites deny",
                        allowed=tuple(form for form in self.allowed(index) if form != place.linked),
                    )
                    break

    def _read_entries(self, nested: list[Nested]) -> None:
        places = [site.address for site in nested]
        by_place: dict[int, list[int]] = {}
        for row, place in enumerate(self._place_of.tolist()):
            by_place.setdefault(place, []).append(row)
        tables = {number: _Table(self._image, number) for number in np.unique(self._all.table).tolist()}
        for index in range(len(self.sites)):
            address, length = int(self.sites.address[index]), int(self.sites.length[index])
            linked = self._image.linked(self.sites.offset[index : index + 1], length)[0].tobytes()
            rows = sorted(by_place[index], key=lambda row: int(self._all.entry[row]))
            entries = [
                tables[int(self._all.table[row])].entry(int(self._all.entry[row]), self._replacements)
                for row in rows
            ]
            place = _Place(address, linked, entries)
            if place.direct() and linked[:2] == DIRECT_CALL_BYTES:
                place.slot = address + 6 + int.from_bytes(linked[2:6], "little", signed=True)
            spans = [(address, length), *((e.replacement_address, len(e.replacement)) for e in entries)]
            for start, size in spans:
                first, last = bisect_left(places, start), bisect_left(places, start + size)
                place.nested += [site for site in nested[first:last] if _within(site, start, size)]
            self._places.append(place)


class _Table:
    """The raw entries of one table of alternatives, with the fields' meaning."""

    def __init__(self, image: KernelImage, number: int) -> None:
        self._table = image.reference.tables[number]
        self._entries = image.reference.table_entries(number)
        self._slide = image.slide
        self._flags = "flags" in (self._entries.dtype.names or ())
        fields: Mapping[str, Any] = self._entries.dtype.fields or {}
        self._at = int(fields["replacement"][1])

    def entry(self, number: int, section: tuple[int, bytes]) -> _Entry:
        raw = self._entries[number]
        feature, inverted, direct = int(raw["feature"]), False, False
        if self._flags:
            inverted, direct = bool(int(raw["flags"]) & _NOT), bool(int(raw["flags"]) & _DIRECT_CALL)
        else:
            inverted, feature = bool(feature & _NOT_OLD), feature & ~_NOT_OLD
        place = self._table.address + number * self._entries.itemsize + self._at
        address = place + int(raw["replacement"]) + self._slide
        start = address - section[0]
        size = int(raw["replacement_length"])
        if not 0 <= start <= len(section[1]) - size:
            raise MalformedError("a replacement lies outside its section")
        return _Entry(feature, inverted, direct, section[1][start : start + size], address)


def _replacement_section(image: KernelImage) -> tuple[int, bytes]:
    try:
        address, _ = image.reference.section(".altinstr_replacement")
        data = image.reference.relocated_section(".altinstr_replacement", image.slide)
    except KeyError:
        return 0, b""
    return address + image.slide, data.tobytes()


def _within(site: Nested, start: int, size: int) -> bool:
    return start <= site.address and site.address + len(site.forms[0]) <= start + size


def _variants(code: bytes, address: int, nested: list[Nested]) -> list[bytes]:
    """Return the code with each combination of forms at the sites inside it."""
    inside = [site for site in nested if _within(site, address, len(code))]
    variants: list[bytes] = []
    for choice in product(*(site.forms for site in inside)):
        if len(variants) == _MOST_VARIANTS:
            raise MalformedError("an alternative has too many sites inside")
        changed = bytearray(code)
        for site, form in zip(inside, choice, strict=True):
            changed[site.address - address : site.address - address + len(form)] = form
        variants.append(bytes(changed))
    return variants


def _add(forms: dict[Meaning, list[int]], what: Meaning | None, number: int) -> None:
    if what is None:
        raise MalformedError("an alternative of the reference is not made of whole instructions")
    numbers = forms.setdefault(what, [])
    if number not in numbers:
        numbers.append(number)


def _implied(place: _Place) -> dict[int, bool]:
    """Return what the content of a site says about features: those that all its explanations agree on."""
    agreed: dict[int, bool] | None = None
    for held in place.held:
        implied: dict[int, bool] | None = {}
        for number, entry in enumerate(place.entries):
            if number < held:
                continue  # a later entry applied: it does not matter whether this one did
            there = (number == held) != entry.inverted
            if implied is not None and implied.setdefault(entry.feature, there) != there:
                implied = None  # these entries cannot have come out so: another explanation must be true
                break
        if implied is None:
            continue
        agreed = implied if agreed is None else {f: v for f, v in agreed.items() if implied.get(f) == v}
    return agreed or {}
