"""The runtime report: strict in form, bounded in size, and never silenced by too much to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from affiant.model.errors import ForgedError, MalformedError
from affiant.model.finding import Finding
from affiant.model.outcome import Mode, Outcome
from affiant.model.runtime_report import AssertionReport, RulesFreshness, RuntimeReport, Violation
from affiant.wire import cbor
from affiant.wire.cose import parse_sign1, sign1
from affiant.wire.report_bounds import fit
from affiant.wire.runtime_report import (
    MAX_ASSERTIONS,
    MAX_FINDINGS,
    MAX_RUNTIME_REPORT,
    MAX_TEXT,
    MAX_VIOLATIONS,
    read_runtime_report,
    sign_runtime_report,
    verify_runtime_report,
)
from tests.unit.wire import world
from tests.unit.wire.world import NOW, ROOT


def round_trip(report: RuntimeReport) -> RuntimeReport:
    verified = verify_runtime_report(
        world.sign_runtime(report), root=ROOT, now=NOW, expected_nonce=world.NONCE, expected_audience=None
    )
    return replace(verified.report, digest=b"")


@pytest.mark.parametrize(
    "bend",
    [
        {"assertions": ()},
        {"reference": None},
        {"audience": ""},
        {"sequence": 2, "previous": b"\x99" * 32},
        {
            "violations": (
                world.VIOLATION,
                replace(world.VIOLATION, last_good=None, standing=True, more=7, mode=Mode.AUDIT),
            )
        },
    ],
)
def test_reports_round_trip(bend: dict[str, Any]) -> None:
    report = replace(world.RUNTIME_REPORT, digest=b"", **bend)
    assert round_trip(report) == report


def test_the_report_says_nothing_twice() -> None:
    """Outcomes travel in measres only; success, fail, not-run and absent are EAT's numbers."""
    payload = parse_sign1(world.RUNTIME_REPORT_BYTES, name="report", max_size=1 << 20).payload
    claims = cbor.decode(payload, max_size=1 << 20)
    assert isinstance(claims, dict)
    assert claims[274] == [
        [
            "affiant",
            [
                ["kernel_text_intact", 1],
                ["syscall_table_intact", 1],
                ["modules_listed", 3],
                ["ftrace_off", 4],
            ],
        ]
    ]


FINDING = world.VIOLATION.findings[0]
OUT_OF_BOUNDS: dict[str, dict[str, Any]] = {
    "a period of more than five minutes": {"expires_at": NOW + 301},
    "no period": {"expires_at": NOW},
    "a short nonce": {"nonce": bytes(31)},
    "sequence zero": {"sequence": 0},
    "a first report with a predecessor": {"previous": b"\x01" * 32},
    "a later report without one": {"sequence": 2},
    "an assertion twice": {"assertions": (world.ASSERTION, world.ASSERTION)},
    "a nameless assertion": {"assertions": (replace(world.ASSERTION, name=""),)},
    "a name of 129 characters": {"assertions": (replace(world.ASSERTION, name="x" * 129),)},
    "a long reason": {"assertions": (replace(world.ASSERTION, reason="x" * 257),)},
    "holds without looking": {"assertions": (replace(world.ASSERTION, looked_at=0),)},
    "a negative age": {"assertions": (replace(world.ASSERTION, age_ms=-1),)},
    "a violation without findings": {"violations": (replace(world.VIOLATION, findings=()),)},
    "17 findings": {"violations": (replace(world.VIOLATION, findings=(FINDING,) * 17),)},
    "a long text": {"violations": (replace(world.VIOLATION, findings=(replace(FINDING, found="x" * 257),)),)},
    "seen last before first": {"violations": (replace(world.VIOLATION, last_seen=4999),)},
    "a device of another type": {"device": b"\x03" + bytes(16)},
    "too many violations": {"violations": (world.VIOLATION,) * (MAX_VIOLATIONS + 1)},
}


@pytest.mark.parametrize("bend", OUT_OF_BOUNDS)
def test_reports_out_of_bounds_are_misuse(bend: str) -> None:
    with pytest.raises(ValueError, match="runtime report"):
        world.sign_runtime(replace(world.RUNTIME_REPORT, **OUT_OF_BOUNDS[bend]))


