"""A TPM's signature: TPMT_SIGNATURE of ECDSA, RSASSA and RSAPSS.

TPM 2.0 Library, Part 2, section 11.3; Part 1, annexes B.5 to B.7 (RSA) and C.4 (ECDSA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import Algorithm, HashAlgorithm, read_hash_algorithm
from affiant.tpm.octets import OctetReader

__all__ = ["Signature", "check_signature", "parse_signature"]

_MAXIMUM_SIGNATURE: Final = 1024
_MAXIMUM_RSA: Final = 512
_MAXIMUM_INTEGER: Final = 66


@dataclass(frozen=True, slots=True)
class Signature:
    """Unverified: a scheme, its hash, and the value (`r`, `s` in DER for ECDSA)."""

    algorithm: Algorithm
    hash: HashAlgorithm
    value: bytes


def parse_signature(encoding: bytes) -> Signature:
    """Read a TPMT_SIGNATURE.

    Raises MalformedError: another scheme, an unknown hash, trailing octets.
    """
    if len(encoding) > _MAXIMUM_SIGNATURE:
        raise MalformedError(f"TPMT_SIGNATURE of {len(encoding)} octets")
    reader = OctetReader(encoding, "TPMT_SIGNATURE")
    identifier = reader.u16()
    if identifier not in (Algorithm.RSASSA, Algorithm.RSAPSS, Algorithm.ECDSA):
        raise MalformedError(f"TPMT_SIGNATURE: scheme 0x{identifier:04x} is not ECDSA, RSASSA or RSAPSS")
    algorithm = Algorithm(identifier)
    hash_algorithm = read_hash_algorithm(reader.u16(), "TPMT_SIGNATURE")
    if algorithm is Algorithm.ECDSA:
        r = int.from_bytes(reader.sized("r", maximum=_MAXIMUM_INTEGER), "big")
        s = int.from_bytes(reader.sized("s", maximum=_MAXIMUM_INTEGER), "big")
        value = encode_dss_signature(r, s)
    else:
        value = reader.sized("RSA signature", maximum=_MAXIMUM_RSA)
    reader.finish()
    return Signature(algorithm, hash_algorithm, value)


def check_signature(
    signature: Signature,
    message: bytes,
    *,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    subject: str,
) -> None:
    """Return only if `signature` over `message` is by `key`; `ForgedError` naming `subject` if not."""
    primitive = signature.hash.primitive
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if signature.algorithm is not Algorithm.ECDSA:
                raise ForgedError(f"{subject}: an ECC key does not sign with {signature.algorithm.name}")
            key.verify(signature.value, message, ec.ECDSA(primitive))
        elif signature.algorithm is Algorithm.RSASSA:
            key.verify(signature.value, message, padding.PKCS1v15(), primitive)
        elif signature.algorithm is Algorithm.RSAPSS:
            # TPMs choose the longest salt that fits, or the digest's size (Part 1, annex B.7).
            pss = padding.PSS(mgf=padding.MGF1(primitive), salt_length=padding.PSS.AUTO)
            key.verify(signature.value, message, pss, primitive)
        else:
            raise ForgedError(f"{subject}: an RSA key does not sign with {signature.algorithm.name}")
    except InvalidSignature:
        raise ForgedError(f"{subject}: the signature is not by this key over these bytes") from None
    except ValueError as error:
        # A key too small for the hash, or a value longer than the modulus.
        raise ForgedError(f"{subject}: the signature cannot be checked ({error})") from None
