"""Receiving heartbeats: a session's runtime reports in one unbroken, unforked row."""

from __future__ import annotations

import secrets

from sqlalchemy.engine import Connection

from affiant.model.errors import ForgedError, UnavailableError
from affiant.model.heartbeat import HeartbeatAcknowledgement
from affiant.model.runtime_report import RuntimeReport
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.service.session_store import (
    Heartbeat,
    SessionRow,
    end_session,
    find_session_of_challenge,
    record_heartbeat,
    supersede_sessions,
)
from affiant.wire.heartbeat import sign_acknowledgement
from affiant.wire.runtime_report import read_runtime_report, verify_runtime_report

__all__ = ["receive_heartbeat"]


def receive_heartbeat(context: ServiceContext, body: bytes, *, now: int) -> bytes:
    """Return the signed acknowledgement of a sealed runtime report that is made for this service.

    What holds then:

    - the session was opened here, has not ended and has not expired;
    - its session key signed the report, for this service and about this session and device;
    - the report answers the nonce of the last acknowledgement, or of the one before, because an
      acknowledgement may be lost on the way;
    - it continues the session's row: a higher sequence number, and right after the last report one
      that names it as its predecessor.

    The first one of a session ends the earlier sessions of its machine, so that a copy of a monitor
    cannot go on with one of them.

    A report that contradicts the row (the same number twice with different content, a number that
    goes back, another predecessor) means that two monitors speak with one key: the session ends and
    stays ended. The same report twice is answered twice. One that was overtaken on the way is
    refused, and the session goes on: a courier must not be able to end it by changing the order.
    Raises an EvidenceError otherwise.
    """
    challenge, message = context.open_body(body)
    with transaction(context.engine) as connection:
        session = find_session_of_challenge(connection, challenge)
    if session is None:
        raise ForgedError("heartbeat: of no session that this service knows")
    if session.ended_because:
        raise ForgedError(f"heartbeat: the session has ended: {session.ended_because}")
    report = _verify(context, message, session, now=now)
    if (report.sequence, report.digest) == (session.last_sequence, session.last_digest):
        return _acknowledge(context, report, session.next_nonce, due_at=session.due_at, now=now)
    fork = _fork(report, session)
    if fork:
        with transaction(context.engine) as connection:
            end_session(connection, session.session_id, reason=fork)
        raise ForgedError(f"heartbeat: {fork}")
    next_nonce = secrets.token_bytes(32)
    due_at = now + context.settings.heartbeat_seconds
    with transaction(context.engine) as connection:
        _record(connection, session, report, next_nonce=next_nonce, due_at=due_at, now=now)
    return _acknowledge(context, report, next_nonce, due_at=due_at, now=now)


def _verify(context: ServiceContext, message: bytes, session: SessionRow, *, now: int) -> RuntimeReport:
    said = read_runtime_report(message)
    nonces = (session.next_nonce, session.previous_nonce)
    verified = verify_runtime_report(
        said,
        root=context.authority.root,
        now=now,
        expected_nonce=said.said.nonce if said.said.nonce in nonces else session.next_nonce,
        expected_audience=context.settings.issuer,
    )
    report = verified.report
    if verified.certificate.session_id != session.session_id:
        raise ForgedError("heartbeat: signed by the key of another session")
    if report.session_report != session.report_digest or report.device != session.device:
        raise ForgedError("heartbeat: about another session")
    return report


def _fork(report: RuntimeReport, session: SessionRow) -> str:
    """Return how the report contradicts those before it, or nothing.

    Raises ForgedError for one that was overtaken: it answers the same nonce as the last, which came
    later and first.
    """
    if report.sequence < session.last_sequence and report.nonce != session.next_nonce:
        raise ForgedError(f"heartbeat: report {report.sequence} was overtaken by {session.last_sequence}")
    if report.sequence <= session.last_sequence:
        return f"report {report.sequence} came after report {session.last_sequence}"
    follows = report.sequence == session.last_sequence + 1
    # Between two heartbeats other reports may have gone to relying parties: their digests are not
    # known here, but right after the last one the predecessor must be the last one, and only then.
    if follows != (report.previous == session.last_digest):
        return f"report {report.sequence} does not continue report {session.last_sequence}"
    return ""


def _record(
    connection: Connection,
    session: SessionRow,
    report: RuntimeReport,
    *,
    next_nonce: bytes,
    due_at: int,
    now: int,
) -> None:
    beat = Heartbeat(
        sequence=report.sequence,
        digest=report.digest,
        nonce=report.nonce,
        violations=len(report.violations),
        rules=report.rules,
        freshness=report.freshness,
    )
    if not record_heartbeat(connection, session, beat, next_nonce=next_nonce, due_at=due_at, now=now):
        raise UnavailableError("heartbeat: another one of this session came at the same moment")
    if session.last_sequence == 0:
        # Only now is it known that the answer reached the monitor, and that it speaks by this session.
        supersede_sessions(
            connection, devices={session.device}, by=session.session_id, issued_at=session.issued_at
        )


def _acknowledge(
    context: ServiceContext, report: RuntimeReport, next_nonce: bytes, *, due_at: int, now: int
) -> bytes:
    return sign_acknowledgement(
        HeartbeatAcknowledgement(
            runtime_report=report.digest,
            next_nonce=next_nonce,
            received_at=now,
            next_by=max(due_at, now + 1),
            rules=None if context.rules is None else context.rules.timestamp,
        ),
        key=context.authority.signing_key,
        certificate=context.authority.signing,
    )
