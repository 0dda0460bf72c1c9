"""Templates of primary keys: the public areas that a launcher hands to TPM2_CreatePrimary.

The same template and the same hierarchy seed give the same key, on every boot: that is what makes
the attestation key recoverable when a guest has cleared or evicted it (TPM 2.0 Library, Part 1,
section 14.3). EK templates: TCG EK Credential Profile for TPM Family 2.0, annex B.
"""

from __future__ import annotations

import struct
from typing import Final

from affiant.tpm.algorithms import Algorithm, Curve, HashAlgorithm
from affiant.tpm.octets import sized
from affiant.tpm.public_area import ObjectAttributes

__all__ = ["ATTESTATION_KEY", "EK_ECC_P256", "EK_ECC_P384", "EK_RSA_2048", "attestation_key_from"]

# PolicySecret(TPM_RH_ENDORSEMENT), EK Credential Profile, annex B.6.2 (PolicyA).
_POLICY_A: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
# PolicyOR of PolicyA and PolicyAuthorizeNV in SHA-384, annex B.6.5 (PolicyB).
_POLICY_B_SHA384: Final = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)

_BOUND_TO_TPM: Final = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
)
_EK_LOW: Final = _BOUND_TO_TPM | ObjectAttributes.ADMIN_WITH_POLICY | ObjectAttributes.DECRYPT
_EK_HIGH: Final = _EK_LOW | ObjectAttributes.USER_WITH_AUTH


def _public(
    kind: Algorithm, name: HashAlgorithm, attributes: ObjectAttributes, policy: bytes, parameters: bytes
) -> bytes:
    return struct.pack(">HHI", kind, name, attributes) + sized(policy) + parameters


def _aes_cfb(bits: int) -> bytes:
    return struct.pack(">HHH", Algorithm.AES, bits, Algorithm.CFB)


def _ecc(symmetric: bytes, scheme: bytes, curve: Curve, unique: bytes) -> bytes:
    return symmetric + scheme + struct.pack(">HH", curve, Algorithm.NULL) + sized(unique) + sized(unique)


_NULL: Final = struct.pack(">H", Algorithm.NULL)

# noDA: the key's authorization is random and known to the launcher alone, so guessing gains nothing, while
# a guest that fails on purpose would lock it (Part 1, section 19.8).
ATTESTATION_KEY: Final = _public(
    Algorithm.ECC,
    HashAlgorithm.SHA256,
    _BOUND_TO_TPM | ObjectAttributes.USER_WITH_AUTH | ObjectAttributes.NO_DA | ObjectAttributes.SIGN,
    b"",
    _ecc(_NULL, struct.pack(">HH", Algorithm.ECDSA, HashAlgorithm.SHA256), Curve.P256, b""),
)
"""TPMT_PUBLIC template of a restricted ECC P-256 signing key (ECDSA, SHA-256)."""


def attestation_key_from(secret: bytes) -> bytes:
    """The template of an attestation key that only a holder of `secret` (64 octets) can make.

    `ATTESTATION_KEY` is public, so that everyone at the same TPM can make that key again, with an
    authorization of their own. The secret stands in the template's `unique` field, which goes into
    the derivation of a primary key (Part 1, section 14.3) and which the TPM replaces by the public
    point in what it returns.
    """
    if len(secret) != 64:
        raise ValueError("the secret has 64 octets")
    return ATTESTATION_KEY.removesuffix(bytes(4)) + sized(secret[:32]) + sized(secret[32:])


EK_RSA_2048: Final = _public(
    Algorithm.RSA,
    HashAlgorithm.SHA256,
    _EK_LOW,
    _POLICY_A,
    _aes_cfb(128) + _NULL + struct.pack(">HI", 2048, 0) + sized(bytes(256)),
)
"""Template L-1 (annex B.3.3): the RSA EK whose certificate is in NV index 0x01c00002."""

EK_ECC_P256: Final = _public(
    Algorithm.ECC, HashAlgorithm.SHA256, _EK_LOW, _POLICY_A, _ecc(_aes_cfb(128), _NULL, Curve.P256, bytes(32))
)
"""Template L-2 (annex B.3.4): the ECC EK whose certificate is in NV index 0x01c0000a."""

EK_ECC_P384: Final = _public(
    Algorithm.ECC,
    HashAlgorithm.SHA384,
    _EK_HIGH,
    _POLICY_B_SHA384,
    _ecc(_aes_cfb(256), _NULL, Curve.P384, b""),
)
"""Template H-3 (annex B.4.5): the ECC EK whose certificate is in NV index 0x01c00016."""
