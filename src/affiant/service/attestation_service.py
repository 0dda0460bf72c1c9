"""The attestation service: five exchanges over bytes, and the clock of whoever calls.

It knows no HTTP and asks no clock: `affiant.service.http` is one door to it, tests are another.
"""

from __future__ import annotations

from affiant.model.errors import MalformedError
from affiant.service.ca import Authority
from affiant.service.challenge_store import forget_expired_challenges
from affiant.service.challenging import issue_challenge
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.service.device_store import forget_expired_enrolments
from affiant.service.enrolling import answer_enrolment, finish_enrolment
from affiant.service.heartbeats import receive_heartbeat
from affiant.service.opening import open_session_for
from affiant.service.published_rules import PublishedRules
from affiant.service.session_store import forget_old_sessions

__all__ = ["AttestationService"]

_TIDY_SECONDS = 60
_KEEP_SECONDS = 600


class AttestationService:
    """Each method takes a request's body and the time (`now`, seconds since the epoch).

    Methods may be called from several threads. All raise an EvidenceError for a request that is
    refused, UnavailableError when the database fails, and change nothing but what they say.
    """

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._tidied_at = 0

    @property
    def authority(self) -> Authority:
        """The service's keys and certificates."""
        return self._context.authority

    @property
    def rules(self) -> PublishedRules | None:
        """The repository of rules that the service gives out, if any."""
        return self._context.rules

    def challenge(self, body: bytes, *, now: int) -> bytes:
        """Return a fresh, signed challenge; the body must be empty."""
        if body:
            raise MalformedError("challenge: the request has a body")
        self._tidy(now)
        return issue_challenge(self._context, now=now)

    def enrolment(self, body: bytes, *, now: int) -> bytes:
        """Answer a sealed enrolment request with a signed credential challenge."""
        return answer_enrolment(self._context, body, now=now)

    def enrolment_proof(self, body: bytes, *, now: int) -> bytes:
        """Enrol the key whose TPM opened the credential; there is nothing to answer."""
        finish_enrolment(self._context, body, now=now)
        return b""

    def session(self, body: bytes, *, now: int) -> bytes:
        """Answer sealed evidence with a sealed session response."""
        return open_session_for(self._context, body, now=now)

    def heartbeat(self, body: bytes, *, now: int) -> bytes:
        """Answer a sealed runtime report with a signed acknowledgement."""
        return receive_heartbeat(self._context, body, now=now)

    def _tidy(self, now: int) -> None:
        """Forget, once a minute, what has expired long ago."""
        if now - self._tidied_at < _TIDY_SECONDS:
            return
        self._tidied_at = now
        with transaction(self._context.engine) as connection:
            forget_expired_challenges(connection, before=now - _KEEP_SECONDS)
            forget_expired_enrolments(connection, before=now - _KEEP_SECONDS)
            forget_old_sessions(connection, before=now - self._context.settings.retention_seconds)
