"""The monitor's life: keep a session, measure at random intervals and on request, answer, report."""

from __future__ import annotations

import logging
import secrets

from cryptography import x509

from affiant.model.errors import AffiantError
from affiant.monitor.clock import monotonic_ms
from affiant.monitor.courier_client import CourierClient, CourierClosedError, ServiceRefusedError
from affiant.monitor.fact_keeper import FactKeeper
from affiant.monitor.heartbeat import Heartbeat
from affiant.monitor.journal import Journal
from affiant.monitor.launcher_client import LauncherClient
from affiant.monitor.recollection import Recollection
from affiant.monitor.reporter import Reporter
from affiant.monitor.rules import MonitorRules
from affiant.monitor.session import RulesTooOldError, SessionMaker
from affiant.monitor.settings import MonitorSettings
from affiant.monitor.watch import KernelWatch, Look
from affiant.wire.courier import Ask
from affiant.wire.launcher_requests import Generation

__all__ = ["Monitor"]

_LOG = logging.getLogger(__name__)

# A session that failed is tried again after 1 s, then 2, 4, 8, ... up to a minute.
_FIRST_RETRY_MS, _LAST_RETRY_MS = 1_000, 60_000
# While the guest is still booting, what was not there for the first session may be there now.
_BOOT_POLL_MS = 2_000
# While it boots, its firmware's event log may be there for a second after it is whole, and then overwritten.
_BOOT_LOG_POLL_MS = 250
# How often the launcher is asked whether the guest was started anew.
_GUEST_POLL_MS = 1_000
# 403: the service has ended the session, or never knew it.
_SESSION_IS_OVER = frozenset({403})


