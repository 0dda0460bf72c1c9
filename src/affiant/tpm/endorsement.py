"""The endorsement key: which TPM is this, and who vouches that it is one?

TCG EK Credential Profile for TPM Family 2.0, sections 2 (templates) and 3 (certificate);
RFC 5280, section 6 (path validation, done by `cryptography`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import STRONG_HASHES
from affiant.tpm.public_area import ObjectAttributes, PublicArea, parse_public

__all__ = ["EndorsementKey", "verify_endorsement"]

_EK_CERTIFICATE: Final = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_MAXIMUM_CERTIFICATES: Final = 6
_MAXIMUM_CERTIFICATE: Final = 8192
_MAXIMUM_CHAIN: Final = 4
# What `cryptography` raises over octets that are no certificate, sooner or later: it reads lazily.
_UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_REQUIRED: Final = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An EK that an operator's anchor vouches for; made by `verify_endorsement` alone.

    `fingerprint` is SHA-256 of the EK's public key (SubjectPublicKeyInfo, DER): the same TPM has the same
    one with every certificate. `certificate` is the leaf's DER, `subject` and `issuer` are for people.
    """

    public: PublicArea
    fingerprint: bytes
    certificate: bytes
    subject: str
    issuer: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(compare=False, repr=False)


def verify_endorsement(
    certificates: Sequence[bytes],
    ek_public: bytes,
    *,
    anchors: Sequence[x509.Certificate],
    now: int,
) -> EndorsementKey:
    """Verify an EK certificate (`certificates`: DER, leaf first) and that it is of `ek_public`.

    `ek_public` is a TPM2B_PUBLIC, `anchors` the endorsement roots that an operator trusts, `now`
    seconds since the epoch.

    When it returns,

    - the leaf chains to one of `anchors`, and every certificate on the path is valid at `now`;
    - the leaf is no CA, and its extended key usage includes an EK certificate (2.23.133.8.1);
    - the public key in the leaf is the key in `ek_public`;
    - `ek_public` is a restricted decryption key bound to its TPM, with an AES cipher and a strong hash.

    The last point is what the bytes say; the certificate vouches for the key and for the TPM, and
    the TPM uses its own public area when it activates a credential, so a lie there only makes the
    activation fail. Not checked: revocation. Raises MalformedError or ForgedError.
    """
    if not anchors:
        raise ValueError("without an anchor nothing can be verified")
    leaf, *intermediates = _parse(certificates)
    area = parse_public(ek_public)
    key = area.public_key()
    try:
        _verifier(anchors, now).verify(leaf, intermediates)
    except VerificationError as error:
        raise ForgedError(f"EK certificate: no valid chain to an endorsement anchor ({error})") from None
    except _UNREADABLE as error:
        raise MalformedError(f"EK certificate: cannot be read ({error})") from None
    try:
        same = leaf.public_key() == key
        subject, issuer = leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string()
    except _UNREADABLE as error:
        raise MalformedError(f"EK certificate: cannot be read ({error})") from None
    if not same:
        raise ForgedError("EK certificate: it is for another key than the EK that was shown")
    _check_area(area)
    return EndorsementKey(
        public=area,
        fingerprint=HashAlgorithm.SHA256.digest(_spki(key)),
        certificate=certificates[0],
        subject=subject,
        issuer=issuer,
        key=key,
    )


def _parse(certificates: Sequence[bytes]) -> list[x509.Certificate]:
    if not 1 <= len(certificates) <= _MAXIMUM_CERTIFICATES:
        raise MalformedError(
            f"EK certificates: {len(certificates)}, but 1 to {_MAXIMUM_CERTIFICATES} are read"
        )
    parsed = []
    for encoding in certificates:
        if len(encoding) > _MAXIMUM_CERTIFICATE:
            raise MalformedError(f"EK certificate of {len(encoding)} octets")
        try:
            certificate = x509.load_der_x509_certificate(encoding)
        except _UNREADABLE as error:
            raise MalformedError(f"EK certificate: not a DER certificate ({error})") from None
        # RFC 5280, 4.1.1.3: a signature is whole octets, no bit of its last one is "unused". Nobody signs
        # that count, which stands before the signature: with another one, a certificate has two forms.
        if not encoding.endswith(b"\x00" + certificate.signature):
            raise MalformedError("EK certificate: its signature is not whole octets")
        parsed.append(certificate)
    return parsed


def _require_ek_usage(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    # EK Credential Profile, section 3.2: the extended key usage tells an EK from everything else
    # that the same authority may issue (platform certificates, attestation keys).
    if usage is None or _EK_CERTIFICATE not in usage:
        raise ValueError("the leaf is not marked as an EK certificate (2.23.133.8.1)")


def _require_leaf(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("the leaf is a certificate authority")


def _verifier(anchors: Sequence[x509.Certificate], now: int) -> ClientVerifier:
    # EK certificates carry what web certificates must not: no DNS name, a critical directory name, subject
    # directory attributes. What matters of them is required; the rest is permitted, also if critical,
    # because it states properties of the TPM and does not restrict the use of the certificate.
    leaf = (
        ExtensionPolicy.permit_all()
        .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _require_ek_usage)
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _require_leaf)
    )
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _require_authority)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_certificate_signing)
    )
    return (
        PolicyBuilder()
        .store(Store(list(anchors)))
        .time(datetime.fromtimestamp(now, UTC))
        .max_chain_depth(_MAXIMUM_CHAIN)
        .extension_policies(ca_policy=authority, ee_policy=leaf)
        .build_client_verifier()
    )


def _require_authority(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is None or not constraints.ca:
        raise ValueError("an issuer is no certificate authority")


def _require_certificate_signing(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _check_area(area: PublicArea) -> None:
    if area.attributes & _REQUIRED != _REQUIRED or ObjectAttributes.SIGN in area.attributes:
        raise ForgedError("EK: not a restricted decryption key bound to its TPM")
    if area.symmetric is None:
        raise ForgedError("EK: no symmetric cipher, so it cannot receive a credential")
    if area.name_algorithm not in STRONG_HASHES:
        raise ForgedError(f"EK: its name uses {area.name_algorithm.title}")


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
