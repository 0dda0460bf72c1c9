"""The kernel's text, judged site by site.

`SiteContent` keeps a copy of the text as it was last found legal, at first the relocated reference. A
look compares live text with that copy: what is equal needs no second judgement, so that a steady
kernel costs one comparison. What differs is judged by the rule of its class and, if legal, kept.
Every look also asks each rule whether what it kept still agrees with the guest's data and with its
fellows, because keys, hooks and probes change without the text, and text without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.compare import compare_region
from affiant.kernel.comparison.difference import Difference, Hook, Verdict
from affiant.kernel.comparison.differing import without
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.memory import GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.weak_method import weak_method
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.alternatives import Alternatives
from affiant.kernel.site_content.branches import INT3
from affiant.kernel.site_content.differing_bytes import DifferingBytes
from affiant.kernel.site_content.ftrace import FtraceSites
from affiant.kernel.site_content.ftrace_hooks import FtraceHooks
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.probes import Probes
from affiant.kernel.site_content.rule import Objection, Rule
from affiant.kernel.site_content.rules import make_rules
from affiant.kernel.site_content.site_rows import Spans, differing_words, put_rows, rows_at
from affiant.model.errors import AffiantError

__all__ = ["SiteContent"]

_LONGEST_PROBED: Final = 32
_MOST_OBJECTIONS: Final = 4096
"""Objections of one class that a look tells one by one."""

_READINGS: Final = 3
_MOST_READ_AGAIN: Final = 1024
"""Suspects of one class that a look reads a second time; more of them are no race."""


class SiteContent:
    """The sites of one region of one kernel, with the text as it was last found legal."""

    def __init__(
        self,
        memory: GuestMemory,
        space: AddressSpace,
        program: KernelProgram,
        region: CodeRegion,
        *,
        image: KernelImage | None = None,
        hooks: FtraceHooks | None = None,
    ) -> None:
        """`hooks` are given for a region that is not the kernel's own text."""
        self._image = image or KernelImage(memory, space, program, region)
        self._region = region
        verified = weak_method(self._verified)
        self._probes = Probes(self._image, verified)
        self._hooks = hooks or FtraceHooks(self._image, verified)
        self.raw: bytearray | None = bytearray(region.expected)
        """The text as it was last found legal, as an array of bytes; None if it is part of a larger one."""
        self.accepted: NDArray[np.uint8] = np.frombuffer(self.raw, dtype=np.uint8)
        """The same; do not change it."""
        self.changes = 0
        """Grows when `accepted` may hold something else."""
        self._due = True
        self._unknown = False
        self._look = partial(compare_region, memory, space, program.location, region)
        self._rules = make_rules(self._image, region, self._hooks)
        self._spans = Spans(self._rules)
        self._counted = DifferingBytes(region, self._rules, self._spans)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that judge the region's sites, one for each class."""
        return self._rules

    @property
    def classes(self) -> frozenset[SiteClass]:
        """The classes that are judged."""
        return frozenset(rule.kind for rule in self._rules)

    @property
    def hooks(self) -> FtraceHooks:
        """The registered users of function tracing, and what their trampolines must hold."""
        return self._hooks

    @property
    def probes(self) -> Probes:
        """The registered probes, and what their slots must hold."""
        return self._probes

    def wrapping(self) -> frozenset[int]:
        """Return the trampolines of BPF that functions called in the last look at the text."""
        rules = (rule for rule in self._rules if isinstance(rule, FtraceSites))
        return frozenset(trampoline for rule in rules for _, trampoline in rule.wrapped())

    @property
    def voters(self) -> tuple[Alternatives, ...]:
        """The alternatives, each judged at least once: they tell what the processor can do."""
        if self._due:
            self.refresh()
        return tuple(rule for rule in self._rules if isinstance(rule, Alternatives))

    @property
    def explained(self) -> NDArray[np.int64]:
        """How many bytes of `accepted` are not as linked, by class (an array of 256)."""
        return self._counted.by_class(self.accepted)

    def forget(self) -> None:
        """Have the next look judge all sites from what was linked, whatever was found legal before."""
        self._due = True

    def keep_in(self, memory: NDArray[np.uint8]) -> None:
        """Keep what was found legal in a part of a larger array from now on."""
        self.changes += 1
        memory[:] = self.accepted
        self.accepted, self.raw = memory, None

    def settle(
        self, live: NDArray[np.uint8] | None = None, compared: NDArray[np.bool_] | None = None
    ) -> None:
        """Take all sites for judged from what was linked, by these very rules, and found legal.

        `live` is the region as it was then, where it counts (`compared`); None if it was as it is kept.
        """
        self._due = self._unknown = False
        if live is not None:
            self.changes += 1
            np.copyto(self.accepted, live, where=True if compared is None else compared)
            self._counted.forget()

    def refresh(self) -> None:
        """Look at the region now, for what others take from it."""
        self._look(self)

    def begin(self) -> bool:
        """Begin a look; returns whether all sites are to be judged in it, from what was linked.

        So they are until a look that judges all of them finds each in one of its forms.
        """
        anew = self._due or self._unknown
        self._due = self._unknown = False
        if anew:
            self.changes += 1
            self.accepted[:] = self._region.expected
            self._counted.all_as_linked()
        return anew

    def judge(self, live: NDArray[np.uint8], changed: NDArray[np.int64] | None) -> Verdict:
        """Judge the sites in a copy of the region that hold one of the `changed` offsets, or all (None).

        What is legal becomes part of `accepted`. Raises nothing that the guest could cause.
        """
        wrong: list[Difference] = []
        passing: list[Difference] = []
        unreadable: list[str] = []
        probed, hooks = self._without_probes(live, wrong, unreadable)
        if changed is None:
            touched = self._not_as_linked(live)
        else:
            touched = dict(self._spans.touched(without(changed, probed)))
        illegal = False
        for number, rule in enumerate(self._rules):
            look = _ClassLook(number, rule, self._spans.width[number], probed, wrong, passing)
            try:
                illegal |= self._judge_class(look, touched.get(number, probed[:0]), live)
            except AffiantError as error:
                unreadable.append(f"{rule.kind.name.lower()}: {error}")
                illegal = True
        # What is kept of such sites is what was linked, and what rules remember of them is older: if they
        # came to hold what was linked, nothing would seem to have changed.
        self._unknown = illegal and changed is None
        counts: dict[str, int] = {}
        for rule in self._rules:
            name = rule.kind.name.lower()
            counts[name] = counts.get(name, 0) + len(rule.sites)
        hooks += self._traced()
        return Verdict(tuple(wrong), tuple(passing), tuple(hooks), counts, tuple(unreadable), probed)

    def _not_as_linked(self, live: NDArray[np.uint8]) -> dict[int, NDArray[np.int64]]:
        """Return the sites of each rule that may be found otherwise than as linked, and legal as such.

        Of all others the judgement is known: they hold what was linked, to the byte, and their rule says that
        this is legal there, and what it remembers.
        """
        changed = differing_words(live, self._region.expected)
        touched: dict[int, NDArray[np.int64]] = {}
        for number, rule in enumerate(self._rules):
            judged = ~rule.as_linked()
            if not judged.all():
                judged |= self._spans.set_in(number, changed)
            touched[number] = np.flatnonzero(judged)
        return touched

    def _judge_class(self, look: _ClassLook, changed: NDArray[np.int64], live: NDArray[np.uint8]) -> bool:
        """Judge the sites of one class that changed, and ask whether all of them are in order.

        Returns whether some hold none of their forms. Raises AffiantError where the guest's data could not
        be read, with all that is known told.
        """
        rule = look.rule
        illegal = self._take(look, changed, self._rows(look, changed, live)) if len(changed) else {}
        objections: dict[int, Objection] = {}
        try:
            objections = _objections(rule)
            suspects = illegal.keys() | objections.keys()
            for _ in range(_READINGS if len(suspects) <= _MOST_READ_AGAIN else 0):
                if not suspects:
                    break
                # Between the copy of the text and the look at its keys, both may have changed. A healthy
                # site and its key, read within moments, agree, or are being changed right now.
                sites = np.array(sorted(suspects), dtype=np.int64)
                illegal = self._take(look, sites, self._read_again(look, sites))
                objections = {site: told for site, told in _objections(rule).items() if site in suspects}
                suspects = illegal.keys() | objections.keys()
        finally:
            for site in sorted(illegal)[:_MOST_OBJECTIONS]:
                found = illegal[site]
                in_flight = found[0] == INT3 and rule.may_become(site, found[1:])
                look.tell(site, found, "holds none of its forms", rule.allowed(site), passing=in_flight)
            for site, objection in objections.items():
                if site not in illegal:
                    offset, length = int(rule.sites.offset[site]), int(rule.sites.length[site])
                    found = self.accepted[offset : offset + length].tobytes()
                    allowed = objection.allowed or rule.allowed(site)
                    look.tell(
                        site,
                        found,
                        objection.reason,
                        allowed,
                        passing=objection.passing,
                        culprit=objection.culprit,
                    )
        return bool(illegal)

    def _rows(self, look: _ClassLook, sites: NDArray[np.int64], live: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a row of live bytes for each site, without the breakpoints of registered probes."""
        offsets = look.rule.sites.offset[sites]
        rows = rows_at(live, offsets, look.width)
        if not len(look.probed):
            return rows
        probed = np.isin(offsets[:, None] + np.arange(look.width), look.probed)
        return np.where(probed, rows_at(self.accepted, offsets, look.width), rows)

    def _read_again(self, look: _ClassLook, sites: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read sites from the guest once more: a row for each. Raises MemoryFault if one is not mapped."""
        own = look.rule.sites
        rows = np.zeros((len(sites), look.width), dtype=np.uint8)
        for row, site in zip(rows, sites.tolist(), strict=True):
            offset, length = int(own.offset[site]), int(own.length[site])
            content = self._image.program.read(int(own.address[site]), length)
            row[:length] = np.frombuffer(content, dtype=np.uint8)
            accepted = self.accepted[offset : offset + length]
            # A probe that was set since the copy was made.
            for at in np.flatnonzero((row[:length] == INT3) & (accepted != INT3)).tolist():
                probe = self._probes.by_address.get(self._region.start + offset + at)
                if probe is not None and probe.saved == accepted[at]:
                    row[at] = accepted[at]
            known = np.isin(np.arange(offset, offset + length), look.probed)
            row[:length][known] = accepted[known]
        return rows

    def _take(self, look: _ClassLook, sites: NDArray[np.int64], rows: NDArray[np.uint8]) -> dict[int, bytes]:
        """Let a rule judge the forms of sites, keep what is legal, and return the others with their bytes."""
        rule = look.rule
        legal = rule.take(sites, rows)
        kept, own = (sites, rows) if legal.all() else (sites[legal], rows[legal])
        masks, apart = self._spans.masks[look.number][kept], self._spans.apart[look.number]
        self.changes += 1
        before = put_rows(self.accepted, rule.sites.offset[kept], own, masks, apart=apart)
        self._counted.changed(look.number, kept, before, own, masks)
        wrong = np.flatnonzero(~legal)[:_MOST_OBJECTIONS].tolist()
        return {int(sites[row]): rows[row, : int(rule.sites.length[sites[row]])].tobytes() for row in wrong}

    def _without_probes(
        self,
        live: NDArray[np.uint8],
        wrong: list[Difference],
        unreadable: list[str],
    ) -> tuple[NDArray[np.int64], list[Hook]]:
        """Return the offsets that registered probes explain, and the probes."""
        try:
            self._probes.refresh()
        except AffiantError as error:
            unreadable.append(f"kprobes: {error}")
            return np.empty(0, dtype=np.int64), []
        explained: list[int] = []
        hooks: list[Hook] = []
        probes = self._probes.by_address
        strangers = self._probes.strangers(
            probe for address, probe in probes.items() if self._image.contains(address)
        )
        for address, probe in probes.items():
            hooks += [Hook("kprobe", address, handler) for handler in probe.handlers]
            offset = address - self._region.start
            around = slice(offset, offset + _LONGEST_PROBED)
            if not self._image.contains(address):
                continue
            found, verified = live[around].tobytes(), self.accepted[around].tobytes()
            size = self._probes.explains(address, found, verified) if found[:1] != verified[:1] else 0
            explained += range(offset, offset + size)
            stranger = next((handler for handler in probe.handlers if handler in strangers), 0)
            if stranger:
                reason = "is probed, and the handler is none of the kernel image or its modules"
                wrong.append(
                    Difference(
                        address,
                        1,
                        verified[:1],
                        found[:1],
                        site="kprobe",
                        reason=reason,
                        culprit=stranger,
                    )
                )
        return np.array(sorted(set(explained)), dtype=np.int64), hooks

    def _traced(self) -> list[Hook]:
        rules = [rule for rule in self._rules if isinstance(rule, FtraceSites)]
        traced = sum(rule.traced() for rule in rules)
        hooks = [Hook("ftrace", 0, ops.function, traced) for ops in self._hooks.ops] if traced else []
        return hooks + [Hook("bpf", *pair) for rule in rules for pair in rule.wrapped()]

    def _verified(self, address: int, size: int) -> bytes:
        if self._due:  # who asks may come before the text is looked at
            self.refresh()
        offset = address - self._region.start
        if not 0 <= offset <= len(self.accepted) - size:
            raise MemoryFault(f"{address:#x} is not in the kernel's text")
        return self.accepted[offset : offset + size].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class _ClassLook:
    """One look at one class: its number, its rule, how wide rows are, what probes explain, what was found."""

    number: int
    rule: Rule
    width: int
    probed: NDArray[np.int64]
    wrong: list[Difference]
    passing: list[Difference]

    def tell(
        self,
        site: int,
        found: bytes,
        reason: str,
        allowed: tuple[bytes, ...],
        *,
        passing: bool,
        culprit: int = 0,
    ) -> None:
        """Note what is wrong with a site, or is so for moments."""
        (self.passing if passing else self.wrong).append(
            Difference(
                address=int(self.rule.sites.address[site]),
                length=len(found),
                expected=allowed[0] if allowed else b"",
                found=found,
                site=self.rule.kind.name.lower(),
                reason=reason,
                allowed=allowed,
                culprit=culprit,
            )
        )


def _objections(rule: Rule) -> dict[int, Objection]:
    told = zip(rule.review(), range(_MOST_OBJECTIONS), strict=False)
    return {objection.site: objection for objection, _ in told}