class Monitor:
    """One monitor of one guest, from its start to the end of its channels.

    A session speaks for one boot of the guest: when the launcher counts a new D-RTM launch, the journal
    and the session start anew. A monitor that is started within a boot goes on with the violations that the
    one before it saw; where they cannot be had, it ends, because it cannot speak for this boot.

    When the kernel becomes known, or another becomes known, the session is renewed, so that its report names
    the reference that the runtime reports compare with.
    """

    def __init__(
        self,
        *,
        settings: MonitorSettings,
        launcher: LauncherClient,
        courier: CourierClient,
        watch: KernelWatch,
        rules: MonitorRules,
        sessions: SessionMaker,
        root: x509.Certificate,
        keeper: FactKeeper | None = None,
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        courier.meanwhile = self._while_waiting
        self._courier = courier
        self._watch = watch
        self._sessions = sessions
        self._root = root
        self._keeper = keeper
        self._rules = rules
        self._device: bytes | None = None
        self._journal = Journal()
        self._recollection = Recollection(launcher)
        self._generation = -1
        self._reporter: Reporter | None = None
        self._heartbeat: Heartbeat | None = None
        self._trouble = "no session yet"
        self._retry_ms = _FIRST_RETRY_MS
        self._patience_ms = _FIRST_RETRY_MS
        self._session_born_ms = 0
        self._session_due = 0
        self._measure_due = 0
        self._boot_log_at = 0
        self._looked_at: bytes | None = None  # the reference of the last look, which the journal tells of

    def run(self) -> None:
        """Serve until a channel closes; raises `CourierClosedError` or `UnavailableError` then.

        Raises `MalformedError` when what was seen of this boot before cannot be read.
        """
        while True:
            self._follow_the_guest()
            self._follow_the_rules()
            self._retire_session()
            if monotonic_ms() >= self._session_due:
                self._renew_session()
            if monotonic_ms() >= self._measure_due:
                self._measure()
            if self._heartbeat is not None and monotonic_ms() >= self._heartbeat.due_ms:
                self._beat(self._heartbeat)
            self._answer_one(until_ms=min(self._measure_due, self._session_due, self._boot_log_due()))

    def _follow_the_guest(self) -> None:
        """Start anew when the guest did; what an earlier boot showed belongs to its own session."""
        generation = self._launcher.ask(Generation())
        if generation != self._generation:
            _LOG.info("boot %d of the guest begins", generation)
            self._generation = generation
            self._journal = Journal.of(self._recollection.recall(now_ms=monotonic_ms()))
            self._watch.forget_boot(counted=generation > 0)  # 0: no TPM that tells
            if self._keeper is not None:
                self._keeper.begin_boot()
            self._patience_ms = _FIRST_RETRY_MS
            self._end_session("the guest was started anew")
            self._measure_due = 0

    def _follow_the_rules(self) -> None:
        """Go on with other rules where there are any: between two looks, and told to the service at once."""
        trouble = self._rules.trouble
        if self._rules.tend(clock=self._sessions.clock, device=self._device, now_ms=monotonic_ms()):
            judging = self._rules.judging
            self._journal.follow({script.name: script.version for script in judging.scripts})
            if self._keeper is not None:
                self._keeper.use(judging)
            self._measure_due = 0
            if self._reporter is None:
                self._session_due = 0  # they may be what was missing
        elif self._rules.trouble == trouble:
            return
        if self._heartbeat is not None:
            self._heartbeat.due_ms = 0

    def _while_waiting(self) -> float:
        """Do what is due while the service is awaited, but for what the service is needed for.

        Looks go on at their own intervals, whoever withholds the service's answers. Relying parties are
        answered in the session that there is; without one, or if another is due because the kernel is
        another, their questions wait. Returns for how many seconds there is nothing more to do.
        """
        self._follow_the_guest()
        self._follow_the_rules()
        self._retire_session()
        if monotonic_ms() >= self._measure_due:
            self._measure()
        if self._reporter is not None and self._watch.reference == self._reporter.session.reference:
            question = self._courier.next_question(timeout_s=0)
            if question is not None:
                self._measure()
                self._show(question)
                return 0.0
        due = min(self._measure_due, self._boot_log_due())
        return max(0, min(due - monotonic_ms(), _GUEST_POLL_MS)) / 1_000

    def _boot_log_due(self) -> int:
        """Copy the firmware's log of a guest that boots, if it is time to; return when it is again.

        Between looks, which copy it as well, at most a tenth of the time goes into it, however much memory
        there is to be looked through.
        """
        began = monotonic_ms()
        if began >= self._boot_log_at:
            goes_on = self._watch.follow_boot()
            took = monotonic_ms() - began
            wait = max(_BOOT_LOG_POLL_MS, 9 * took) if goes_on else _GUEST_POLL_MS
            self._boot_log_at = began + took + wait
        return self._boot_log_at

    def _renew_session(self) -> None:
        generation = self._generation
        try:
            session = self._sessions.establish(rules_version=self._rules.used.version)
        except CourierClosedError:
            raise
        except RulesTooOldError as error:
            self._rules.demand(error.minimum)
            self._lack_session(error)
            return
        except AffiantError as error:
            self._lack_session(error)
            return
        if self._generation != generation:
            return  # the guest was started anew meanwhile: its evidence is of a boot that is over
        self._rules.demand(session.challenge.minimum_rules_version)
        self._device = session.report.device
        self._retry_ms = _FIRST_RETRY_MS
        self._reporter = Reporter(session)
        self._heartbeat = Heartbeat(self._courier, session, root=self._root)
        self._session_born_ms = monotonic_ms()
        self._patience_ms = min(2 * self._patience_ms, _LAST_RETRY_MS)
        left_s = session.response.refresh_by - session.clock.now(monotonic_ms())
        self._session_due = monotonic_ms() + max(1, left_s) * 1_000
        _LOG.info("session at level %d until %d", session.report.level, session.report.expires_at)

    def _lack_session(self, error: AffiantError) -> None:
        _LOG.warning("no session: %s", error)
        self._trouble = f"no session: {error}"
        self._session_due = monotonic_ms() + self._retry_ms
        self._retry_ms = min(2 * self._retry_ms, _LAST_RETRY_MS)

    def _retire_session(self) -> None:
        """End a session that has expired without another: nobody believes what is signed in its name."""
        if self._reporter is not None:
            session = self._reporter.session
            if session.clock.now(monotonic_ms()) >= session.report.expires_at - 1:
                self._end_session("it expired")

    def _end_session(self, reason: str) -> None:
        self._reporter = None
        self._heartbeat = None
        self._trouble = f"no session: {reason}"
        self._session_due = 0
        self._retry_ms = _FIRST_RETRY_MS

    def _measure(self) -> Look:
        """Look at the kernel, remember what was seen, and tell the service at once of a new violation."""
        started = monotonic_ms()
        whole = self._keeper is not None and self._reporter is not None and self._keeper.due(started)
        look = self._watch.look(everything=whole)
        known = self._journal.standing_violations()
        self._journal.record(look.results, at_ms=monotonic_ms())
        # Before any report tells of it: what was told once is told by every monitor of this boot.
        self._recollection.keep(self._journal.episodes, generation=self._generation, now_ms=monotonic_ms())
        self._looked_at = look.reference
        if self._keeper is not None and self._reporter is not None:
            self._keeper.take(look, self._reporter.session, whole=whole, now_ms=started)
        if self._heartbeat is not None and self._journal.standing_violations() - known:
            self._heartbeat.due_ms = 0
        if self._speaks_of_another(look):
            self._session_due = 0
        elif look.reference is None and self._reporter is not None:
            # It may still be booting, and have more to show in a moment; ever more slowly asked.
            self._session_due = min(self._session_due, self._session_born_ms + self._patience_ms)
        low, high = self._settings.interval_min_ms, self._settings.interval_max_ms
        interval = low + secrets.randbelow(high - low + 1)
        self._measure_due = monotonic_ms() + (interval if look.reference else min(interval, _BOOT_POLL_MS))
        _LOG.debug("measured in %d ms", monotonic_ms() - started)
        return look

    def _speaks_of_another(self, look: Look) -> bool:
        """Tell whether the session's evidence named another kernel than `look` (none, while it booted)."""
        return self._reporter is not None and look.reference != self._reporter.session.reference

    def _beat(self, heartbeat: Heartbeat) -> None:
        self._retire_session()
        if self._reporter is None:
            return
        report = self._reporter.report(
            self._journal,
            nonce=heartbeat.nonce,
            audience=heartbeat.audience,
            rules=self._rules,
            reference=self._watch.reference,
            now_ms=monotonic_ms(),
        )
        try:
            heartbeat.send(report, now_ms=monotonic_ms())
            self._rules.heard_of(heartbeat.published)
        except ServiceRefusedError as error:
            _LOG.warning("no heartbeat: %s", error)
            if error.status in _SESSION_IS_OVER:
                self._end_session("the service ended it")
        except CourierClosedError:
            raise
        except AffiantError as error:
            _LOG.warning("no heartbeat: %s", error)

    def _answer_one(self, *, until_ms: int) -> None:
        """Answer the next relying party that asks, if one does before `until_ms` or the next poll."""
        now = monotonic_ms()
        due = until_ms if self._heartbeat is None else min(until_ms, self._heartbeat.due_ms)
        question = self._courier.next_question(timeout_s=max(0, min(due - now, _GUEST_POLL_MS)) / 1_000)
        if question is not None:
            self._follow_the_guest()
            self._answer(question)

    def _answer(self, question: Ask) -> None:
        look = self._measure()
        if self._speaks_of_another(look) or (self._reporter is None and monotonic_ms() >= self._session_due):
            self._renew_session()
        self._show(question)

    def _show(self, question: Ask) -> None:
        """Answer a question with a passport of the session that there is, or with why there is none."""
        self._retire_session()
        if self._reporter is None:
            self._courier.decline(question, self._trouble)
            return
        passport = self._reporter.passport(
            self._journal,
            nonce=question.nonce,
            audience=question.audience,
            rules=self._rules,
            reference=self._looked_at,
            now_ms=monotonic_ms(),
        )
        self._courier.show(question, passport)
