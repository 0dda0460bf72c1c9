"""COSE_Sign1 in one shape: ESP256, typed, nothing outside the signature.

RFC 9052 leaves many choices to profiles; here they are made once, so that a message has one valid
encoding and no header can change how it is checked:

- tag 18 is present, the payload is attached, nothing follows;
- `alg` is ESP256 (-9, RFC 9864) and `typ` (16, RFC 9596) a media type; both protected. ES256 (-7),
  the same mathematics under its deprecated number, is refused: no signer of ours ever wrote it,
  and a second accepted number is a second encoding;
- `x5chain` (33, RFC 9360) is the only other header allowed, and in the protected bucket only;
- the unprotected bucket is empty; `crit`, `kid`, `x5u`, `x5bag` and unknown headers are refused;
- signatures are low-s, so that nobody but the signer can make a second one of the same message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from affiant.model.errors import ForgedError, MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key, Tagged
from affiant.wire.fields import Fields

__all__ = [
    "MAX_CHAIN",
    "Signer",
    "UnverifiedSign1",
    "VerifiedSign1",
    "parse_sign1",
    "sign1",
    "verify_sign1",
]

Signer: TypeAlias = ec.EllipticCurvePrivateKey | Callable[[bytes], bytes]
"""A P-256 private key, or a function that makes the DER ECDSA-SHA-256 signature of the bytes it gets."""

MAX_CHAIN = 4
"""How many certificates an x5chain may hold."""

_TAG = 18
_ALG, _TYP, _X5CHAIN = 1, 16, 33
_ESP256 = -9
_MAX_CERTIFICATE = 8192

# Order of the base point of P-256 (SEC 2, section 2.4.2).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_HIGHEST_S = _ORDER // 2

_ECDSA = ec.ECDSA(SHA256())


@dataclass(frozen=True, slots=True)
class UnverifiedSign1:
    """A well-formed COSE_Sign1 whose signature nobody has checked.

    `certificates` are DER, leaf first, empty without x5chain: they may choose the key to check
    with, once their own chain has been verified. `digest`: SHA-256 over the whole message.
    """

    name: str
    protected: bytes
    payload: bytes
    signature: bytes
    typ: str
    certificates: tuple[bytes, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class VerifiedSign1:
    """What a signature covers: made by `verify_sign1` alone."""

    name: str
    payload: bytes
    certificates: tuple[bytes, ...]
    digest: bytes


def sign1(
    payload: bytes,
    *,
    key: Signer,
    typ: str,
    external_aad: bytes = b"",
    certificates: Sequence[bytes] = (),
) -> bytes:
    """Return the COSE_Sign1 message of `payload`.

    `certificates` (DER, leaf first) go into the protected header. Raises `ValueError` when the
    key is not on P-256 or the chain is too long.
    """
    if len(certificates) > MAX_CHAIN:
        raise ValueError(f"at most {MAX_CHAIN} certificates")
    headers: dict[Key, Item] = {_ALG: _ESP256, _TYP: typ}
    if certificates:
        # RFC 9360, section 2: one certificate is a bare byte string, several are an array.
        headers[_X5CHAIN] = certificates[0] if len(certificates) == 1 else list(certificates)
    protected = cbor.encode(headers)
    signature = _sign(key, _to_be_signed(protected, external_aad, payload))
    return cbor.encode(Tagged(_TAG, [protected, {}, payload, signature]))


def parse_sign1(data: bytes, *, name: str, max_size: int) -> UnverifiedSign1:
    """Return the parts of a COSE_Sign1; `name` is what errors call the message.

    What holds then (and nothing about its signer):
    - the message follows the shape in this module's docstring and is at most `max_size` bytes;
    - the signature is 64 bytes, r and s within 1 to n-1, s in the lower half.

    Raises `MalformedError` otherwise.
    """
    tagged = cbor.decode(data, max_size=max_size, name=name, tags=(_TAG,))
    if not isinstance(tagged, Tagged):
        raise MalformedError(f"{name}: not a tagged COSE_Sign1")
    parts = Fields.of_array(tagged.item, name, length=4)
    protected = parts.octets(0, "protected header", maximum=max_size)
    if parts.item(1, "unprotected header") != {}:
        raise parts.error("unprotected header", "not empty")
    payload = parts.octets(2, "payload", maximum=max_size)
    signature = parts.octets(3, "signature", size=64)
    _check_signature_form(parts, signature)
    headers = Fields.of_map(
        cbor.decode(protected, max_size=max_size, name=f"{name}: protected header"),
        f"{name}: protected header",
    )
    headers.constant(_ALG, "algorithm", _ESP256)
    typ = headers.text(_TYP, "type", minimum=1)
    certificates = headers.optional(headers.item, _X5CHAIN, "x5chain")
    headers.close()
    return UnverifiedSign1(
        name=name,
        protected=protected,
        payload=payload,
        signature=signature,
        typ=typ,
        certificates=_chain(headers, certificates),
        digest=hashlib.sha256(data).digest(),
    )


def verify_sign1(
    message: UnverifiedSign1, *, key: ec.EllipticCurvePublicKey, typ: str, external_aad: bytes = b""
) -> VerifiedSign1:
    """Return what the signature covers.

    What holds then:
    - the holder of `key` (on P-256) signed this payload and these protected headers;
    - as a message of the media type `typ`;
    - together with `external_aad`.

    Raises `ForgedError` otherwise, `ValueError` when `key` is on another curve.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"the key is on {key.curve.name}, not P-256")  # noqa: TRY004  misuse is ValueError here
    # RFC 9596, section 3: typ keeps a message of one kind from being taken for another.
    if message.typ != typ:
        raise ForgedError(f"{message.name}: the type is {message.typ!r}, not {typ!r}")
    r = int.from_bytes(message.signature[:32], "big")
    s = int.from_bytes(message.signature[32:], "big")
    try:
        key.verify(
            encode_dss_signature(r, s),
            _to_be_signed(message.protected, external_aad, message.payload),
            _ECDSA,
        )
    except InvalidSignature:
        raise ForgedError(f"{message.name}: the signature does not hold") from None
    return VerifiedSign1(message.name, message.payload, message.certificates, message.digest)


