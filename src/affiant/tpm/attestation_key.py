"""The attestation key: which TPM keys may speak for the TPM at all.

TPM 2.0 Library, Part 1, section 27.2 (attributes) and Part 2, section 8.3. A *restricted signing*
key signs nothing from outside that looks like a TPM's own structure, so what it signs with the
TPM_GENERATED magic was made by the TPM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import Algorithm, HashAlgorithm
from affiant.tpm.public_area import ObjectAttributes, PublicArea, RsaKey, parse_public

__all__ = ["STRONG_HASHES", "AttestationKey", "verify_attestation_key"]

STRONG_HASHES: Final = frozenset({HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512})
"""The hashes that signatures and Names may use unless a caller says otherwise."""

_REQUIRED: Final = (
    ObjectAttributes.FIXED_TPM,
    ObjectAttributes.FIXED_PARENT,
    ObjectAttributes.SENSITIVE_DATA_ORIGIN,
    ObjectAttributes.RESTRICTED,
    ObjectAttributes.SIGN,
)
_SIGNING: Final = {
    "rsa": frozenset({Algorithm.RSASSA, Algorithm.RSAPSS}),
    "ecc": frozenset({Algorithm.ECDSA}),
}
_MINIMUM_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A public area that only a TPM-bound, restricted signing key may have.

    Made by `verify_attestation_key` alone. Not proven by it: that any TPM holds the key; that is
    what credential activation against an endorsed EK proves (`affiant.tpm.credential`).
    """

    public: PublicArea
    name: bytes
    scheme: Algorithm
    hash: HashAlgorithm
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(compare=False, repr=False)


def verify_attestation_key(
    public: bytes, *, allowed_hashes: frozenset[HashAlgorithm] = STRONG_HASHES
) -> AttestationKey:
    """Check that `public` (a TPM2B_PUBLIC) has the attributes of an attestation key.

    When it returns, the public area says of its key that

    - it cannot leave its TPM (fixedTPM, fixedParent);
    - its private part was made by the TPM (sensitiveDataOrigin);
    - it signs, and only what the TPM made itself (sign, restricted);
    - it does not decrypt and protects no children (no decrypt, no symmetric cipher);
    - its scheme is fixed: ECDSA, or RSASSA or RSAPSS with at least 2048 bits;
    - scheme and Name use a hash out of `allowed_hashes`;
    - it is a valid public key.

    Raises MalformedError (not a public area, not a key) or ForgedError (a key that could sign
    anything its owner likes).
    """
    area = parse_public(public)
    for attribute in _REQUIRED:
        if attribute not in area.attributes:
            raise ForgedError(f"attestation key: {_spell(attribute)} is not set")
    if ObjectAttributes.DECRYPT in area.attributes:
        raise ForgedError("attestation key: decrypt is set")
    if area.symmetric is not None:
        raise ForgedError("attestation key: a symmetric cipher is set, so it is a parent")
    kind = "rsa" if isinstance(area.key, RsaKey) else "ecc"
    if area.scheme is None or area.scheme.hash is None or area.scheme.algorithm not in _SIGNING[kind]:
        raise ForgedError("attestation key: no fixed signing scheme")
    if isinstance(area.key, RsaKey) and area.key.bits < _MINIMUM_RSA_BITS:
        raise ForgedError(f"attestation key: RSA with {area.key.bits} bits")
    for use, algorithm in (("scheme", area.scheme.hash), ("name", area.name_algorithm)):
        if algorithm not in allowed_hashes:
            raise ForgedError(f"attestation key: its {use} uses {algorithm.title}")
    return AttestationKey(
        area, area.name, Algorithm(area.scheme.algorithm), area.scheme.hash, area.public_key()
    )


def _spell(attribute: ObjectAttributes) -> str:
    """The specification's spelling: FIXED_TPM is fixedTPM."""
    first, *rest = (attribute.name or "").lower().split("_")
    return first + "".join("TPM" if word == "tpm" else word.capitalize() for word in rest)
