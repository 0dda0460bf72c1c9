"""Making the four kinds of certificate of `affiant.wire.certificates`.

Pure: keys, serial numbers and times are arguments, so that a service and a test make the same ones.
Times are in seconds since the epoch. A verifier's clock may be behind the issuer's: let `not_before`
lie a little in the past; for session certificates that counts into their hour.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from affiant.wire.certificates import (
    MAX_SESSION_SECONDS,
    SERVICE_SIGNING,
    SESSION_ID_SIZE,
    SESSION_KEY,
    SIGNING_ALONE,
    common_name,
)
from affiant.wire.keys import point_of

__all__ = ["build_root", "build_service_signing", "build_session_ca", "build_session_certificate"]

_CERTIFICATE_SIGNING = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def build_root(
    *, key: ec.EllipticCurvePrivateKey, name: str, serial: int, not_before: int, not_after: int
) -> x509.Certificate:
    """Return a self-signed root CA called `name`."""
    builder = _builder(key.public_key(), name, name, serial, not_before, not_after)
    return _ca(builder, key.public_key(), key.public_key(), path_length=1).sign(key, SHA256())


def build_session_ca(
    *,
    key: ec.EllipticCurvePublicKey,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    serial: int,
    not_before: int,
    not_after: int,
) -> x509.Certificate:
    """Return the certificate of the key that issues session certificates."""
    subject = f"{common_name(root.subject)} session CA"
    builder = _builder(key, subject, root.subject, serial, not_before, not_after)
    return _ca(builder, key, root_key.public_key(), path_length=0).sign(root_key, SHA256())


def build_service_signing(
    *,
    key: ec.EllipticCurvePublicKey,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    serial: int,
    not_before: int,
    not_after: int,
) -> x509.Certificate:
    """Return the certificate of the key that signs the service's messages."""
    subject = f"{common_name(root.subject)} service"
    builder = _builder(key, subject, root.subject, serial, not_before, not_after)
    return _leaf(builder, key, root_key.public_key(), SERVICE_SIGNING).sign(root_key, SHA256())


def build_session_certificate(
    *,
    key: ec.EllipticCurvePublicKey,
    session_id: bytes,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    serial: int,
    not_before: int,
    not_after: int,
) -> x509.Certificate:
    """Return the certificate of a session key; its subject is the session id (16 bytes) in hex.

    Raises `ValueError` for another length of the id or a validity of more than one hour.
    """
    if len(session_id) != SESSION_ID_SIZE:
        raise ValueError(f"a session id has {SESSION_ID_SIZE} bytes")
    if not_after - not_before > MAX_SESSION_SECONDS:
        raise ValueError(f"a session lasts {MAX_SESSION_SECONDS} s at most")
    builder = _builder(key, session_id.hex(), authority.subject, serial, not_before, not_after)
    return _leaf(builder, key, authority_key.public_key(), SESSION_KEY).sign(authority_key, SHA256())


def _builder(
    key: ec.EllipticCurvePublicKey,
    subject: str,
    issuer: str | x509.Name,
    serial: int,
    not_before: int,
    not_after: int,
) -> x509.CertificateBuilder:
    point_of(key)  # refuses other curves
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
    )


def _ca(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return _identified(builder, key, issuer_key, constraints, _CERTIFICATE_SIGNING)


def _leaf(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    return _identified(builder, key, issuer_key, constraints, SIGNING_ALONE).add_extension(
        x509.ExtendedKeyUsage([usage]), critical=True
    )


def _identified(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    constraints: x509.BasicConstraints,
    usage: x509.KeyUsage,
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
