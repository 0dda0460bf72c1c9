"""The runtime report: an EAT by the session key, one result for each assertion.

Outcomes travel in EAT's `measres` (RFC 9711, section 4.2.17): holds is success (1), violated fail
(2), inconclusive not-run (3), not applicable absent (4). The details of each stand at the same
position in our own claim, so that nothing is said twice.

The session certificate and its CA travel in the protected header. Reading has two steps, because a
relying party wants to tell damaged bytes from a report that is none of its business:
`read_runtime_report` finds that the report is what its own first certificate's key signed;
`verify_runtime_report` also that this key is certified, and that the report answers the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from affiant.model.errors import ForgedError
from affiant.model.finding import Finding
from affiant.model.outcome import Mode, Outcome
from affiant.model.runtime_report import AssertionReport, RulesFreshness, RuntimeReport, Violation
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.certificates import (
    SessionCertificate,
    verify_session_chain,
)
from affiant.wire.claims import (
    AUDIENCE,
    EAT_NONCE,
    EAT_PROFILE,
    EXPIRES,
    ISSUED,
    MEASRES,
    SHA256,
    UEID,
    check_period,
    read_tagged_digest,
    read_ueid,
)
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.self_signed import (
    read_rules_used,
    read_self_signed,
    sign_with_chain,
    write_rules_used,
)
from affiant.wire.writing import encode_checked

__all__ = [
    "MAX_ASSERTIONS",
    "MAX_FINDINGS",
    "MAX_RUNTIME_REPORT",
    "MAX_RUNTIME_SECONDS",
    "MAX_TEXT",
    "MAX_VIOLATIONS",
    "SelfSignedRuntimeReport",
    "VerifiedRuntimeReport",
    "read_runtime_report",
    "read_violation",
    "sign_runtime_report",
    "verify_runtime_report",
    "write_violation",
]

MAX_RUNTIME_REPORT = 768 << 10
"""The longest runtime report, in bytes."""

MAX_RUNTIME_SECONDS = 300
"""The longest time between a report's issue and expiry."""

MAX_ASSERTIONS, MAX_VIOLATIONS, MAX_FINDINGS, MAX_TEXT = 4096, 1024, 16, 256
"""How many assertions, violations, findings of one violation, and characters of a finding's text."""

_PROFILE = "tag:affiant.dev,2026:affiant/runtime#1"
_NAME = "runtime report"
_SYSTEM = "affiant"
_MAX_NAME = 128

_AFFIANT = -79120
_SESSION, _RULES, _SEQUENCE, _PREVIOUS, _DETAILS, _VIOLATIONS, _ELAPSED, _REFERENCE, _FRESHNESS = range(1, 10)

_RESULTS = {Outcome.HOLDS: 1, Outcome.VIOLATED: 2, Outcome.INCONCLUSIVE: 3, Outcome.NOT_APPLICABLE: 4}
_OUTCOMES = {result: outcome for outcome, result in _RESULTS.items()}
_MODES = {0: Mode.AUDIT, 1: Mode.ENFORCE}
_MODE_NUMBERS = {mode: number for number, mode in _MODES.items()}


@dataclass(frozen=True, slots=True)
class SelfSignedRuntimeReport:
    """What somebody said, unchanged; who that is, nobody has checked.

    `said` is signed by the key of the first of `certificates` (DER), which may be anybody's.
    """

    said: RuntimeReport
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifiedRuntimeReport:
    """A runtime report by a certified session key: made by `verify_runtime_report` alone."""

    report: RuntimeReport
    certificate: SessionCertificate


