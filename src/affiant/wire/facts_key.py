"""The operator's key that fact records are sealed to: X25519, in PEM files as everybody writes them.

The private half is PKCS #8 (RFC 5958), the public half SubjectPublicKeyInfo (RFC 8410), so that
`openssl pkey` reads and makes both.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from affiant.model.errors import MalformedError

__all__ = ["load_private_key", "load_public_key", "private_pem", "public_pem"]


def private_pem(key: X25519PrivateKey) -> bytes:
    """Return the private key as PEM, in the clear: where it lies must be private."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: X25519PublicKey) -> bytes:
    """Return the public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_private_key(pem: bytes) -> X25519PrivateKey:
    """Return the key in `pem`. Raises `MalformedError` if it holds none, or none without a password."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedError(f"facts key: no private key in PEM: {error}") from None
    if not isinstance(key, X25519PrivateKey):
        raise MalformedError("facts key: the private key is not for X25519")
    return key


def load_public_key(pem: bytes) -> bytes:
    """Return the 32 bytes of the public key in `pem`. Raises `MalformedError` if it holds none."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(f"facts key: no public key in PEM: {error}") from None
    if not isinstance(key, X25519PublicKey):
        raise MalformedError("facts key: the public key is not for X25519")
    return key.public_bytes_raw()
