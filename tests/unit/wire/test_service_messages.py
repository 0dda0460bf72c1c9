"""The service's messages: challenge, credential, session report and response, acknowledgement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from affiant.model.enrolment import CredentialChallenge, EnrolmentProof
from affiant.model.errors import ForgedError, MalformedError
from affiant.model.level import SecurityLevel, Shortfall
from affiant.wire import cbor, enrolment, heartbeat, issuance
from affiant.wire.challenge import claimed_issue_time, sign_challenge, verify_challenge
from affiant.wire.claims import CLOCK_LEEWAY
from affiant.wire.cose import parse_sign1
from affiant.wire.session_report import sign_session_report, verify_session_report
from affiant.wire.session_response import sign_session_response, verify_session_response
from tests.unit.wire import world
from tests.unit.wire.world import NOW, ROOT

BY_SERVICE: dict[str, Any] = {"key": world.SERVICE_KEY, "certificate": world.AUTHORITY.service}
AT_NOW: dict[str, Any] = {"root": ROOT, "now": NOW}


@pytest.mark.parametrize(
    ("now", "words"), [(NOW + 120, "expired"), (NOW - CLOCK_LEEWAY - 1, "not yet valid")]
)
def test_a_challenge_has_its_time(now: int, words: str) -> None:
    for accepted in (NOW + 119, NOW - CLOCK_LEEWAY):
        verify_challenge(world.CHALLENGE_BYTES, root=ROOT, now=accepted)
    with pytest.raises(ForgedError, match=words):
        verify_challenge(world.CHALLENGE_BYTES, root=ROOT, now=now)


def test_a_challenge_tells_when_it_claims_to_be_issued() -> None:
    assert claimed_issue_time(world.CHALLENGE_BYTES) == NOW
    with pytest.raises(MalformedError):
        claimed_issue_time(world.SESSION_REPORT_BYTES)


@pytest.mark.parametrize(
    "bend",
    [
        {"expires_at": NOW + 121},
        {"expires_at": NOW},
        {"suites": ()},
        {"suites": (2, 1)},
        {"suites": (0,)},
        {"suites": tuple(range(1, 18))},
        {"pcrs": ()},
        {"pcrs": (7, 4)},
        {"pcrs": (24,)},
        {"sealing_key": bytes(31)},
        {"nonce": bytes(31)},
        {"issuer": ""},
        {"minimum_rules_version": -1},
    ],
)
def test_a_challenge_out_of_bounds_is_misuse(bend: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="challenge"):
        sign_challenge(replace(world.CHALLENGE, **bend), **BY_SERVICE)


def test_a_credential_for_another_request_is_refused() -> None:
    """The relay cannot have the TPM activate what the service made for somebody else."""
    other = enrolment.encode_enrolment_request(replace(world.REQUEST, ak_public=b"another ak"))
    with pytest.raises(ForgedError, match="signature"):
        enrolment.verify_credential_challenge(world.CREDENTIAL_BYTES, request=other, **AT_NOW)


def test_enrolment_messages_round_trip() -> None:
    assert enrolment.decode_enrolment_request(world.REQUEST_BYTES) == world.REQUEST
    proof = EnrolmentProof(b"\xe1" * 16, bytes(32))
    assert enrolment.decode_enrolment_proof(enrolment.encode_enrolment_proof(proof)) == proof


def test_enrolment_messages_bent_are_malformed() -> None:
    proof = enrolment.encode_enrolment_proof(EnrolmentProof(b"\xe1" * 16, bytes(32)))
    with pytest.raises(MalformedError, match="kind"):
        enrolment.decode_enrolment_request(proof)
    for decode, data in (
        (enrolment.decode_enrolment_request, world.REQUEST_BYTES),
        (enrolment.decode_enrolment_proof, proof),
    ):
        for end in range(len(data)):
            with pytest.raises(MalformedError):
                decode(data[:end])
        with pytest.raises(MalformedError, match="at most"):
            decode(bytes(1 << 20))


@pytest.mark.parametrize("bend", [{"enrolment_id": bytes(15)}, {"credential_blob": b""}])
def test_a_credential_out_of_bounds_is_misuse(bend: dict[str, bytes]) -> None:
    credential: CredentialChallenge = replace(world.CREDENTIAL, **bend)
    with pytest.raises(ValueError, match="credential challenge"):
        enrolment.sign_credential_challenge(credential, request=b"", **BY_SERVICE)


def test_the_proof_covers_secret_and_transcript() -> None:
    proofs = {
        enrolment.prove_enrolment(secret, request=request, challenge=challenge)
        for secret in (b"a" * 32, b"b" * 32)
        for request in (b"r1", b"r2")
        for challenge in (b"c1", b"c2")
    }
    assert len(proofs) == 8


@pytest.mark.parametrize(
    "bend",
    [
        {"expires_at": NOW + 3601},
        {"expires_at": NOW},
        {"session_id": bytes(15)},
        {"device": b"\x02" + bytes(16)},
        {"device": b"\x01" + bytes(15)},
        {"trust_vector": ()},
        {"trust_vector": ((8, 2),)},
        {"trust_vector": ((0, 128),)},
        {"policy": b""},
        {"claims": (("", True),)},
        {"claims": (("x", 1),)},
        {"shortfalls": (Shortfall(SecurityLevel.ROOTED, "x", "x"),) * 65},
        {"shortfalls": (Shortfall(SecurityLevel.ROOTED, "x", "x" * 513),)},
        {"kernel": b"short"},
        {"level": 6},
    ],
)
def test_a_session_report_out_of_bounds_is_misuse(bend: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="session report"):
        sign_session_report(replace(world.SESSION_REPORT, **bend), **BY_SERVICE)


@pytest.mark.parametrize(
    ("now", "words"), [(NOW + 3000, "expired"), (NOW - CLOCK_LEEWAY - 1, "not yet valid")]
)
def test_a_session_report_has_its_time(now: int, words: str) -> None:
    with pytest.raises(ForgedError, match=words):
        verify_session_report(world.SESSION_REPORT_BYTES, root=ROOT, now=now)


def bent_ear(*path: int | str, value: object) -> bytes:
    return world.bent(
        world.SESSION_REPORT_BYTES,
        *path,
        value=value,
        key=world.SERVICE_KEY,
        certificates=[world.der(world.AUTHORITY.service)],
    )


@pytest.mark.parametrize("path", [(1000,), (266, "platform", 1000)])
@pytest.mark.parametrize("status", [0, 2, 96, 7])
def test_a_status_other_than_the_worst_tier_is_refused(path: tuple[int | str, ...], status: int) -> None:
    """The vector's worst entry is 32, a warning: affirming would be a lie."""
    with pytest.raises(MalformedError, match="status"):
        verify_session_report(bent_ear(*path, value=status), **AT_NOW)


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        *((0, 0), (1, 0), (-1, 0)),
        *((2, 2), (31, 2), (-2, 2), (-32, 2)),
        *((32, 32), (95, 32), (-33, 32), (-96, 32)),
        *((96, 96), (127, 96), (-97, 96), (-128, 96)),
    ],
)
def test_tiers_follow_ar4si(value: int, tier: int) -> None:
    report = replace(world.SESSION_REPORT, trust_vector=((3, value),))
    payload = parse_sign1(world.sign_session(report), name="ear", max_size=1 << 16).payload
    claims = cbor.decode(payload, max_size=1 << 16)
    assert isinstance(claims, dict)
    assert claims[1000] == tier


