"""Evidence is bound to its challenge and to the session key that it names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from affiant.model.errors import ForgedError, MalformedError
from affiant.model.evidence import Evidence, QuoteEvidence
from affiant.wire.enclave_report import sign_enclave_report
from affiant.wire.evidence import MAX_EVENT_LOG, quote_binding, sign_evidence, verify_evidence
from affiant.wire.seal import MAX_PLAINTEXT
from tests.unit.wire import world

CHALLENGE = world.CHALLENGE.digest


def test_what_is_missing_is_none() -> None:
    bare = replace(world.EVIDENCE, quote=None, event_log=None, reference=None)
    data = sign_evidence(bare, key=world.SESSION_KEY, challenge=CHALLENGE)
    assert verify_evidence(data, expected_challenge=CHALLENGE).evidence == bare


def test_evidence_for_another_challenge_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify_evidence(world.EVIDENCE_BYTES, expected_challenge=b"\xcc" * 32)


def test_a_host_without_the_session_key_cannot_send_evidence() -> None:
    """The enclave report of a monitor, in a collection that somebody else signed."""
    data = sign_evidence(world.EVIDENCE, key=world.STRANGER_KEY, challenge=CHALLENGE)
    with pytest.raises(ForgedError, match="signature"):
        verify_evidence(data, expected_challenge=CHALLENGE)


def test_the_key_that_signed_is_told() -> None:
    """A host can make an enclave report of its own; the appraisal sees by which key."""
    report = sign_enclave_report(
        replace(world.ENCLAVE_REPORT, session_key=world.point(world.STRANGER_KEY)), key=world.STRANGER_KEY
    )
    data = sign_evidence(
        replace(world.EVIDENCE, enclave_report=report), key=world.STRANGER_KEY, challenge=CHALLENGE
    )
    verified = verify_evidence(data, expected_challenge=CHALLENGE)
    assert verified.session_key == world.point(world.STRANGER_KEY)


def test_a_large_event_log_fits_one_seal() -> None:
    largest = Evidence(
        enclave_report=world.ENCLAVE_REPORT_BYTES,
        launch_record=bytes(1024),
        quote=QuoteEvidence(
            bytes(4096), bytes(4096), bytes(4096), tuple((index, bytes(32)) for index in range(24))
        ),
        event_log=bytes(MAX_EVENT_LOG),
        reference=bytes(32),
    )
    data = sign_evidence(largest, key=world.SESSION_KEY, challenge=CHALLENGE)
    assert len(data) <= MAX_PLAINTEXT
    assert verify_evidence(data, expected_challenge=CHALLENGE).evidence == largest


@pytest.mark.parametrize(
    "bend",
    [
        {"event_log": bytes(MAX_EVENT_LOG + 1)},
        {"event_log": b""},
        {"launch_record": b""},
        {"enclave_report": bytes(5000)},
        {"reference": bytes(33)},
    ],
)
def test_parts_out_of_bounds_are_misuse(bend: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="bytes, not 1 to"):
        sign_evidence(replace(world.EVIDENCE, **bend), key=world.SESSION_KEY, challenge=CHALLENGE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        ({"reference": bytes(31)}, "reference"),
        ({"enclave_report": b"nothing"}, "enclave report"),
        ({"quote": QuoteEvidence(b"", b"signature", b"public", ())}, "attest"),
        ({"quote": QuoteEvidence(b"attest", b"signature", b"public", ((0, bytes(31)),))}, "PCR 0"),
        ({"quote": QuoteEvidence(b"attest", b"signature", b"public", ((24, bytes(32)),))}, "PCR values"),
    ],
)
def test_bent_parts_are_malformed(bend: dict[str, object], words: str) -> None:
    data = sign_evidence(
        replace(world.EVIDENCE, **bend),  # type: ignore[arg-type]
        key=world.SESSION_KEY,
        challenge=CHALLENGE,
    )
    with pytest.raises(MalformedError, match=words):
        verify_evidence(data, expected_challenge=CHALLENGE)


def test_a_pcr_twice_is_misuse() -> None:
    quote = QuoteEvidence(b"attest", b"signature", b"public", ((0, bytes(32)), (0, bytes(32))))
    with pytest.raises(ValueError, match="twice"):
        sign_evidence(replace(world.EVIDENCE, quote=quote), key=world.SESSION_KEY, challenge=CHALLENGE)


def test_the_quote_is_bound_to_challenge_and_enclave_report() -> None:
    report = world.ENCLAVE_REPORT.digest
    bindings = {
        quote_binding(challenge=CHALLENGE, enclave_report=report),
        quote_binding(challenge=report, enclave_report=CHALLENGE),
        quote_binding(challenge=CHALLENGE, enclave_report=bytes(32)),
        quote_binding(challenge=bytes(32), enclave_report=report),
    }
    assert [len(each) for each in bindings] == [32] * 4
    with pytest.raises(ValueError, match="32 bytes"):
        quote_binding(challenge=CHALLENGE[:-1], enclave_report=report + b"x")
