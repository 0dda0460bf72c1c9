"""Sessions that were given out, and the heartbeats by which they show that they still live."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.engine import Connection, Row

from affiant.model.runtime_report import RulesFreshness, RulesUsed
from affiant.service.tables import heartbeats, sessions

__all__ = [
    "Heartbeat",
    "SessionRow",
    "SessionState",
    "all_sessions",
    "end_session",
    "find_session_of_challenge",
    "forget_old_sessions",
    "open_session",
    "record_heartbeat",
    "supersede_sessions",
]

_SUPERSEDED = "superseded by a later session of the same machine"


class SessionState(enum.Enum):
    """How a session stands; the value is the word shown to people."""

    ALIVE = "alive"
    SILENT = "silent"
    SUPERSEDED = "superseded"
    ENDED = "ended"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored; times are seconds since the epoch.

    `report` is the session report's bytes and `certificate` the session certificate (DER).
    `next_nonce` is what the next heartbeat must answer, `previous_nonce` what the last one
    answered (its acknowledgement may have been lost on the way). `due_at`: silence begins then.
    `rules_name` to `rules_trouble` are what the last heartbeat said of the rules that judge there, at
    `last_seen`: None before the first; the last three also for a monitor that takes no published rules.
    """

    session_id: bytes
    device: bytes
    level: int
    report: bytes
    report_digest: bytes
    certificate: bytes
    challenge: bytes
    issued_at: int
    expires_at: int
    next_nonce: bytes
    previous_nonce: bytes
    due_at: int
    last_sequence: int
    last_digest: bytes
    last_seen: int
    violations: int
    ended_because: str
    rules_name: str | None = None
    rules_version: int | None = None
    rules_age_ms: int | None = None
    rules_expired: bool | None = None
    rules_trouble: str | None = None

    def state(self, *, now: int) -> SessionState:
        """Return how the session stands at `now`; what was ended stays ended."""
        if self.ended_because:
            superseded = self.ended_because == _SUPERSEDED
            return SessionState.SUPERSEDED if superseded else SessionState.ENDED
        if now >= self.expires_at:
            return SessionState.EXPIRED
        return SessionState.SILENT if now > self.due_at else SessionState.ALIVE


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A verified runtime report's place in its session's row, and what of it is kept.

    `violations` counts those that it tells; `freshness` is None for a monitor that takes no published rules.
    """

    sequence: int
    digest: bytes
    nonce: bytes
    violations: int
    rules: RulesUsed
    freshness: RulesFreshness | None


def open_session(connection: Connection, row: SessionRow) -> None:
    """Store a session that is about to be answered."""
    connection.execute(insert(sessions).values({name: getattr(row, name) for name in _COLUMNS}))


def find_session_of_challenge(connection: Connection, challenge: bytes) -> SessionRow | None:
    """Return the session that began with the challenge of that digest."""
    row = connection.execute(select(*_SELECTED).where(sessions.c.challenge == challenge)).one_or_none()
    return None if row is None else _session(row)


def record_heartbeat(
    connection: Connection, before: SessionRow, beat: Heartbeat, *, next_nonce: bytes, due_at: int, now: int
) -> bool:
    """Move the session on from `before`; False when another heartbeat got there first."""
    moved = connection.execute(
        update(sessions)
        .where(
            sessions.c.session_id == before.session_id,
            sessions.c.last_sequence == before.last_sequence,
            sessions.c.next_nonce == before.next_nonce,
            sessions.c.ended_because == "",
        )
        .values(
            last_sequence=beat.sequence,
            last_digest=beat.digest,
            last_seen=now,
            violations=beat.violations,
            rules_name=beat.rules.name,
            rules_version=beat.rules.version,
            rules_age_ms=beat.freshness and beat.freshness.age_ms,
            rules_expired=beat.freshness and beat.freshness.expired,
            rules_trouble=beat.freshness and beat.freshness.trouble,
            previous_nonce=beat.nonce,
            next_nonce=next_nonce,
            due_at=due_at,
        )
    )
    if moved.rowcount != 1:
        return False
    connection.execute(
        insert(heartbeats).values(
            session_id=before.session_id,
            sequence=beat.sequence,
            digest=beat.digest,
            received_at=now,
            violations=beat.violations,
        )
    )
    return True


def end_session(connection: Connection, session_id: bytes, *, reason: str) -> None:
    """Let nothing from this session count any more; the first reason stays."""
    connection.execute(
        update(sessions)
        .where(sessions.c.session_id == session_id, sessions.c.ended_because == "")
        .values(ended_because=reason[:200])
    )


def supersede_sessions(
    connection: Connection, *, devices: Collection[bytes], by: bytes, issued_at: int
) -> None:
    """Let the session `by`, opened at `issued_at`, take the place of earlier ones of these devices.

    A machine has one monitor and a monitor one session, so that an earlier one must not go on beside
    it. Nor does it count as silent: its monitor speaks elsewhere. What was ended before stays as it is.
    """
    earlier = or_(
        sessions.c.issued_at < issued_at,
        # Times are whole seconds; one of the same second that has spoken is not the earlier one.
        and_(sessions.c.issued_at == issued_at, sessions.c.last_sequence == 0),
    )
    connection.execute(
        update(sessions)
        .where(
            sessions.c.device.in_(devices),
            sessions.c.session_id != by,
            sessions.c.ended_because == "",
            earlier,
        )
        .values(ended_because=_SUPERSEDED)
    )


def all_sessions(connection: Connection) -> tuple[SessionRow, ...]:
    """Return every session that is still remembered, newest last."""
    rows = connection.execute(select(*_SELECTED).order_by(sessions.c.issued_at, sessions.c.session_id))
    return tuple(_session(row) for row in rows)


def forget_old_sessions(connection: Connection, *, before: int) -> int:
    """Delete sessions that expired before that time, with their heartbeats; return how many."""
    old = select(sessions.c.session_id).where(sessions.c.expires_at < before)
    connection.execute(delete(heartbeats).where(heartbeats.c.session_id.in_(old)))
    return connection.execute(delete(sessions).where(sessions.c.expires_at < before)).rowcount


_COLUMNS = tuple(SessionRow.__dataclass_fields__)
_SELECTED = tuple(sessions.c[name] for name in _COLUMNS)


def _session(row: Row[tuple[object, ...]]) -> SessionRow:
    return SessionRow(**row._mapping)
