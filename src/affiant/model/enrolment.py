"""Enrolment: proving once that an attestation key lives in the TPM of an endorsed EK.

The attester sends an `EnrolmentRequest`, receives a `CredentialChallenge` (TPM2_MakeCredential)
and answers with HMAC-SHA-256(secret, transcript digest), TPM 2.0 Part 1, section 24.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CredentialChallenge", "EnrolmentProof", "EnrolmentRequest"]


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """Unverified: what an attester says of its TPM.

    `ek_certificates`: DER, leaf first. `ek_public`, `ak_public`: TPM2B_PUBLIC encodings.
    `challenge`: digest of the challenge this request answers to.
    """

    challenge: bytes
    ek_certificates: tuple[bytes, ...]
    ek_public: bytes
    ak_public: bytes


@dataclass(frozen=True, slots=True)
class CredentialChallenge:
    """`credential_blob` (TPM2B_ID_OBJECT) and `encrypted_secret` (TPM2B_ENCRYPTED_SECRET)."""

    enrolment_id: bytes
    credential_blob: bytes
    encrypted_secret: bytes


@dataclass(frozen=True, slots=True)
class EnrolmentProof:
    """`proof` = HMAC-SHA-256(activated secret, SHA-256(request bytes || challenge bytes))."""

    enrolment_id: bytes
    proof: bytes
