"""The three messages of an enrolment, and the proof that ends it (TPM 2.0 Part 1, section 24)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography import x509

from affiant.model.enrolment import CredentialChallenge, EnrolmentProof, EnrolmentRequest
from affiant.wire import cbor
from affiant.wire.cbor import Item
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.service_message import sign_by_service, verify_by_service
from affiant.wire.writing import encode_checked

__all__ = [
    "decode_enrolment_proof",
    "decode_enrolment_request",
    "encode_enrolment_proof",
    "encode_enrolment_request",
    "prove_enrolment",
    "sign_credential_challenge",
    "verify_credential_challenge",
]

_REQUEST = "affiant/1/enrolment"
_PROOF = "affiant/1/enrolment-proof"
_TYP = "application/vnd.affiant.credential-challenge+cbor"
_MAX_SIZE = 1 << 16
_MAX_CERTIFICATE = 8192
_MAX_CERTIFICATES = 4
_MAX_TPM_STRUCTURE = 4096
_ID_SIZE = 16


def encode_enrolment_request(request: EnrolmentRequest) -> bytes:
    """Return the request's encoding, to be sealed. Raises `ValueError` beyond its bounds."""
    item: Item = {
        0: _REQUEST,
        1: request.challenge,
        2: list(request.ek_certificates),
        3: request.ek_public,
        4: request.ak_public,
    }
    return encode_checked(item, decode_enrolment_request)


def decode_enrolment_request(data: bytes) -> EnrolmentRequest:
    """Return the request in `data`: form only, nothing in it is proven.

    Guaranteed: at most 4 certificates of at most 8 KiB, structures of at most 4 KiB. Raises
    `MalformedError` otherwise.
    """
    name = "enrolment request"
    fields = Fields.of_map(cbor.decode(data, max_size=_MAX_SIZE, name=name), name)
    fields.constant(0, "kind", _REQUEST)
    request = EnrolmentRequest(
        challenge=fields.digest(1, "challenge"),
        ek_certificates=fields.each(2, "EK certificates", _read_certificate, maximum=_MAX_CERTIFICATES),
        ek_public=fields.octets(3, "EK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        ak_public=fields.octets(4, "AK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
    )
    fields.close()
    return request


def sign_credential_challenge(
    challenge: CredentialChallenge, *, request: bytes, key: Signer, certificate: x509.Certificate
) -> bytes:
    """Return the service's signed answer to the enrolment request with the bytes `request`.

    `challenge.enrolment_id` has 16 bytes. Raises `ValueError` for values beyond the bounds.
    """
    item: Item = {1: challenge.enrolment_id, 2: challenge.credential_blob, 3: challenge.encrypted_secret}
    return sign_by_service(
        encode_checked(item, _read_challenge),
        key=key,
        certificate=certificate,
        typ=_TYP,
        external_aad=_answer_to(request),
    )


def verify_credential_challenge(
    data: bytes, *, request: bytes, root: x509.Certificate, now: int
) -> CredentialChallenge:
    """Return the credential to activate.

    What holds then:
    - the service signed it: the chain of its certificate leads to `root`, at `now`;
    - as the answer to exactly the enrolment request with the bytes `request`.

    So the relay cannot use the TPM to activate a credential of its own. Raises `MalformedError` or
    `ForgedError` otherwise.
    """
    message = verify_by_service(
        data,
        name="credential challenge",
        typ=_TYP,
        max_size=_MAX_SIZE,
        root=root,
        now=now,
        external_aad=_answer_to(request),
    )
    return _read_challenge(message.payload)


def prove_enrolment(secret: bytes, *, request: bytes, challenge: bytes) -> bytes:
    """Return the proof of having activated `secret`: HMAC-SHA-256 over the transcript's digest.

    `request` and `challenge` are the bytes of the enrolment request and of the signed credential
    challenge. The service computes the same and compares with `hmac.compare_digest`.
    """
    transcript = hashlib.sha256(request + challenge).digest()
    return hmac.digest(secret, transcript, "sha256")


def encode_enrolment_proof(proof: EnrolmentProof) -> bytes:
    """Return the proof's encoding, to be sealed. Raises `ValueError` beyond its bounds."""
    item: Item = {0: _PROOF, 1: proof.enrolment_id, 2: proof.proof}
    return encode_checked(item, decode_enrolment_proof)


def decode_enrolment_proof(data: bytes) -> EnrolmentProof:
    """Return the proof in `data`: form only. Raises `MalformedError`."""
    name = "enrolment proof"
    fields = Fields.of_map(cbor.decode(data, max_size=_MAX_SIZE, name=name), name)
    fields.constant(0, "kind", _PROOF)
    proof = EnrolmentProof(
        enrolment_id=fields.octets(1, "enrolment id", size=_ID_SIZE),
        proof=fields.octets(2, "proof", size=32),
    )
    fields.close()
    return proof


def _answer_to(request: bytes) -> bytes:
    return b"affiant/1/credential" + hashlib.sha256(request).digest()


def _read_challenge(payload: bytes) -> CredentialChallenge:
    name = "credential challenge"
    fields = Fields.of_map(cbor.decode(payload, max_size=_MAX_SIZE, name=name), name)
    challenge = CredentialChallenge(
        enrolment_id=fields.octets(1, "enrolment id", size=_ID_SIZE),
        credential_blob=fields.octets(2, "credential blob", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        encrypted_secret=fields.octets(3, "encrypted secret", minimum=2, maximum=_MAX_TPM_STRUCTURE),
    )
    fields.close()
    return challenge


def _read_certificate(certificates: Fields, index: int) -> bytes:
    return certificates.octets(index, str(index), minimum=1, maximum=_MAX_CERTIFICATE)
