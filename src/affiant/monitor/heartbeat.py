"""Heartbeats: runtime reports for the service, so that silence is noticed on both sides."""

from __future__ import annotations

import hashlib

from cryptography import x509

from affiant.monitor.courier_client import CourierClient
from affiant.monitor.session import Session
from affiant.wire.envelope import write_envelope
from affiant.wire.heartbeat import first_heartbeat_nonce, verify_acknowledgement
from affiant.wire.seal import Direction, seal

__all__ = ["Heartbeat"]

_RETRY_MS = 5_000


class Heartbeat:
    """The heartbeats of one session: which nonce comes next, and when.

    `published` is SHA-256 of the newest timestamp of published rules that the service told of, or None.
    """

    def __init__(self, courier: CourierClient, session: Session, *, root: x509.Certificate) -> None:
        self._courier = courier
        self._session = session
        self._root = root
        self.nonce = first_heartbeat_nonce(session.report.digest)
        self.due_ms = 0
        self.published: bytes | None = None

    @property
    def audience(self) -> str:
        """Whom the reports are for: the service that issued the session."""
        return self._session.challenge.issuer

    def send(self, report: bytes, *, now_ms: int) -> None:
        """Send a signed runtime report over `nonce` and take in the acknowledgement.

        Raises `ServiceRefusedError` when the service knows no such session (any more),
        `UnavailableError` when it is not reached, `EvidenceError` when the answer is not its own.
        """
        challenge = self._session.challenge
        sealed = seal(
            report,
            recipient=challenge.sealing_key,
            direction=Direction.TO_SERVICE,
            challenge=challenge.digest,
        )
        self.due_ms = now_ms + _RETRY_MS
        answer = self._courier.post("/v1/heartbeat", write_envelope(challenge.digest, sealed))
        acknowledgement = verify_acknowledgement(
            answer,
            root=self._root,
            now=self._session.clock.now(now_ms),
            expected_report=hashlib.sha256(report).digest(),
        )
        self.nonce = acknowledgement.next_nonce
        self.published = acknowledgement.rules
        # At half the time, so that one lost message is not yet silence.
        left_s = acknowledgement.next_by - acknowledgement.received_at
        if self.due_ms:  # else there is more to tell at once: it was seen while the answer was awaited
            self.due_ms = now_ms + max(1, left_s // 2) * 1_000
