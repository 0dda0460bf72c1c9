"""The enclave report: the launcher's word for the monitor, signed by the identity key."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EnclaveReport"]


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """Binds a session key to a measured monitor and to one challenge.

    `challenge`: SHA-256 of the challenge's bytes. `session_key`: P-256 SEC 1 point (65 bytes).
    `sealing_key`: the monitor's own HPKE public key (X25519, 32 bytes). `digest`: SHA-256 over
    the exact COSE_Sign1 bytes. The other fields repeat the launch record.
    """

    challenge: bytes
    session_key: bytes
    sealing_key: bytes
    monitor_image: bytes
    monitor_version: str
    security_version: int
    debug: bool
    service_root: bytes
    rules_version: int
    digest: bytes
    rules_root: bytes | None = None