def sign_runtime_report(report: RuntimeReport, *, key: Signer, certificates: Sequence[bytes]) -> bytes:
    """Return the message of `report`, whose `digest` is not read: the bytes define it.

    `key` is the session key, `certificates` (DER) its certificate and the session CA. Raises
    `ValueError` beyond the bounds; `affiant.wire.report_bounds.fit` brings a report within them.
    """
    ours: dict[Key, Item] = {
        _SESSION: [SHA256, report.session_report],
        _RULES: write_rules_used(report.rules),
        _SEQUENCE: report.sequence,
        _PREVIOUS: report.previous,
        _DETAILS: [_write_details(each) for each in report.assertions],
        _VIOLATIONS: [write_violation(each) for each in report.violations],
        _ELAPSED: report.elapsed_ms,
    }
    if report.reference is not None:
        ours[_REFERENCE] = report.reference
    if (freshness := report.freshness) is not None:
        ours[_FRESHNESS] = [freshness.age_ms, freshness.expired, freshness.trouble]
    claims: dict[Key, Item] = {
        AUDIENCE: report.audience,
        EXPIRES: report.expires_at,
        ISSUED: report.issued_at,
        EAT_NONCE: report.nonce,
        UEID: report.device,
        EAT_PROFILE: _PROFILE,
        _AFFIANT: ours,
    }
    if report.assertions:
        # RFC 9711 has no empty list of results: without assertions the claim is left out.
        claims[MEASRES] = [[_SYSTEM, [[each.name, _RESULTS[each.outcome]] for each in report.assertions]]]
    payload = encode_checked(claims, lambda data: _read(data, digest=b""))
    return sign_with_chain(
        payload, key=key, certificates=certificates, name=_NAME, max_size=MAX_RUNTIME_REPORT
    )


def read_runtime_report(data: bytes) -> SelfSignedRuntimeReport:
    """Return what a report says and the certificates it brings.

    What holds then:
    - it follows its format and bounds; no assertion comes twice, none holds without having looked;
    - the key of its first certificate signed it, certificates included: it is unchanged.

    Raises `MalformedError` or `ForgedError` otherwise.
    """
    verified = read_self_signed(data, name=_NAME, max_size=MAX_RUNTIME_REPORT)
    return SelfSignedRuntimeReport(_read(verified.payload, digest=verified.digest), verified.certificates)


def verify_runtime_report(
    report: SelfSignedRuntimeReport | bytes,
    *,
    root: x509.Certificate,
    now: int,
    expected_nonce: bytes,
    expected_audience: str | None,
) -> VerifiedRuntimeReport:
    """Return the report of a monitor that the service vouches for.

    What holds then, beyond `read_runtime_report`:
    - its session certificate leads to `root`, at `now`;
    - it answers to `expected_nonce` and, unless that is None, to `expected_audience`;
    - `now` is before its expiry and not more than `CLOCK_LEEWAY` seconds before its issue;
    - it was issued while the certificate was valid, and is itself valid for five minutes at most.

    Which session report, device and reference it speaks of is for the caller to compare. Raises
    `MalformedError` or `ForgedError` otherwise.
    """
    if isinstance(report, bytes):
        report = read_runtime_report(report)
    said = report.said
    certificate = verify_session_chain(report.certificates, root=root, now=now)
    if said.nonce != expected_nonce:
        raise ForgedError(f"{_NAME}: answers to another nonce")
    if expected_audience is not None and said.audience != expected_audience:
        raise ForgedError(f"{_NAME}: made for {said.audience!r}, not for {expected_audience!r}")
    check_period(_NAME, issued_at=said.issued_at, expires_at=said.expires_at, now=now)
    if not certificate.not_before <= said.issued_at <= certificate.not_after:
        raise ForgedError(f"{_NAME}: not issued while its session certificate is valid")
    return VerifiedRuntimeReport(said, certificate)


def _write_details(assertion: AssertionReport) -> Item:
    return [
        assertion.version,
        _MODE_NUMBERS[assertion.mode],
        assertion.age_ms,
        assertion.looked_at,
        assertion.reason,
    ]


def write_violation(violation: Violation) -> Item:
    """Return the row of a violation, for `read_violation`."""
    return [
        violation.assertion,
        violation.first_seen,
        violation.last_seen,
        violation.last_good,
        violation.standing,
        [
            [each.subject, each.expected, each.found, each.owner, each.technique]
            for each in violation.findings
        ],
        violation.more,
        _MODE_NUMBERS[violation.mode],
    ]


