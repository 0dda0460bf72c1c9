"""A TPM object's public area: TPMT_PUBLIC of RSA and ECC keys, and its Name.

TPM 2.0 Library, Part 2, sections 8.3 (TPMA_OBJECT), 11.2 (parameters) and 12.2 (TPMT_PUBLIC);
Part 1, section 16 (Names).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import Algorithm, Curve, HashAlgorithm, read_hash_algorithm
from affiant.tpm.octets import OctetReader, sized

__all__ = [
    "EccKey",
    "ObjectAttributes",
    "PublicArea",
    "RsaKey",
    "SigningScheme",
    "SymmetricCipher",
    "parse_public",
    "parse_public_area",
]

_MAXIMUM_PUBLIC: Final = 2048  # octets of a TPM2B_PUBLIC; RSA-4096 needs about 600
_MAXIMUM_MODULUS: Final = 512  # RSA-4096
_DEFAULT_EXPONENT: Final = 65537  # what an exponent of zero means (Part 2, section 12.2.3.5)


class ObjectAttributes(enum.IntFlag, boundary=enum.FlagBoundary.KEEP):
    """TPMA_OBJECT (Part 2, section 8.3); reserved bits are kept as they came."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


@dataclass(frozen=True, slots=True)
class SymmetricCipher:
    """TPMT_SYM_DEF_OBJECT: the cipher with which a parent protects what it receives."""

    algorithm: int
    key_bits: int
    mode: int


@dataclass(frozen=True, slots=True)
class SigningScheme:
    """TPMT_*_SCHEME: an algorithm with its hash, `None` where the scheme has none (RSAES)."""

    algorithm: int
    hash: HashAlgorithm | None


@dataclass(frozen=True, slots=True)
class RsaKey:
    """An RSA public key; `exponent` is the real one, never zero."""

    bits: int
    exponent: int
    modulus: bytes


@dataclass(frozen=True, slots=True)
class EccKey:
    """An ECC public key; the coordinates are padded to the size of the curve."""

    curve: Curve
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True)
class PublicArea:
    """Unverified: what is said to be a TPM object's public area (RSA or ECC keys only).

    `encoding` is the TPMT_PUBLIC exactly as it came, so that `name` is over those octets.
    `symmetric` and `scheme` are None where the area says TPM_ALG_NULL.
    """

    encoding: bytes
    name_algorithm: HashAlgorithm
    attributes: ObjectAttributes
    auth_policy: bytes
    symmetric: SymmetricCipher | None
    scheme: SigningScheme | None
    key: RsaKey | EccKey

    @property
    def name(self) -> bytes:
        """The object's Name: nameAlg || H_nameAlg(TPMT_PUBLIC), Part 1, section 16."""
        digest = self.name_algorithm.digest(self.encoding)
        return self.name_algorithm.to_bytes(2, "big") + digest

    def to_tpm2b(self) -> bytes:
        """The TPM2B_PUBLIC encoding."""
        return sized(self.encoding)

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The key for `cryptography`; `MalformedError` when it is no key at all.

        A point off its curve and an even RSA modulus are refused here.
        """
        try:
            if isinstance(self.key, RsaKey):
                modulus = int.from_bytes(self.key.modulus, "big")
                return rsa.RSAPublicNumbers(self.key.exponent, modulus).public_key()
            x = int.from_bytes(self.key.x, "big")
            y = int.from_bytes(self.key.y, "big")
            return ec.EllipticCurvePublicNumbers(x, y, self.key.curve.primitive).public_key()
        except ValueError as error:
            raise MalformedError(f"public area: not a public key ({error})") from None


def parse_public(encoding: bytes) -> PublicArea:
    """Read a TPM2B_PUBLIC; nothing about it is verified.

    Raises MalformedError: wrong size, trailing octets, an unknown type, algorithm or curve.
    """
    reader = OctetReader(encoding, "TPM2B_PUBLIC")
    area = reader.sized("public area", maximum=_MAXIMUM_PUBLIC)
    reader.finish()
    return parse_public_area(area)


def parse_public_area(encoding: bytes) -> PublicArea:
    """Read a TPMT_PUBLIC (without the outer size); as `parse_public`."""
    if len(encoding) > _MAXIMUM_PUBLIC:
        raise MalformedError(f"public area of {len(encoding)} octets is longer than {_MAXIMUM_PUBLIC}")
    reader = OctetReader(encoding, "public area")
    kind = reader.u16()
    name_algorithm = read_hash_algorithm(reader.u16(), "public area: name algorithm")
    attributes = ObjectAttributes(reader.u32())
    auth_policy = reader.sized("authPolicy", maximum=64)
    symmetric = _read_symmetric(reader)
    scheme = _read_scheme(reader)
    key: RsaKey | EccKey
    if kind == Algorithm.RSA:
        key = _read_rsa(reader)
    elif kind == Algorithm.ECC:
        key = _read_ecc(reader)
    else:
        raise MalformedError(f"public area: type 0x{kind:04x} is neither RSA nor ECC")
    reader.finish()
    return PublicArea(encoding, name_algorithm, attributes, auth_policy, symmetric, scheme, key)


def _read_symmetric(reader: OctetReader) -> SymmetricCipher | None:
    algorithm = reader.u16()
    if algorithm == Algorithm.NULL:
        return None
    if algorithm != Algorithm.AES:
        raise MalformedError(f"public area: symmetric algorithm 0x{algorithm:04x} is not AES")
    key_bits, mode = reader.u16(), reader.u16()
    if key_bits not in (128, 192, 256):
        raise MalformedError(f"public area: AES has no keys of {key_bits} bits")
    return SymmetricCipher(algorithm, key_bits, mode)


_HASHED_SCHEMES: Final = frozenset({Algorithm.RSASSA, Algorithm.RSAPSS, Algorithm.OAEP, Algorithm.ECDSA})


def _read_scheme(reader: OctetReader) -> SigningScheme | None:
    algorithm = reader.u16()
    if algorithm == Algorithm.NULL:
        return None
    if algorithm in _HASHED_SCHEMES:
        return SigningScheme(algorithm, read_hash_algorithm(reader.u16(), "public area: scheme"))
    if algorithm == Algorithm.RSAES:
        return SigningScheme(algorithm, None)
    raise MalformedError(f"public area: unknown scheme 0x{algorithm:04x}")


def _read_rsa(reader: OctetReader) -> RsaKey:
    bits = reader.u16()
    exponent = reader.u32() or _DEFAULT_EXPONENT
    modulus = reader.sized("RSA modulus", maximum=_MAXIMUM_MODULUS)
    if len(modulus) * 8 != bits:
        raise MalformedError(f"public area: {bits}-bit RSA key with a modulus of {len(modulus)} octets")
    return RsaKey(bits, exponent, modulus)


def _read_ecc(reader: OctetReader) -> EccKey:
    curve_id = reader.u16()
    try:
        curve = Curve(curve_id)
    except ValueError:
        raise MalformedError(f"public area: unknown curve 0x{curve_id:04x}") from None
    if reader.u16() != Algorithm.NULL:
        # A key derivation scheme is unused by the specification for these keys (Part 2, 12.2.3.6).
        raise MalformedError("public area: an ECC key with a key derivation scheme")
    x = reader.sized("ECC x", maximum=curve.coordinate_size).rjust(curve.coordinate_size, b"\0")
    y = reader.sized("ECC y", maximum=curve.coordinate_size).rjust(curve.coordinate_size, b"\0")
    return EccKey(curve, x, y)