def _to_be_signed(protected: bytes, external_aad: bytes, payload: bytes) -> bytes:
    # RFC 9052, section 4.4: Sig_structure.
    return cbor.encode(["Signature1", protected, external_aad, payload])


def _sign(key: Signer, data: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise ValueError(f"the key is on {key.curve.name}, not P-256")  # noqa: TRY004  misuse is ValueError here
        der = key.sign(data, _ECDSA)
    else:
        der = key(data)
    r, s = decode_dss_signature(der)
    return r.to_bytes(32, "big") + min(s, _ORDER - s).to_bytes(32, "big")


def _check_signature_form(parts: Fields, signature: bytes) -> None:
    r = int.from_bytes(signature[:32], "big")
    s = int.from_bytes(signature[32:], "big")
    if not (0 < r < _ORDER and 0 < s <= _HIGHEST_S):
        raise parts.error("signature", "r or s is out of range, or s is not the lower one")


def _chain(headers: Fields, item: Item) -> tuple[bytes, ...]:
    if item is None:
        return ()
    if isinstance(item, bytes):
        elements: list[Item] = [item]
    elif isinstance(item, list) and 2 <= len(item) <= MAX_CHAIN:
        elements = item
    else:
        raise headers.error("x5chain", f"neither one certificate nor 2 to {MAX_CHAIN}")
    certificates = []
    for element in elements:
        if not isinstance(element, bytes) or not 1 <= len(element) <= _MAX_CERTIFICATE:
            raise headers.error("x5chain", "a certificate is not bytes or too long")
        certificates.append(element)
    return tuple(certificates)