def test_unknown_claims_of_ours_are_refused_inside_an_ear() -> None:
    ours = (266, "platform", 1006, -79110)
    with pytest.raises(MalformedError, match="unknown field 99"):
        verify_session_report(bent_ear(*ours, 99, value=1), **AT_NOW)
    verify_session_report(bent_ear(266, "platform", 99, value=1), **AT_NOW)


def test_another_profile_is_refused() -> None:
    with pytest.raises(MalformedError, match="profile"):
        verify_session_report(bent_ear(265, value="tag:ietf.org,2026:rats/ear#03"), **AT_NOW)


def respond(report: dict[str, Any] | None = None, **bent: Any) -> bytes:
    response = world.SESSION_RESPONSE
    if report is not None:
        response = replace(
            response, session_report=world.sign_session(replace(world.SESSION_REPORT, **report))
        )
    return sign_session_response(replace(response, **bent), **BY_SERVICE)


def other_certificate(**bent: Any) -> tuple[bytes, bytes]:
    arguments: dict[str, Any] = {
        "key": world.SESSION_KEY.public_key(),
        "session_id": world.SESSION_ID,
        "authority": world.AUTHORITY.session_ca,
        "authority_key": world.AUTHORITY_KEY,
        "serial": 9,
        "not_before": NOW - 60,
        "not_after": NOW + 3000,
    }
    certificate = issuance.build_session_certificate(**arguments | bent)
    return world.der(certificate), world.der(world.AUTHORITY.session_ca)


