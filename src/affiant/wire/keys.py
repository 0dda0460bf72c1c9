"""P-256 public keys on the wire: SEC 1 points, COSE_Key and its thumbprint.

Points are uncompressed (65 bytes, SEC 1 section 2.3.3), integers big-endian.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.model.errors import MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.fields import Fields

__all__ = ["cose_key", "load_point", "point_of", "read_cose_key", "thumbprint"]

_POINT_SIZE = 65

# RFC 9052, section 7 and RFC 9053, section 7.1.1.
_KTY, _EC2 = 1, 2
_CRV, _P256 = -1, 1
_X, _Y = -2, -3


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the uncompressed point of a P-256 key. Raises `ValueError` for another curve."""
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"the key is on {key.curve.name}, not P-256")  # noqa: TRY004  misuse is ValueError here
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def load_point(point: bytes, *, name: str) -> ec.EllipticCurvePublicKey:
    """Return the key of an uncompressed point; `name` is what errors call it.

    Guaranteed: the point lies on P-256. Raises `MalformedError` otherwise.
    """
    if len(point) != _POINT_SIZE or point[0] != 4:
        raise MalformedError(f"{name}: not an uncompressed P-256 point")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise MalformedError(f"{name}: not a point on P-256") from None


def cose_key(point: bytes) -> dict[Key, Item]:
    """Return the COSE_Key map (EC2, P-256) of an uncompressed point, with no optional parameter."""
    if len(point) != _POINT_SIZE or point[0] != 4:
        raise ValueError("not an uncompressed P-256 point")
    return {_KTY: _EC2, _CRV: _P256, _X: point[1:33], _Y: point[33:]}


def read_cose_key(fields: Fields) -> bytes:
    """Return the uncompressed point of a COSE_Key map, which holds nothing but the key.

    Guaranteed: the point lies on P-256. Raises `MalformedError` otherwise.
    """
    fields.constant(_KTY, "key type", _EC2)
    fields.constant(_CRV, "curve", _P256)
    point = b"\x04" + fields.octets(_X, "x", size=32) + fields.octets(_Y, "y", size=32)
    fields.close()
    load_point(point, name=fields.name)
    return point


def thumbprint(point: bytes) -> bytes:
    """Return the SHA-256 COSE key thumbprint (RFC 9679, section 4) of an uncompressed point."""
    return hashlib.sha256(cbor.encode(cose_key(point))).digest()
