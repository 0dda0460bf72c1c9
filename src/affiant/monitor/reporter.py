"""Runtime reports of one session: numbered, chained, signed by the session key."""

from __future__ import annotations

from affiant.model.passport import Passport
from affiant.model.runtime_report import RuntimeReport
from affiant.monitor.journal import Journal
from affiant.monitor.rules import MonitorRules
from affiant.monitor.session import Session
from affiant.wire.cose import parse_sign1
from affiant.wire.passport import encode_passport
from affiant.wire.report_bounds import fit
from affiant.wire.runtime_report import sign_runtime_report

__all__ = ["Reporter"]

_VALID_SECONDS = 300


class Reporter:
    """Signs what the journal holds, in the name of one session.

    Reports are numbered from 1 and each names the digest of the one before, whoever asked for it, so
    that a copied session key or a forked monitor shows.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sequence = 0
        self._previous = bytes(32)

    @property
    def session(self) -> Session:
        """The session in whose name this reporter signs."""
        return self._session

    def report(
        self,
        journal: Journal,
        *,
        nonce: bytes,
        audience: str,
        rules: MonitorRules,
        reference: bytes | None,
        now_ms: int,
    ) -> bytes:
        """Return a signed runtime report (COSE_Sign1) for `audience`, over its `nonce`.

        `now_ms` is the monitor's monotonic time. The report ends with the session at the latest.
        """
        session = self._session
        # The session was made after the challenge that the clock began with, within the same second maybe.
        issued_at = max(session.clock.now(now_ms), session.report.issued_at)
        report = RuntimeReport(
            audience=audience,
            nonce=nonce,
            issued_at=issued_at,
            expires_at=min(issued_at + _VALID_SECONDS, session.report.expires_at),
            device=session.report.device,
            session_report=session.report.digest,
            sequence=self._sequence + 1,
            previous=self._previous,
            elapsed_ms=session.clock.elapsed_ms(now_ms),
            rules=rules.used,
            reference=reference,
            assertions=journal.standings(now_ms=now_ms),
            violations=journal.violations(origin_ms=session.clock.origin_ms),
            digest=b"",
            freshness=rules.freshness(now=issued_at, now_ms=now_ms),
        )
        signed = sign_runtime_report(fit(report), key=session.key, certificates=session.response.certificates)
        self._sequence += 1
        self._previous = parse_sign1(signed, name="runtime report", max_size=len(signed)).digest
        return signed

    def passport(
        self,
        journal: Journal,
        *,
        nonce: bytes,
        audience: str,
        rules: MonitorRules,
        reference: bytes | None,
        now_ms: int,
    ) -> bytes:
        """Return the session report and a new runtime report as one passport."""
        runtime_report = self.report(
            journal, nonce=nonce, audience=audience, rules=rules, reference=reference, now_ms=now_ms
        )
        return encode_passport(Passport(self._session.response.session_report, runtime_report))
