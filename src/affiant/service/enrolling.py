"""Enrolling attestation keys: a credential that only the right TPM can open, and the proof of it."""

from __future__ import annotations

import hmac
import secrets

from cryptography import x509

from affiant.model.enrolment import CredentialChallenge
from affiant.model.errors import ForgedError
from affiant.service.challenge_store import Purpose, use_challenge
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.service.device_store import PendingEnrolment, begin_enrolment, enrol, take_enrolment
from affiant.service.trust_store import anchor_certificates
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.credential import make_credential
from affiant.tpm.endorsement import verify_endorsement
from affiant.wire.enrolment import (
    decode_enrolment_proof,
    decode_enrolment_request,
    prove_enrolment,
    sign_credential_challenge,
)

__all__ = ["answer_enrolment", "finish_enrolment"]

_UEID_RANDOM = b"\x01"  # RFC 9711, section 4.2.1: RAND, followed by random bytes


def answer_enrolment(context: ServiceContext, body: bytes, *, now: int) -> bytes:
    """Return a credential for the key that a sealed enrolment request shows.

    What holds then: the request answers an unspent challenge of this service; the attestation key
    has the attributes of one; the endorsement certificate leads to a trusted root. That key and
    endorsement live in one TPM is what the proof will show. Raises an EvidenceError otherwise.
    """
    digest, request_bytes = context.open_body(body)
    with transaction(context.engine) as connection:
        use_challenge(connection, digest, purpose=Purpose.ENROLMENT, now=now)
    request = decode_enrolment_request(request_bytes)
    if request.challenge != digest:
        raise ForgedError("enrolment request: answers to another challenge")
    attestation_key = verify_attestation_key(request.ak_public)
    with transaction(context.engine) as connection:
        anchors = [x509.load_der_x509_certificate(der) for der in anchor_certificates(connection)]
    if not anchors:
        raise ForgedError(
            "the service trusts no endorsement root yet", hint="affiant service trust-ek CERT.pem"
        )
    endorsement = verify_endorsement(request.ek_certificates, request.ek_public, anchors=anchors, now=now)
    secret = secrets.token_bytes(32)
    credential = make_credential(
        endorsement, name=attestation_key.name, secret=secret, seed=secrets.token_bytes(32)
    )
    enrolment_id = secrets.token_bytes(16)
    message = sign_credential_challenge(
        CredentialChallenge(enrolment_id, credential.blob, credential.encrypted_secret),
        request=request_bytes,
        key=context.authority.signing_key,
        certificate=context.authority.signing,
    )
    pending = PendingEnrolment(
        enrolment_id=enrolment_id,
        challenge=digest,
        ak_name=attestation_key.name,
        ek_fingerprint=endorsement.fingerprint,
        ek_public=request.ek_public,
        ek_certificates=request.ek_certificates,
        expected_proof=prove_enrolment(secret, request=request_bytes, challenge=message),
        expires_at=now + context.settings.enrolment_seconds,
    )
    with transaction(context.engine) as connection:
        begin_enrolment(connection, pending)
    return message


def finish_enrolment(context: ServiceContext, body: bytes, *, now: int) -> bytes:
    """Enrol the key whose TPM opened the credential; return the device's UEID.

    What holds then: the proof is the one for this enrolment's secret and transcript, the enrolment
    was open, and this was its only try. Raises an EvidenceError otherwise.
    """
    digest, proof_bytes = context.open_body(body)
    proof = decode_enrolment_proof(proof_bytes)
    with transaction(context.engine) as connection:
        pending = take_enrolment(connection, proof.enrolment_id, now=now)
    if pending.challenge != digest:
        raise ForgedError("enrolment proof: belongs to another exchange")
    if not hmac.compare_digest(proof.proof, pending.expected_proof):
        raise ForgedError("enrolment proof: does not show the secret of this enrolment")
    with transaction(context.engine) as connection:
        return enrol(connection, pending, new_device=_UEID_RANDOM + secrets.token_bytes(32), now=now)
