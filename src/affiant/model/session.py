"""A session: the attestation service's result about one monitor, for at most one hour."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.model.level import SecurityLevel, Shortfall

__all__ = ["SessionReport", "SessionResponse"]


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A verified session report (EAR): its signature led to the service root.

    `device`: UEID of the machine (first byte 0x01). `session_key_thumbprint`: SHA-256 COSE key
    thumbprint (RFC 9679). `level` with `shortfalls`: what keeps the machine from higher levels.
    `claims`: positive-polarity claim to True, False or None (not seen: counts as unsafe).
    `trust_vector`: AR4SI key to int8. `kernel` is the digest of the kernel file that the boot log
    proves, `reference` that of the reference image made from it; both None where unknown.
    `evidence`: SHA-256 of the evidence message. `digest`: SHA-256 of this report's bytes.
    """

    issuer: str
    device: bytes
    issued_at: int
    expires_at: int
    session_id: bytes
    nonce: bytes
    session_key_thumbprint: bytes
    level: SecurityLevel
    shortfalls: tuple[Shortfall, ...]
    claims: tuple[tuple[str, bool | None], ...]
    trust_vector: tuple[tuple[int, int], ...]
    policy: bytes
    minimum_rules_version: int
    kernel: bytes | None
    reference: bytes | None
    evidence: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class SessionResponse:
    """What the service answers to evidence, after the monitor has unsealed and verified it.

    `certificates`: DER, session certificate first, then the session CA (without the root).
    `session_report`: COSE_Sign1 bytes, handed on unchanged in every passport.
    """

    challenge: bytes
    evidence: bytes
    certificates: tuple[bytes, ...]
    session_report: bytes
    refresh_by: int
