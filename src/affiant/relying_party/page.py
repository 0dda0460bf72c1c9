"""A verified passport and the decision over it, for people and for programs.

Texts inside a passport may come out of a hostile guest: whatever is not printable is escaped, so
that no guest writes to the terminal of who verifies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from affiant.model.finding import Finding
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode, Outcome
from affiant.model.runtime_report import AssertionReport, RuntimeReport, Violation
from affiant.model.session import SessionReport
from affiant.relying_party.decide import Decision
from affiant.relying_party.verify import VerifiedPassport

__all__ = ["as_json", "as_lines", "printable"]


def as_lines(verified: VerifiedPassport, decision: Decision, *, in_short: bool = False) -> Iterator[str]:
    """Yield the page: verdict, level with what is missing, assertions, violations, reasons.

    `in_short`, assertions that hold are counted and not listed.
    """
    session, runtime = verified.session, verified.runtime
    yield "ACCEPTED: healthy" if decision.accepted else "REFUSED"
    yield f"device    {session.device.hex()}"
    until = _time(session.expires_at)
    yield f"session   {session.session_id.hex()}, by {printable(session.issuer)}, until {until}"
    yield from _level_lines(session)
    yield (
        f"report    number {runtime.sequence}, made {_time(runtime.issued_at)}"
        f" for {printable(runtime.audience) or 'no one named'}"
    )
    yield f"rules     {printable(runtime.rules.name)} version {runtime.rules.version}, {_freshness(runtime)}"
    yield "assertions" if runtime.assertions else "assertions: none"
    listed = [each for each in runtime.assertions if not in_short or each.outcome is not Outcome.HOLDS]
    if holding := len(runtime.assertions) - len(listed):
        yield f"  {Outcome.HOLDS.value:<15}{holding} of {len(runtime.assertions)}"
    for assertion in listed:
        yield f"  {_assertion_line(assertion)}"
    if runtime.violations:
        yield "violations in this session"
    for violation in runtime.violations:
        yield from (f"  {line}" for line in _violation_lines(violation, runtime))
    yield from _finding_lines("remarks", decision.remarks)
    yield from _finding_lines("refused because", decision.findings)


def as_json(verified: VerifiedPassport, decision: Decision) -> dict[str, object]:
    """Return the same as values for `json.dumps`; digests as hex, times as in the reports."""
    session, runtime = verified.session, verified.runtime
    return {
        "accepted": decision.accepted,
        "findings": [_finding_json(each) for each in decision.findings],
        "remarks": [_finding_json(each) for each in decision.remarks],
        "session": {
            "id": session.session_id.hex(),
            "issuer": session.issuer,
            "device": session.device.hex(),
            "issued_at": session.issued_at,
            "expires_at": session.expires_at,
            "level": session.level.value,
            "level_title": session.level.title,
            "shortfalls": [
                {"level": each.level.value, "claim": each.claim, "explanation": each.explanation}
                for each in session.shortfalls
            ],
            "claims": dict(session.claims),
            "kernel": _hex(session.kernel),
            "reference": _hex(session.reference),
        },
        "report": {
            "audience": runtime.audience,
            "issued_at": runtime.issued_at,
            "sequence": runtime.sequence,
            "elapsed_ms": runtime.elapsed_ms,
            "rules": {
                "name": runtime.rules.name,
                "version": runtime.rules.version,
                "digest": runtime.rules.digest.hex(),
                "freshness": None
                if runtime.freshness is None
                else {
                    "age_ms": runtime.freshness.age_ms,
                    "expired": runtime.freshness.expired,
                    "trouble": runtime.freshness.trouble,
                },
            },
            "assertions": [_assertion_json(each) for each in runtime.assertions],
            "violations": [_violation_json(each) for each in runtime.violations],
        },
    }


def printable(text: str) -> str:
    """Return `text` with every character that a terminal might act upon escaped."""
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in text)


def _freshness(runtime: RuntimeReport) -> str:
    freshness = runtime.freshness
    if freshness is None:
        return "in the monitor's own image"
    if freshness.age_ms is None:
        return "none newer confirmed yet"
    expired = ", EXPIRED since" if freshness.expired else ""
    return f"confirmed as the newest {freshness.age_ms / 1000:.1f} s before the report{expired}"


def _level_lines(session: SessionReport) -> Iterator[str]:
    yield f"level     {session.level.value} ({session.level.title})"
    following = SecurityLevel(min(session.level + 1, max(SecurityLevel)))
    missing = [each for each in session.shortfalls if each.level == following]
    if missing:
        yield f"          not {following.value} ({following.title}), because"
    for each in missing:
        yield f"            {printable(each.claim)}: {printable(each.explanation)}"


def _assertion_line(assertion: AssertionReport) -> str:
    mode = " (audit)" if assertion.mode is Mode.AUDIT else ""
    detail = f"{assertion.looked_at} looked at, {assertion.age_ms / 1000:.1f} s before the report"
    if assertion.outcome in (Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE):
        detail = printable(assertion.reason)
    return f"{assertion.outcome.value:<15}{printable(assertion.name)}{mode}: {detail}"


def _violation_lines(violation: Violation, runtime: RuntimeReport) -> Iterator[str]:
    standing = "still violated" if violation.standing else "repaired, and still told"
    if all(each.name != violation.assertion for each in runtime.assertions):
        standing = "no longer looked at: the rule is not among them any more"
    yield f"{printable(violation.assertion)}: {standing}"
    yield f"  first seen {_moment(violation.first_seen, runtime)}"
    yield f"  last seen  {_moment(violation.last_seen, runtime)}"
    good = "never" if violation.last_good is None else _moment(violation.last_good, runtime)
    yield f"  last good  {good}"
    for finding in violation.findings:
        about = ", ".join(printable(each) for each in (finding.owner, finding.technique) if each)
        yield f"  {printable(finding.subject)}" + (f" ({about})" if about else "")
        yield f"    expected {printable(finding.expected)}"
        yield f"    found    {printable(finding.found)}"
    if violation.more:
        yield f"  and {violation.more} more"


def _finding_lines(title: str, findings: tuple[Finding, ...]) -> Iterator[str]:
    if findings:
        yield title
    for each in findings:
        expected, found = printable(each.expected), printable(each.found)
        yield f"  {printable(each.subject)}: expected {expected}, found {found}"


def _moment(since_challenge_ms: int, runtime: RuntimeReport) -> str:
    # The report's own two times tie the monitor's monotonic clock to the service's.
    return _time(runtime.issued_at - (runtime.elapsed_ms - since_challenge_ms) // 1000)


def _time(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"second {seconds}"


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _finding_json(finding: Finding) -> dict[str, object]:
    return {
        "subject": finding.subject,
        "expected": finding.expected,
        "found": finding.found,
        "owner": finding.owner,
        "technique": finding.technique,
    }


def _assertion_json(assertion: AssertionReport) -> dict[str, object]:
    return {
        "name": assertion.name,
        "version": assertion.version,
        "mode": assertion.mode.value,
        "outcome": assertion.outcome.value,
        "age_ms": assertion.age_ms,
        "looked_at": assertion.looked_at,
        "reason": assertion.reason,
    }


def _violation_json(violation: Violation) -> dict[str, object]:
    return {
        "assertion": violation.assertion,
        "first_seen_ms": violation.first_seen,
        "last_seen_ms": violation.last_seen,
        "last_good_ms": violation.last_good,
        "standing": violation.standing,
        "mode": violation.mode.value,
        "findings": [_finding_json(each) for each in violation.findings],
        "more": violation.more,
    }
