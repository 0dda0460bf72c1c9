"""The envelope of a sealed message to the service: which challenge it answers, in the clear.

A seal opens only with the digest of its challenge, so the service must know that digest first. It is
no secret, and lying about it only keeps the seal shut.
"""

from __future__ import annotations

from affiant.model.errors import MalformedError

__all__ = ["read_envelope", "write_envelope"]

_DIGEST = 32


def write_envelope(challenge: bytes, sealed: bytes) -> bytes:
    """Return the body of a request: the challenge's digest (32 bytes), then the sealed message."""
    if len(challenge) != _DIGEST:
        raise ValueError("a challenge's digest has 32 bytes")
    return challenge + sealed


def read_envelope(body: bytes) -> tuple[bytes, bytes]:
    """Return the challenge's digest and the sealed message; raises `MalformedError` when too short."""
    if len(body) <= _DIGEST:
        raise MalformedError(f"envelope: {len(body)} bytes hold no sealed message")
    return body[:_DIGEST], body[_DIGEST:]
