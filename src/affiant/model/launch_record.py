"""The launch record: what the launcher swears it started, held by PCR 17.

The gateway hashes the record's encoding (`affiant.wire.launch_record`) at locality 4 right after
the firmware's `TPM2_Startup`, so that PCR 17 = SHA-256(0^32 || SHA-256(encoding)).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_RULES_ROOT", "LaunchRecord"]

MAX_RULES_ROOT = 64 << 10
"""The longest root file of published rules, in bytes; it reaches the monitor as an argument."""


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """Identity of the monitor and of the key that speaks for it.

    `monitor_image`: SHA-256 over the manifest of every file the monitor can see.
    `service_root`: SHA-256 of the DER certificate of the one service root the monitor accepts.
    `rules_root`: SHA-256 of the one root file under which the monitor takes published rules, None for a
    monitor that judges by the library in its image and by nothing else.
    `fleet`: whose rules of those under that root the monitor takes; None exactly where `rules_root` is.
    `identity_key`: P-256 public key, uncompressed SEC 1 point (65 bytes).
    `security_version`: raised whenever an older monitor must no longer be trusted.
    """

    monitor_image: bytes
    monitor_version: str
    security_version: int
    debug: bool
    service_root: bytes
    identity_key: bytes
    rules_root: bytes | None = None
    fleet: str | None = None
