"""The service's challenge: what fresh evidence must answer to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Challenge"]


@dataclass(frozen=True, slots=True)
class Challenge:
    """A verified challenge (the signature led to the pinned service root).

    Times are seconds since the epoch by the service's clock. `sealing_key` is the service's HPKE
    public key (X25519, 32 bytes). `pcrs` are the PCR indices a quote must select in the SHA-256
    bank. `digest` is SHA-256 over the exact COSE_Sign1 bytes: everything after binds to it.
    """

    issuer: str
    nonce: bytes
    issued_at: int
    expires_at: int
    protocol_version: int
    suites: tuple[int, ...]
    sealing_key: bytes
    minimum_rules_version: int
    pcrs: tuple[int, ...]
    digest: bytes
