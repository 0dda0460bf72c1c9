"""The service's messages: challenge, credential, session report and response, acknowledgement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from affiant.model.enrolment import CredentialChallenge, EnrolmentProof
from affiant.model.errors import ForgedError, MalformedError
from affiant.wire import enrolment, issuance
from affiant.wire.challenge import sign_challenge, verify_challenge
from affiant.wire.claims import CLOCK_LEEWAY
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
