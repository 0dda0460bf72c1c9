"""The identity keys of Virtual Secure Mode: IDK (encryption) and IDKS (signing).

The hypervisor's loader makes them, or unseals them, at each boot and measures their public parts into
PCR 12 (VSM_IDK_INFO_PAYLOAD, VSM_IDK_RSA_INFO of `wbcl.h`): key algorithm, bits, length of exponent
and modulus as 32-bit integers, then exponent and modulus big-endian. The private part of the IDKS is
the secure kernel's: what it signs, the secure kernel said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

from affiant.model.errors import MalformedError
from affiant.tpm.windows.little_endian import LittleEndianReader

__all__ = ["IdentityKey", "identity_key_of", "identity_key_of_certificate", "read_identity_key"]

_ALGORITHM_RSA: Final = 1
_MINIMUM_BITS: Final = 2048
_MAXIMUM_BITS: Final = 8192
_MAXIMUM_EXPONENT: Final = 8
_MAXIMUM_CERTIFICATE: Final = 8192


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """An RSA public key of at least 2048 bits.

    What it proves depends on where it comes from: `read_windows_boot` takes it out of a verified log,
    `identity_key_of` and `identity_key_of_certificate` out of what the caller trusts.
    """

    modulus: int
    exponent: int
    key: rsa.RSAPublicKey = field(compare=False, repr=False)

    @property
    def bits(self) -> int:
        """The length of the modulus."""
        return self.modulus.bit_length()


def identity_key_of(key: rsa.RSAPublicKey) -> IdentityKey:
    """The identity key that a caller vouches for; MalformedError when it is shorter than 2048 bits."""
    numbers = key.public_numbers()
    if not _MINIMUM_BITS <= key.key_size <= _MAXIMUM_BITS:
        raise MalformedError(f"VSM identity key: RSA with {key.key_size} bits")
    return IdentityKey(numbers.n, numbers.e, key)


def identity_key_of_certificate(certificate: bytes) -> IdentityKey:
    """The key in a DER certificate that the caller trusts, such as an HGS health certificate.

    Not checked: who issued it, when it is valid and what for; that is the caller's to verify.
    Raises MalformedError when it is no certificate, or its key is no RSA key of 2048 bits or more.
    """
    if len(certificate) > _MAXIMUM_CERTIFICATE:
        raise MalformedError(f"VSM identity certificate of {len(certificate)} octets")
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise MalformedError(f"VSM identity certificate: not an X.509 certificate ({error})") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise MalformedError("VSM identity certificate: its key is not RSA")
    return identity_key_of(key)


def read_identity_key(payload: bytes) -> IdentityKey:
    """Read the payload of a VSM_IDK_INFO or VSM_IDKS_INFO event.

    Raises MalformedError: another algorithm than RSA, lengths that do not fit, less than 2048 bits, a
    number that is no RSA modulus.
    """
    reader = LittleEndianReader(payload, "VSM identity key")
    algorithm, bits, exponent_size, modulus_size = reader.u32(), reader.u32(), reader.u32(), reader.u32()
    if algorithm != _ALGORITHM_RSA:
        raise MalformedError(f"VSM identity key: algorithm {algorithm} is not RSA")
    if not 0 < exponent_size <= _MAXIMUM_EXPONENT or modulus_size * 8 > _MAXIMUM_BITS:
        raise MalformedError(f"VSM identity key: {exponent_size} and {modulus_size} octets")
    exponent = int.from_bytes(reader.take(exponent_size), "big")
    modulus = int.from_bytes(reader.take(modulus_size), "big")
    reader.finish()
    if modulus.bit_length() != bits:
        raise MalformedError(f"VSM identity key: {modulus.bit_length()} bits, announced as {bits}")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise MalformedError(f"VSM identity key: not an RSA key ({error})") from None
    return identity_key_of(key)
