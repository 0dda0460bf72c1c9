"""Issuing challenges."""

from __future__ import annotations

import hashlib
import secrets

from affiant.appraisal.policy import REQUIRED_PCRS
from affiant.model.challenge import Challenge
from affiant.service.challenge_store import remember_challenge
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.wire.challenge import sign_challenge
from affiant.wire.seal import SUITE

__all__ = ["PROTOCOL_VERSION", "issue_challenge"]

PROTOCOL_VERSION = 1


def issue_challenge(context: ServiceContext, *, now: int) -> bytes:
    """Return a fresh challenge, signed; it is stored, and good for `challenge_seconds`.

    The rules that it demands are those of the settings, or the newest published ones where these say
    so: a relay that shows a monitor an older repository cannot open a session with it then.
    """
    settings = context.settings
    minimum = settings.minimum_rules_version
    if settings.require_published_rules and context.rules is not None:
        minimum = max(minimum, context.rules.newest_version())
    challenge = Challenge(
        issuer=settings.issuer,
        nonce=secrets.token_bytes(32),
        issued_at=now,
        expires_at=now + settings.challenge_seconds,
        protocol_version=PROTOCOL_VERSION,
        suites=(SUITE,),
        sealing_key=context.authority.sealing_public,
        minimum_rules_version=minimum,
        pcrs=REQUIRED_PCRS,
        digest=b"",
    )
    message = sign_challenge(
        challenge, key=context.authority.signing_key, certificate=context.authority.signing
    )
    with transaction(context.engine) as connection:
        remember_challenge(
            connection,
            digest=hashlib.sha256(message).digest(),
            message=message,
            nonce=challenge.nonce,
            expires_at=challenge.expires_at,
        )
    return message