def _read(payload: bytes, *, digest: bytes) -> RuntimeReport:
    fields = Fields.of_map(cbor.decode(payload, max_size=MAX_RUNTIME_REPORT, name=_NAME), _NAME)
    fields.constant(EAT_PROFILE, "profile", _PROFILE)
    ours = fields.map(_AFFIANT, "details")
    report = RuntimeReport(
        audience=fields.text(AUDIENCE, "audience"),
        nonce=fields.octets(EAT_NONCE, "nonce", size=32),
        issued_at=fields.integer(ISSUED, "issue time"),
        expires_at=fields.integer(EXPIRES, "expiry"),
        device=read_ueid(fields),
        session_report=read_tagged_digest(ours, _SESSION, "session report"),
        sequence=ours.integer(_SEQUENCE, "sequence", minimum=1),
        previous=ours.digest(_PREVIOUS, "previous report"),
        elapsed_ms=ours.integer(_ELAPSED, "elapsed time"),
        rules=read_rules_used(ours, _RULES),
        reference=ours.optional(ours.digest, _REFERENCE, "reference"),
        assertions=_read_assertions(fields, ours),
        violations=ours.each(_VIOLATIONS, "violations", read_violation, maximum=MAX_VIOLATIONS),
        digest=digest,
        freshness=_read_freshness(ours) if _FRESHNESS in ours else None,
    )
    ours.close()
    fields.close()
    if not 0 < report.expires_at - report.issued_at <= MAX_RUNTIME_SECONDS:
        raise fields.error("expiry", f"not within {MAX_RUNTIME_SECONDS} s of the issue")
    if (report.sequence == 1) != (report.previous == bytes(32)):
        raise ours.error("previous report", "zeros belong to the first report, and to it alone")
    return report


def _read_freshness(ours: Fields) -> RulesFreshness:
    row = ours.array(_FRESHNESS, "freshness of the rules", length=3)
    return RulesFreshness(
        age_ms=row.nullable(row.integer, 0, "age"),
        expired=row.boolean(1, "expired"),
        trouble=row.text(2, "trouble", maximum=MAX_TEXT),
    )


def _read_assertions(fields: Fields, ours: Fields) -> tuple[AssertionReport, ...]:
    results: tuple[tuple[str, Outcome], ...] = ()
    if MEASRES in fields:
        group = fields.array(MEASRES, "results", length=1).array(0, "group", length=2)
        group.constant(0, "system", _SYSTEM)
        results = group.each(1, "results", _read_result, minimum=1, maximum=MAX_ASSERTIONS)
    if len({name for name, _ in results}) != len(results):
        raise fields.error("results", "an assertion twice")
    details = ours.array(_DETAILS, "assertions", length=len(results))
    return tuple(
        _read_assertion(details, index, name, outcome) for index, (name, outcome) in enumerate(results)
    )


def _read_result(results: Fields, index: int) -> tuple[str, Outcome]:
    pair = results.array(index, str(index), length=2)
    name = pair.text(0, "name", minimum=1, maximum=_MAX_NAME)
    return name, _OUTCOMES[pair.integer(1, "result", minimum=1, maximum=4)]


def _read_assertion(details: Fields, index: int, name: str, outcome: Outcome) -> AssertionReport:
    row = details.array(index, str(index), length=5)
    looked_at = row.integer(3, "looked at")
    if outcome is Outcome.HOLDS and looked_at < 1:
        raise row.error("looked at", "nothing looked at proves nothing, yet it holds")
    return AssertionReport(
        name=name,
        version=row.integer(0, "version"),
        mode=_MODES[row.integer(1, "mode", maximum=1)],
        outcome=outcome,
        age_ms=row.integer(2, "age"),
        looked_at=looked_at,
        reason=row.text(4, "reason", maximum=MAX_TEXT),
    )


def read_violation(violations: Fields, index: int) -> Violation:
    """Return the violation at a position of an array. Raises `MalformedError` beyond the bounds above."""
    row = violations.array(index, str(index), length=8)
    violation = Violation(
        assertion=row.text(0, "assertion", minimum=1, maximum=_MAX_NAME),
        first_seen=row.integer(1, "first seen"),
        last_seen=row.integer(2, "last seen"),
        last_good=row.nullable(row.integer, 3, "last good"),
        standing=row.boolean(4, "standing"),
        findings=row.each(5, "findings", _read_finding, minimum=1, maximum=MAX_FINDINGS),
        more=row.integer(6, "more"),
        mode=_MODES[row.integer(7, "mode", maximum=1)],
    )
    if violation.last_seen < violation.first_seen:
        raise row.error("last seen", "before it was first seen")
    return violation


def _read_finding(findings: Fields, index: int) -> Finding:
    row = findings.array(index, str(index), length=5)
    return Finding(
        subject=row.text(0, "subject", minimum=1, maximum=MAX_TEXT),
        expected=row.text(1, "expected", maximum=MAX_TEXT),
        found=row.text(2, "found", maximum=MAX_TEXT),
        owner=row.text(3, "owner", maximum=MAX_TEXT),
        technique=row.text(4, "technique", maximum=MAX_TEXT),
    )
