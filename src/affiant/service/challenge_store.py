"""Challenges that are out, each good for one enrolment and one session and for two minutes at most."""

from __future__ import annotations

import enum

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from affiant.model.errors import ForgedError
from affiant.service.tables import challenges

__all__ = ["Purpose", "forget_expired_challenges", "remember_challenge", "use_challenge"]


class Purpose(enum.Enum):
    """What a challenge is spent on; the value is the column that holds when."""

    ENROLMENT = "enrolment_at"
    SESSION = "session_at"


def remember_challenge(
    connection: Connection, *, digest: bytes, message: bytes, nonce: bytes, expires_at: int
) -> None:
    """Store a challenge that is about to be sent."""
    connection.execute(
        insert(challenges).values(digest=digest, message=message, nonce=nonce, expires_at=expires_at)
    )


def use_challenge(connection: Connection, digest: bytes, *, purpose: Purpose, now: int) -> bytes:
    """Spend the challenge of that digest and return its message.

    What holds then:

    - this service issued it, and it has not expired at `now`;
    - it was not spent on `purpose` before, by this process or another.

    Raises ForgedError otherwise. The caller commits even when what follows is refused: evidence
    that failed once must not be tried again.
    """
    column = challenges.c[purpose.value]
    spent = connection.execute(
        update(challenges)
        .where(challenges.c.digest == digest, column.is_(None), challenges.c.expires_at > now)
        .values({purpose.value: now})
    )
    if spent.rowcount != 1:
        raise ForgedError(
            "the challenge was not issued by this service, has expired or was answered before",
            hint="ask for a new challenge",
        )
    message: bytes = connection.execute(
        select(challenges.c.message).where(challenges.c.digest == digest)
    ).scalar_one()
    return message


def forget_expired_challenges(connection: Connection, *, before: int) -> int:
    """Delete challenges that expired before that time; return how many."""
    return connection.execute(delete(challenges).where(challenges.c.expires_at < before)).rowcount
