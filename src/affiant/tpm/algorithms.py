"""Algorithm identifiers of the TCG Algorithm Registry, as far as boot evidence uses them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.model.errors import MalformedError

__all__ = ["Algorithm", "Curve", "HashAlgorithm", "read_hash_algorithm"]


class Algorithm(enum.IntEnum):
    """TPM_ALG_ID of key types, schemes and modes (TPM 2.0 Library, Part 2, section 6.3)."""

    RSA = 0x0001
    HMAC = 0x0005
    AES = 0x0006
    KEYEDHASH = 0x0008
    NULL = 0x0010
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECC = 0x0023
    SYMCIPHER = 0x0025
    CFB = 0x0043


class HashAlgorithm(enum.IntEnum):
    """TPM_ALG_ID of the hash algorithms that banks, names and signatures may use here."""

    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D

    @property
    def title(self) -> str:
        """The name that people write, and that `hashlib` knows, such as `sha256`."""
        return self.name.lower()

    @property
    def digest_size(self) -> int:
        """Octets of one digest."""
        return _DIGEST_SIZES[self]

    def digest(self, data: bytes) -> bytes:
        """The digest of `data`."""
        return _CONSTRUCTORS[self._value_](data).digest()

    @property
    def constructor(self) -> Callable[[bytes], hashlib._Hash]:
        """The function of `hashlib`, for loops over many digests."""
        return _CONSTRUCTORS[self._value_]

    @property
    def primitive(self) -> hashes.HashAlgorithm:
        """The same algorithm as `cryptography` knows it."""
        return _PRIMITIVES[self]


_DIGEST_SIZES: Final = {
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA384: 48,
    HashAlgorithm.SHA512: 64,
}

# SHA-1 is here to read old logs and quotes; nothing accepts it unless the caller asks for that bank.
# Keyed by number: hashing an enumeration's member takes longer than hashing an event.
_CONSTRUCTORS: Final = {
    0x0004: hashlib.sha1,
    0x000B: hashlib.sha256,
    0x000C: hashlib.sha384,
    0x000D: hashlib.sha512,
}

_PRIMITIVES: Final[dict[HashAlgorithm, hashes.HashAlgorithm]] = {
    HashAlgorithm.SHA1: hashes.SHA1(),  # noqa: S303 - old logs and quotes are read, never trusted by default
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}


class Curve(enum.IntEnum):
    """TPM_ECC_CURVE of the NIST curves (TPM 2.0 Library, Part 2, section 6.4)."""

    P256 = 0x0003
    P384 = 0x0004
    P521 = 0x0005

    @property
    def coordinate_size(self) -> int:
        """Octets of one coordinate."""
        return _COORDINATE_SIZES[self]

    @property
    def constructor(self) -> Callable[[bytes], hashlib._Hash]:
        """The function of `hashlib`, for loops over many digests."""
        return _CONSTRUCTORS[self._value_]

    @property
    def primitive(self) -> ec.EllipticCurve:
        """The same curve as `cryptography` knows it."""
        return _CURVES[self]


_COORDINATE_SIZES: Final = {Curve.P256: 32, Curve.P384: 48, Curve.P521: 66}

_CURVES: Final[dict[Curve, ec.EllipticCurve]] = {
    Curve.P256: ec.SECP256R1(),
    Curve.P384: ec.SECP384R1(),
    Curve.P521: ec.SECP521R1(),
}


def read_hash_algorithm(identifier: int, subject: str) -> HashAlgorithm:
    """The hash algorithm with that TPM_ALG_ID, or `MalformedError` naming `subject`."""
    try:
        return HashAlgorithm(identifier)
    except ValueError:
        raise MalformedError(f"{subject}: unknown hash algorithm 0x{identifier:04x}") from None
