"""Sealing: what the relay carries but cannot read.

HPKE base mode (RFC 9180) with X25519, HKDF-SHA256 and AES-256-GCM (suite 1). A seal says nothing of
its sender; every plaintext is a message that its sender signed. The direction, the suite and the
challenge go into `info`, so that a seal opens only in the exchange it was made for.

Plaintexts are padded into few sizes, because a report that tells of a violation is longer than one
that does not, and whoever reads the wire must not learn what the monitor found.
"""

from __future__ import annotations

import enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from affiant.model.errors import ForgedError, MalformedError
from affiant.wire import cbor

__all__ = ["MAX_PLAINTEXT", "SEALED_SIZES", "SUITE", "Direction", "open_sealed", "seal"]

SUITE = 1
"""The suite's number in challenges."""

SEALED_SIZES = (4096, 16384, 65536, 262144, 1044480)
"""Each sealed message has one of these lengths in bytes, the smallest that its plaintext fits.

The largest leaves room for an envelope within the 1 MiB of a request's body.
"""

_OVERHEAD = 32 + 16  # encapsulated key and authentication tag (RFC 9180, section 7)
_END = b"\x80"

MAX_PLAINTEXT = SEALED_SIZES[-1] - _OVERHEAD - len(_END)
"""The longest plaintext that can be sealed, in bytes."""

_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Direction(enum.Enum):
    """Who seals for whom; the value is part of HPKE's `info`."""

    TO_SERVICE = "m2s"
    TO_MONITOR = "s2m"
    TO_OPERATOR = "m2o"


def seal(plaintext: bytes, *, recipient: bytes, direction: Direction, challenge: bytes) -> bytes:
    """Return `plaintext` padded and sealed to the X25519 public key `recipient` (32 bytes).

    `challenge` is the digest of the challenge that the exchange began with. Raises `ValueError` for
    a plaintext beyond `MAX_PLAINTEXT`, `MalformedError` for a recipient that is no usable key.
    """
    if len(plaintext) > MAX_PLAINTEXT:
        raise ValueError(f"{len(plaintext)} bytes, at most {MAX_PLAINTEXT} can be sealed")
    info = _info(direction, challenge)
    try:
        key = X25519PublicKey.from_public_bytes(recipient)
        return _HPKE.encrypt(_pad(plaintext), key, info)
    except ValueError:
        # RFC 9180, section 7.1.4: an all-zero shared secret is refused.
        raise MalformedError("sealing key: not a usable X25519 key") from None


def open_sealed(sealed: bytes, *, key: X25519PrivateKey, direction: Direction, challenge: bytes) -> bytes:
    """Return the plaintext of a sealed message.

    What holds then:
    - it was sealed to `key`, in this direction, for this challenge, and not changed since;
    - it is the one padding of its plaintext.

    Raises `MalformedError` for a length that no sealed message has or a wrong padding, `ForgedError`
    when the seal does not open.
    """
    if len(sealed) not in SEALED_SIZES:
        raise MalformedError(f"sealed message: {len(sealed)} bytes is no size of a sealed message")
    info = _info(direction, challenge)
    try:
        padded = _HPKE.decrypt(sealed, key, info)
    except (InvalidTag, ValueError):
        raise ForgedError("sealed message: the seal does not open") from None
    return _unpad(padded)


def _info(direction: Direction, challenge: bytes) -> bytes:
    if len(challenge) != 32:
        raise ValueError("a challenge's digest has 32 bytes")
    return cbor.encode([f"affiant/1/hpke/{direction.value}", SUITE, challenge])


def _pad(plaintext: bytes) -> bytes:
    return (plaintext + _END).ljust(_padded_size(len(plaintext)), b"\x00")


def _padded_size(length: int) -> int:
    return next(size for size in SEALED_SIZES if length + len(_END) + _OVERHEAD <= size) - _OVERHEAD


def _unpad(padded: bytes) -> bytes:
    stripped = padded.rstrip(b"\x00")
    if not stripped.endswith(_END) or _padded_size(len(stripped) - 1) != len(padded):
        raise MalformedError("sealed message: the padding is wrong")
    return stripped[: -len(_END)]
