"""The X.509 profile of Affiant's own authority: four kinds of certificate, and their chains.

    root CA                   P-256, pinned by digest or file; its key signs the two below
    ├── service signing       critical EKU `SERVICE_SIGNING`: challenges, session reports, answers
    └── session CA            path length 0; its key signs session certificates and nothing else
        └── session           critical EKU `SESSION_KEY`, at most one hour: signs runtime reports

The two extended key usages are our own and critical (RFC 5280, section 4.2.1.12), so that software
that expects TLS refuses these certificates, and a TLS certificate of the same root proves nothing
here. Their arcs need no registration: 2.25 followed by a UUID as an integer (ITU-T X.667).

Certificates are made in `affiant.wire.issuance`, from the profile written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from affiant.model.errors import ForgedError, MalformedError
from affiant.wire.keys import point_of

__all__ = [
    "MAX_SESSION_SECONDS",
    "SERVICE_SIGNING",
    "SESSION_ID_SIZE",
    "SESSION_KEY",
    "SIGNING_ALONE",
    "SessionCertificate",
    "certificate_key",
    "common_name",
    "load_certificate",
    "load_root",
    "verify_service_chain",
    "verify_session_chain",
]

SERVICE_SIGNING = x509.ObjectIdentifier("2.25.223339089613331709833789420376836553252")
"""EKU of the service's message key (UUID a8058b46-752f-43b8-a2ed-35f0a4503a24)."""

SESSION_KEY = x509.ObjectIdentifier("2.25.278845681640803382647248494282126106548")
"""EKU of a monitor's session key (UUID d1c7b98d-60ce-4902-93a4-66b42a539fb4)."""

MAX_SESSION_SECONDS = 3600
"""The longest validity of a session certificate."""

SESSION_ID_SIZE = 16
"""The length of a session id in bytes; in hex it is the subject of the session certificate."""

SIGNING_ALONE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
"""The key usage of both kinds of leaf: digitalSignature and nothing else."""

_MAX_DER = 8192
_SEQUENCE = b"\x30"  # how the DER of a certificate begins
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class SessionCertificate:
    """A verified session certificate: made by `verify_session_chain` alone.

    `key` is the P-256 session key and `point` its encoding (65 bytes); `session_id` are 16 bytes.
    Times are seconds since the epoch, both included (RFC 5280, section 4.1.2.5).
    """

    key: ec.EllipticCurvePublicKey
    point: bytes
    session_id: bytes
    not_before: int
    not_after: int


def load_certificate(der: bytes, *, name: str) -> x509.Certificate:
    """Return the certificate in `der`; `name` is what errors call it. Nothing is verified.

    Raises `MalformedError` when it is none, is longer than 8 KiB, or its key is not on P-256.
    """
    if len(der) > _MAX_DER:
        raise MalformedError(f"{name}: {len(der)} bytes, at most {_MAX_DER} are allowed")
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate_key(certificate, name)
        # The library parses these on demand: do it here, where the error has a name. Extensions are
        # left to path validation, which reads all of them anyway.
        _ = (certificate.subject, certificate.issuer)
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        if certificate.serial_number <= 0:
            raise MalformedError(f"{name}: the serial number is not positive")
    except _UNREADABLE as error:
        raise MalformedError(f"{name}: not an X.509 certificate of our profile: {error}") from None
    return certificate


def load_root(data: bytes) -> x509.Certificate:
    """Return the root in `data`, PEM (one certificate) or DER.

    Guaranteed: a CA certificate with a P-256 key that signed itself. That it is *the* root is the
    caller's knowledge. Raises `MalformedError` otherwise.
    """
    name = "root certificate"
    if data.lstrip().startswith(b"-----BEGIN"):
        try:
            pems = x509.load_pem_x509_certificates(data)
        except ValueError:
            raise MalformedError(
                f"{name}: the file holds no certificate in PEM form", hint="affiant service root"
            ) from None
        if len(pems) != 1:
            raise MalformedError(f"{name}: {len(pems)} certificates instead of one")
        data = pems[0].public_bytes(Encoding.DER)
    elif not data.startswith(_SEQUENCE):
        raise MalformedError(f"{name}: the file holds no certificate", hint="affiant service root")
    root = load_certificate(data, name=name)
    try:
        root.verify_directly_issued_by(root)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (*_UNREADABLE, InvalidSignature, TypeError, x509.ExtensionNotFound) as error:
        raise MalformedError(f"{name}: not a self-signed CA certificate") from error
    if not constraints.ca:
        raise MalformedError(f"{name}: not a CA certificate")
    return root


def verify_service_chain(
    certificates: Sequence[bytes], *, root: x509.Certificate, now: int
) -> ec.EllipticCurvePublicKey:
    """Return the service's message key from its certificate (DER).

    What holds then:
    - there is one certificate, issued by `root` itself, valid at `now`, as is the root;
    - it has the critical EKU `SERVICE_SIGNING` and no other, key usage digitalSignature alone;
    - it is no CA, and its key is on P-256.

    Raises `MalformedError` for what is no certificate, `ForgedError` for a chain that does not hold.
    """
    name = "service certificate"
    if len(certificates) != 1:
        raise ForgedError(f"{name}: {len(certificates)} certificates instead of one")
    leaf = load_certificate(certificates[0], name=name)
    _verify(leaf, [], root=root, now=now, usage=SERVICE_SIGNING, name=name)
    return certificate_key(leaf, name)