def bent_claims(*path: int, value: object) -> bytes:
    return world.bent(
        world.RUNTIME_REPORT_BYTES,
        *path,
        value=value,
        key=world.SESSION_KEY,
        certificates=world.AUTHORITY.session_chain,
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((274,), [], "results"),
        ((274,), [["other", []]], "system"),
        ((274,), [["affiant", []]], "results"),
        ((274, 0, 1, 0, 1), 0, "result"),
        ((274, 0, 1, 0, 1), 5, "result"),
        ((274, 0, 1, 1, 0), "kernel_text_intact", "twice"),
        ((274, 0, 1), [["kernel_text_intact", 1]], "assertions"),
        ((-79120, 5), [], "assertions"),
        ((-79120, 5, 0, 1), 2, "mode"),
        ((-79120, 5, 0, 3), 0, "nothing looked at"),
        ((-79120, 1, 0), -16, "algorithm"),
        ((-79120, 2), ["base", 7], "rules"),
        ((-79120, 9), 1, "freshness of the rules: not an array"),
        ((-79120, 9), [1, False], "freshness of the rules"),
        ((-79120, 9), [-1, False, ""], "age"),
        ((-79120, 9), [1, 0, ""], "expired"),
        ((-79120, 9), [1, False, "x" * 257], "trouble"),
        ((-79120, 10), 1, "unknown field"),
        ((265,), "tag:affiant.dev,2026:affiant/enclave#1", "profile"),
    ],
)
def test_bent_claims_are_malformed(path: tuple[int, ...], value: object, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        read_runtime_report(bent_claims(*path, value=value))


def test_the_chain_is_signed() -> None:
    """Whoever swaps the certificates swaps what the session key signed."""
    message = parse_sign1(world.RUNTIME_REPORT_BYTES, name="report", max_size=1 << 20)
    other = sign1(
        message.payload,
        key=world.STRANGER_KEY,
        typ=message.typ,
        certificates=world.AUTHORITY.session_chain,
    )
    with pytest.raises(ForgedError, match="signature"):
        read_runtime_report(other)
    bare = sign1(message.payload, key=world.SESSION_KEY, typ=message.typ)
    with pytest.raises(ForgedError, match="no certificate"):
        read_runtime_report(bare)


def test_reading_alone_trusts_nobody() -> None:
    """A report under a foreign CA can be read as somebody's word, and is not verified."""
    data = world.sign_runtime(world.RUNTIME_REPORT, world.OTHER_AUTHORITY)
    assert read_runtime_report(data).said.nonce == world.NONCE
    with pytest.raises(ForgedError, match="another root"):
        world.accept_runtime(data)


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        ({"root": world.OTHER_AUTHORITY.root}, "another root"),
        ({"expected_nonce": bytes(32)}, "another nonce"),
        ({"expected_audience": "bank.example"}, "not for 'bank.example'"),
        ({"now": NOW + 60}, "expired"),
        ({"now": NOW + 3541}, "expired"),
    ],
)
def test_other_expectations_are_refused(bend: dict[str, Any], words: str) -> None:
    expectations: dict[str, Any] = {
        "root": ROOT,
        "now": NOW,
        "expected_nonce": world.NONCE,
        "expected_audience": None,
    }
    verify_runtime_report(world.RUNTIME_REPORT_BYTES, **expectations)
    with pytest.raises(ForgedError, match=words):
        verify_runtime_report(world.RUNTIME_REPORT_BYTES, **expectations | bend)


def test_a_report_issued_outside_its_certificate_is_refused() -> None:
    early = replace(world.RUNTIME_REPORT, issued_at=NOW - 61, expires_at=NOW + 60)
    with pytest.raises(ForgedError, match="while its session certificate"):
        world.accept_runtime(world.sign_runtime(early))


def test_a_report_within_bounds_is_left_as_it_is() -> None:
    report = replace(world.RUNTIME_REPORT, violations=(world.VIOLATION,))
    assert fit(report) == report


def flood(violations: int, findings: int, text: str) -> RuntimeReport:
    finding = Finding(text, text, text, text, text)
    return replace(
        world.RUNTIME_REPORT,
        assertions=tuple(
            AssertionReport(f"assertion_{n}", 1, Mode.ENFORCE, Outcome.INCONCLUSIVE, 0, 0, text)
            for n in range(MAX_ASSERTIONS if violations == MAX_VIOLATIONS else 10)
        ),
        violations=tuple(
            Violation(f"assertion_{n}", 1, 2, None, True, (finding,) * findings, 5) for n in range(violations)
        ),
    )


@pytest.mark.parametrize("text", ["x" * 5000, "\U0001f600" * 256, "\udc80" * 10, "\0\x1b[2J", "short"])
@pytest.mark.parametrize(("violations", "findings"), [(1, 1000), (10, 20), (200, 16), (MAX_VIOLATIONS, 16)])
def test_a_flood_of_findings_cannot_silence_the_monitor(violations: int, findings: int, text: str) -> None:
    report = fit(flood(violations, findings, text))
    data = world.sign_runtime(report)
    assert len(data) <= MAX_RUNTIME_REPORT
    said = world.accept_runtime(data)
    assert len(said.violations) == violations
    for violation in said.violations:
        assert 1 <= len(violation.findings) <= MAX_FINDINGS
        assert len(violation.findings) + violation.more == findings + 5
        assert all(len(each.subject) <= MAX_TEXT for each in violation.findings)


def test_a_report_with_a_text_that_no_database_takes_is_no_report() -> None:
    """What is not made by `fit` is not signed, and nobody who reads one has such a text in hand."""
    bent = replace(world.RUNTIME_REPORT, freshness=RulesFreshness(None, True, "status 500\0"))
    with pytest.raises(ValueError, match="trouble: a control character"):
        world.sign_runtime(bent)


def test_control_characters_in_what_a_guest_made_up_are_replaced() -> None:
    said = world.accept_runtime(world.sign_runtime(fit(flood(1, 1, "a\r\nb\tc\0\x1b[2J\x9b\udc80"))))
    assert said.violations[0].findings[0].subject == "a  b c??[2J??"


def test_too_long_a_report_is_misuse() -> None:
    within_each_bound = flood(200, 16, "x" * 256)
    with pytest.raises(ValueError, match="at most"):
        sign_runtime_report(
            within_each_bound, key=world.SESSION_KEY, certificates=world.AUTHORITY.session_chain
        )


def test_a_monitor_without_published_rules_says_nothing_of_their_freshness() -> None:
    data = world.sign_runtime(replace(world.RUNTIME_REPORT, freshness=None))
    assert world.accept_runtime(data).freshness is None


def test_trouble_with_the_rules_is_cut_to_what_a_report_holds() -> None:
    """Whatever a repository or relay makes of a message, the report can be written."""
    told = replace(world.RUNTIME_REPORT, freshness=RulesFreshness(None, True, "x\ud800" * 5000))
    freshness = world.accept_runtime(world.sign_runtime(fit(told))).freshness
    assert freshness is not None
    assert (freshness.age_ms, freshness.expired, len(freshness.trouble)) == (None, True, 256)
