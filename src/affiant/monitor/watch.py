"""Watching one guest's kernel: look, look again at one moment where something seems wrong, conclude."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from affiant.assertions.engine import Engine
from affiant.assertions.script import Script
from affiant.kernel.facts.registry import FACTS, collect
from affiant.kernel.guest import Guest, find_event_logs
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.event_log import EventLogCandidate
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.queries.answers import answer_queries
from affiant.kernel.reference import ReferenceImage
from affiant.kernel.reference.store import ReferenceStore
from affiant.kernel.transient.booting import is_booting
from affiant.model.errors import AffiantError, EvidenceError, UnavailableError
from affiant.model.evidence import QuoteEvidence
from affiant.model.outcome import AssertionResult, Outcome
from affiant.monitor.boot_log import BootLogCopies
from affiant.monitor.launcher_client import LauncherClient
from affiant.monitor.one_moment import Moments
from affiant.monitor.registers import Moment, Registers
from affiant.monitor.session import BootEvidence
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.quote import verify_quote
from affiant.tpm.replay import replay_event_log

__all__ = ["KernelWatch", "Look"]

_LOG = logging.getLogger(__name__)
_MOST_REFERENCES = 64
_PAGE_TABLES = "page_rights"  # the fact that tells whose page tables the vCPUs are on
_SAVED_REGISTERS = "system_registers"  # the fact that is read from what QEMU saves
# A look has this much of the processor for the rules' own queries: counted so, a busy host does not make
# a healthy guest inconclusive, and a guest cannot make the work longer. With the guest paused it is time
# by the clock, far less than the 250 ms after which the launcher lets the guest go on: answers that were
# half read by then would mix two moments.
_QUERY_SECONDS = 2.0
_QUERY_SECONDS_PAUSED = 0.1
# Looks compare with what earlier ones found legal; after so many, drawn by lot, that is forgotten.
_FULL_LOOKS = (8, 64)
_LOT = random.SystemRandom()
_DYNAMIC_PCRS = range(17, 23)  # launched by the gateway, not in the firmware's log


@dataclass(frozen=True, slots=True)
class Look:
    """One measurement: each assertion's verdict, and the reference image compared with (or None).

    `facts` are those that the verdicts rest on, and all others where they were asked for. `suspected` are
    the rules that seemed violated at first, and were judged again.
    """

    results: tuple[AssertionResult, ...]
    reference: bytes | None
    facts: Mapping[str, object] = field(default_factory=dict, repr=False)
    suspected: tuple[str, ...] = ()


class KernelWatch:
    """Looks at the kernel of one guest through its memory and its launcher.

    The kernel is recognised, not believed: each reference image in the folder is tried until one
    fits the live text at the place that the vCPUs' registers point to.
    """

    def __init__(
        self, *, memory: GuestMemory, launcher: LauncherClient, references: Path, engine: Engine
    ) -> None:
        self._memory = memory
        self._launcher = launcher
        self._registers = Registers(launcher)
        self._moments = Moments(memory, self._registers)
        self._references = ReferenceStore(references)
        self._engine = engine
        self._loaded: dict[Path, ReferenceImage] = {}
        self._guest: Guest | None = None
        self._lost: Guest | None = None  # that of this boot which could not be recognised any more
        self._boots_are_counted = False
        self._looks_to_full = _LOT.randint(*_FULL_LOOKS)
        self._boot_log = BootLogCopies(memory)

    @property
    def reference(self) -> bytes | None:
        """The digest of the reference image in use; None while the kernel is not recognised."""
        return None if self._guest is None else self._guest.reference.digest

    def look(self, *, everything: bool = False) -> Look:
        """Measure once. What seems violated counts only if it is so at one moment of the guest.

        `everything`: collect all facts there are, also those that no rule reads. Never raises for anything
        that the guest does: what cannot be read is inconclusive.
        """
        scripts = self._engine.bundle.scripts
        self.follow_boot()
        more = FACTS if everything else ()
        facts = dict(self._facts(scripts, more=more))
        results = self._engine.judge(facts)
        suspects = {result.name for result in results if result.outcome is Outcome.VIOLATED}
        if suspects:
            again = self._facts_of_one_moment(suspects)
            confirmed = {result.name: result for result in self._engine.judge(again, only=suspects)}
            results = tuple(confirmed.get(result.name, result) for result in results)
            facts |= again
        else:
            self._registers.forget_copies()  # of a look that found something
        return Look(results, self.reference, facts, tuple(sorted(suspects)))

    def follow_boot(self) -> bool:
        """Copy the firmware's event log while the guest boots; tells whether to do so again in a moment."""
        return self._guest is None and self._boot_log.take()

    def recognise(self) -> bool:
        """Try to find the kernel; return whether it is known and running."""
        try:
            self._refreshed(self._cpus())
        except UnavailableError:
            return False
        return True

    def forget_boot(self, *, counted: bool) -> None:
        """Forget what an earlier boot of the guest left: it was started anew.

        If its boots are `counted`, each is told so. A kernel that is not recognised for a look, and then
        is again, is still the one that was looked at first: what it was found to be then counts on.
        """
        self._boot_log.forget()
        self._guest = self._lost = None
        self._boots_are_counted = counted

    def boot_evidence(self, quote: QuoteEvidence | None, *, binding: bytes) -> BootEvidence:
        """Return the event log that replays onto `quote` (extraData `binding`), and the reference in use.

        A log that does not replay is left out: a guest that spoils its log in memory loses the
        level that the log would have proven, and nothing else.
        """
        self.recognise()
        log = None if quote is None else self._matching_log(quote, binding)
        return BootEvidence(log, self.reference)

    def _facts_of_one_moment(self, names: Collection[str]) -> Mapping[str, object]:
        scripts = [script for script in self._engine.bundle.scripts if script.name in names]
        try:
            return self._moments.look(
                lambda moment: self._facts(scripts, at_rest=True, moment=moment),
                paused=lambda: self._facts(
                    scripts, at_rest=True, fresh=True, seconds=_QUERY_SECONDS_PAUSED, clock=time.monotonic
                ),
                device_state=any(_SAVED_REGISTERS in script.facts for script in scripts),
                enough=lambda facts: self._all_hold(facts, names),
            )
        except UnavailableError as error:
            return _unavailable(
                [name for script in scripts for name in (*script.facts, *script.asked)], error
            )

    def _all_hold(self, facts: Mapping[str, object], names: Collection[str]) -> bool:
        results = self._engine.judge(facts, only=names)
        return all(result.outcome is Outcome.HOLDS for result in results)

    def _facts(
        self,
        scripts: Sequence[Script],
        *,
        more: Iterable[str] = (),
        moment: Moment | None = None,
        at_rest: bool = False,
        fresh: bool = False,
        seconds: float = _QUERY_SECONDS,
        clock: Callable[[], float] = time.thread_time,
    ) -> Mapping[str, object]:
        """Return what the scripts read: built-in facts (and `more`), and answers to queries of their own.

        Registers are those of `moment`, or of now; what QEMU saves of them may then be some seconds old,
        unless `fresh`. What is looked at does not change meanwhile if it is `at_rest`.
        """
        names = {fact for script in scripts for fact in script.facts} | set(more)
        queries = {name: query for script in scripts for name, query in script.asked.items()}
        known = self._guest
        before = known.tables_in_order() if _PAGE_TABLES in names and known and moment is None else None
        try:
            guest = self._refreshed(self._cpus() if moment is None else moment.cpus)
        except AffiantError as error:
            return _unavailable((*names, *queries), error)
        if _SAVED_REGISTERS in names:
            guest = guest.with_saved(self._registers.saved(fresh=fresh) if moment is None else moment.saved)
        if before is not None and known is not None and guest.program is known.program:
            guest = guest.with_tables(before)
        if at_rest:
            guest = guest.at_rest()
        else:
            self._forget_now_and_then(guest)
        order = sorted(names)
        _LOT.shuffle(order)  # what is looked at first is not known before
        seen = collect(guest, order) | answer_queries(guest, queries, seconds=seconds, clock=clock)
        if is_booting(guest.program, guest.patience, time.monotonic()):
            # What was saved now is of processors that are still being set up: not to be told of later.
            self._registers.forget()
        return {name: fact.to_json() for name, fact in seen.items()}

    def _forget_now_and_then(self, guest: Guest) -> None:
        """Have everything be judged from the reference alone, at moments that nobody foresees."""
        self._looks_to_full -= 1
        if self._looks_to_full <= 0:
            guest.forget_verified()
            self._looks_to_full = _LOT.randint(*_FULL_LOOKS)

    def _cpus(self) -> list[CpuState]:
        return self._registers.listed()

    def _refreshed(self, cpus: list[CpuState]) -> Guest:
        if self._guest is not None:
            try:
                self._guest = self._guest.refresh(cpus)
            except UnavailableError:
                self._lost = self._guest if self._boots_are_counted else None
                self._guest = None
        if self._guest is None:
            self._registers.forget()
            self._guest = self._recognised(cpus)
            self._lost = None
        return self._guest

    def _recognised(self, cpus: list[CpuState]) -> Guest:
        reason = UnavailableError("there is no reference image of any kernel")
        for path in self._references.paths()[:_MOST_REFERENCES]:
            try:
                if path not in self._loaded:
                    self._loaded[path] = ReferenceImage.load(path)
                return Guest.open(self._memory, self._loaded[path], cpus, before=self._lost)
            except UnavailableError as error:
                reason = error
            except EvidenceError as error:
                _LOG.warning("the reference image %s is not used: %s", path.name, error)
        raise reason

    def _matching_log(self, quote: QuoteEvidence, binding: bytes) -> bytes | None:
        try:
            verified = verify_quote(
                quote.attest,
                quote.signature,
                attestation_key=verify_attestation_key(quote.ak_public),
                expected_extra_data=binding,
                pcrs=dict(quote.pcrs),
            )
        except EvidenceError as error:
            _LOG.warning("the quote does not verify: %s", error)
            return None
        boot_pcrs = [pcr for pcr in verified.pcrs if pcr not in _DYNAMIC_PCRS]
        for candidate in (*self._boot_log.candidates(), *self._logs_in_memory()):
            try:
                replay_event_log(parse_event_log(candidate.data), verified, required_pcrs=boot_pcrs)
            except EvidenceError as error:
                _LOG.info("event log at %#x (%s) is not it: %s", candidate.address, candidate.source, error)
                continue
            self._boot_log.prove(candidate)
            return candidate.data
        return None

    def _logs_in_memory(self) -> Iterator[EventLogCandidate]:
        """Look through all of memory only when what was kept is not enough."""
        yield from find_event_logs(self._memory, self._guest)


def _unavailable(names: Iterable[str], error: AffiantError) -> Mapping[str, object]:
    return {name: {"unavailable": str(error)} for name in names}