def verify_session_chain(
    certificates: Sequence[bytes], *, root: x509.Certificate, now: int
) -> SessionCertificate:
    """Return what a session certificate (DER, followed by its session CA) certifies.

    What holds then:
    - there are two certificates: the session's, issued by a CA of path length 0 that `root` issued;
    - all three are valid at `now`, the session's for at most one hour altogether;
    - it has the critical EKU `SESSION_KEY` and no other, key usage digitalSignature alone;
    - it is no CA, its key is on P-256, its subject is one session id.

    Raises `MalformedError` for what is no certificate, `ForgedError` for a chain that does not hold.
    """
    name = "session certificate"
    if len(certificates) != 2:
        raise ForgedError(f"{name}: {len(certificates)} certificates instead of two")
    leaf = load_certificate(certificates[0], name=name)
    authority = load_certificate(certificates[1], name="session CA")
    _verify(leaf, [authority], root=root, now=now, usage=SESSION_KEY, name=name)
    not_before = int(leaf.not_valid_before_utc.timestamp())
    not_after = int(leaf.not_valid_after_utc.timestamp())
    if not_after - not_before > MAX_SESSION_SECONDS:
        raise ForgedError(f"{name}: valid for {not_after - not_before} s, at most {MAX_SESSION_SECONDS}")
    key = certificate_key(leaf, name)
    return SessionCertificate(key, point_of(key), _session_id(leaf, name), not_before, not_after)


def _verify(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    *,
    root: x509.Certificate,
    now: int,
    usage: x509.ObjectIdentifier,
    name: str,
) -> None:
    # RFC 5280, section 6.1.
    verifier = (
        PolicyBuilder()
        .store(Store([root]))
        .time(datetime.fromtimestamp(now, UTC))
        .max_chain_depth(len(intermediates))
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICIES[usage])
        .build_client_verifier()
    )
    try:
        chain = verifier.verify(leaf, intermediates).chain
    except VerificationError as error:
        raise ForgedError(f"{name}: {_why(leaf, intermediates, root, now, error)}") from None
    except _UNREADABLE as error:
        raise MalformedError(f"{name}: its extensions cannot be read: {error}") from None
    # Another intermediate of the same name and key cannot shorten or lengthen what was shown.
    if chain != [leaf, *intermediates, root]:
        raise ForgedError(f"{name}: the chain that holds is not the one that was shown")


def _why(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    root: x509.Certificate,
    now: int,
    error: VerificationError,
) -> str:
    # The library tells why its last candidate failed; the reasons that a person can act on come first.
    last = [leaf, *intermediates][-1]
    if last.issuer != root.subject or not _names_key_of(last, root):
        return "issued under another root than the one given"
    moment = datetime.fromtimestamp(now, UTC)
    for certificate in (leaf, *intermediates, root):
        who = common_name(certificate.subject)
        if moment > certificate.not_valid_after_utc:
            return f"{who!r} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}"
        if moment < certificate.not_valid_before_utc:
            return f"{who!r} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ}"
    return f"the chain does not hold: {str(error).splitlines()[0][:200]}"


def _require_ca(_policy: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("an issuer is no CA")
    if certificate.issuer != certificate.subject and constraints.path_length != 0:
        raise ValueError("the session CA has no path length of 0")


def _require_no_ca(_policy: Policy, _leaf: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise ValueError("the leaf is a CA")


def _require_certificate_signing(_policy: Policy, _ca: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _require_signing_alone(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if usage != SIGNING_ALONE:
        raise ValueError("the key usage is not digitalSignature alone")


class _RequireUsage:
    """Checks that a leaf may be used for one thing, and for no other."""

    def __init__(self, usage: x509.ObjectIdentifier) -> None:
        self._usage = usage

    def __call__(self, _policy: Policy, _leaf: x509.Certificate, usages: x509.ExtendedKeyUsage) -> None:
        if list(usages) != [self._usage]:
            raise ValueError("the extended key usage is another")


# The library's own extension policies are those of TLS. Ours are stated in full, because `permit_all`
# checks no extension by itself.
_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _require_ca)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _require_certificate_signing)
)
_LEAF_POLICIES = {
    usage: ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _require_no_ca)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _require_signing_alone)
    .require_present(x509.ExtendedKeyUsage, Criticality.CRITICAL, _RequireUsage(usage))
    for usage in (SERVICE_SIGNING, SESSION_KEY)
}


def common_name(name: x509.Name) -> str:
    """Return what a certificate's subject or issuer is called."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else name.rfc4514_string()


def _names_key_of(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        named = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (*_UNREADABLE, x509.ExtensionNotFound):
        return False
    return named.key_identifier == own.digest


def certificate_key(certificate: x509.Certificate, name: str) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key of a certificate called `name`. Raises `MalformedError` for others."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError(f"{name}: the key is not on P-256")
    return key


def _session_id(leaf: x509.Certificate, name: str) -> bytes:
    text = common_name(leaf.subject)
    try:
        session_id = bytes.fromhex(text)
    except ValueError:
        session_id = b""
    if len(session_id) != SESSION_ID_SIZE or leaf.subject.rfc4514_string() != f"CN={session_id.hex()}":
        raise ForgedError(f"{name}: the subject is no session id")
    return session_id
