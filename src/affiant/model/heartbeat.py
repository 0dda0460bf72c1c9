"""The acknowledgement of a heartbeat: silence of either side is noticed by the other."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HeartbeatAcknowledgement"]


@dataclass(frozen=True, slots=True)
class HeartbeatAcknowledgement:
    """The service received a runtime report.

    `runtime_report`: SHA-256 of the report's bytes. `next_nonce` (32 bytes): what the next heartbeat
    answers to. Times by the service's clock: `received_at`, and `next_by`, the time from which the
    service counts the monitor as silent. `rules`: SHA-256 of the newest timestamp of published rules that
    the service knows, None where it publishes none: one that a monitor has not seen is worth a look.
    """

    runtime_report: bytes
    next_nonce: bytes
    received_at: int
    next_by: int
    rules: bytes | None = None