RESPONSES: dict[str, tuple[dict[str, Any], str]] = {
    "of another challenge": ({"challenge": bytes(32)}, "another challenge"),
    "to other evidence": ({"evidence": bytes(32)}, "other evidence"),
    "for another key": (
        {"certificates": other_certificate(key=world.STRANGER_KEY.public_key())},
        "another key",
    ),
    "by another CA": ({"certificates": world.OTHER_AUTHORITY.session_chain}, "session certificate"),
    "report of another key": ({"report": {"session_key_thumbprint": bytes(32)}}, "another key"),
    "report of another session": ({"report": {"session_id": bytes(16)}}, "another session"),
    "report of another nonce": ({"report": {"nonce": bytes(32)}}, "another challenge"),
    "report of other evidence": ({"report": {"evidence": bytes(32)}}, "another evidence"),
    "report outliving the certificate": ({"certificates": other_certificate(not_after=NOW + 2999)}, "period"),
    "report expired": ({"report": {"issued_at": NOW - 100, "expires_at": NOW - 1}}, "expired"),
    "refresh after the end": ({"refresh_by": NOW + 3001}, "refresh"),
}


@pytest.mark.parametrize("bend", RESPONSES)
def test_bent_responses_are_refused(bend: str) -> None:
    fields, words = RESPONSES[bend]
    with pytest.raises(ForgedError, match=words):
        world.accept_response(respond(**fields))


def test_a_response_by_a_report_of_another_service_is_refused() -> None:
    report = world.sign_session(world.SESSION_REPORT, world.OTHER_AUTHORITY)
    with pytest.raises(ForgedError, match="another root"):
        world.accept_response(respond(session_report=report))


def test_a_replayed_response_is_refused() -> None:
    """To the next challenge, the old response is no answer."""
    with pytest.raises(ForgedError, match="another challenge"):
        verify_session_response(
            world.SESSION_RESPONSE_BYTES,
            **AT_NOW,
            challenge=replace(world.CHALLENGE, digest=b"\xcd" * 32),
            evidence_digest=world.EVIDENCE_DIGEST,
            session_key=world.point(world.SESSION_KEY),
        )


def test_an_acknowledgement_of_another_report_is_refused() -> None:
    with pytest.raises(ForgedError, match="another report"):
        heartbeat.verify_acknowledgement(world.ACKNOWLEDGEMENT_BYTES, **AT_NOW, expected_report=bytes(32))


def test_an_acknowledgement_is_due_after_its_receipt() -> None:
    with pytest.raises(ValueError, match="next by"):
        heartbeat.sign_acknowledgement(replace(world.ACKNOWLEDGEMENT, next_by=NOW), **BY_SERVICE)


def test_first_heartbeats_of_two_sessions_differ() -> None:
    first = heartbeat.first_heartbeat_nonce(world.SESSION_REPORT.digest)
    assert len(first) == 32
    assert first != heartbeat.first_heartbeat_nonce(bytes(32))
