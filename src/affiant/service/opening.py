"""Opening sessions: from sealed evidence to a session report and a session certificate."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets

from cryptography import x509
from sqlalchemy.engine import Connection

from affiant.appraisal.appraise import AppraisalResult, appraise
from affiant.appraisal.attester import Attester, verify_attester
from affiant.appraisal.enrolled_key import EnrolledKey
from affiant.appraisal.policy import AppraisalPolicy, policy_digest
from affiant.appraisal.rooted import claimed_key_name
from affiant.model.challenge import Challenge
from affiant.model.session import SessionReport, SessionResponse
from affiant.service.challenge_store import Purpose, use_challenge
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.service.device_store import find_enrolled_key, note_boot_counters
from affiant.service.session_store import SessionRow, open_session, supersede_sessions
from affiant.service.trust_store import accepted_monitor_set, all_references, anchor_certificates
from affiant.wire.challenge import verify_challenge
from affiant.wire.heartbeat import first_heartbeat_nonce
from affiant.wire.keys import load_point, thumbprint
from affiant.wire.plain_text import plain
from affiant.wire.seal import Direction, seal
from affiant.wire.session_report import sign_session_report
from affiant.wire.session_response import sign_session_response

__all__ = ["current_policy", "open_session_for"]

# A session certificate begins a minute in the past and lives one hour in all.
_LONGEST_SECONDS = 3540
_UEID_RANDOM = b"\x01"  # RFC 9711, section 4.2.1


def current_policy(context: ServiceContext, connection: Connection) -> AppraisalPolicy:
    """Return the operator's policy with what settings, registered monitors and published rules add to it.

    Of the two minimum security versions the higher one holds.
    """
    settings = context.settings
    stated = settings.policy
    return dataclasses.replace(
        stated,
        monitors=stated.monitors | accepted_monitor_set(connection),
        accept_any_monitor_image=stated.accept_any_monitor_image or settings.accept_any_monitor_image,
        minimum_security_version=max(stated.minimum_security_version, settings.minimum_security_version),
        rules_roots=stated.rules_roots | (frozenset() if context.rules is None else context.rules.roots()),
    )


def open_session_for(context: ServiceContext, body: bytes, *, now: int) -> bytes:
    """Return the sealed answer to sealed evidence: certificate, session report, time to refresh.

    What holds then: the evidence answers an unspent challenge of this service, its parts belong
    together, and the level in the report is what `affiant.appraisal` found. Raises an
    EvidenceError when anything in it is forged or malformed; the challenge is spent either way.
    """
    digest, message = context.open_body(body)
    with transaction(context.engine) as connection:
        challenge_message = use_challenge(connection, digest, purpose=Purpose.SESSION, now=now)
    challenge = verify_challenge(challenge_message, root=context.authority.root, now=now)
    attester = verify_attester(message, challenge=challenge, service_root=context.root_digest)
    with transaction(context.engine) as connection:
        enrolled = _find_key(connection, attester)
        policy = current_policy(context, connection)
        anchors = [x509.load_der_x509_certificate(der) for der in anchor_certificates(connection)]
        result = appraise(
            attester,
            challenge=challenge,
            enrolled=enrolled,
            anchors=anchors,
            policy=policy,
            references=all_references(connection),
            now=now,
        )
        device = _device(attester, result, enrolled)
        if enrolled is not None and result.counters is not None:
            note_boot_counters(connection, enrolled.device, result.counters, now=now)
        return _grant(context, connection, attester, challenge, result, policy, device=device, now=now)


def _find_key(connection: Connection, attester: Attester) -> EnrolledKey | None:
    quote = attester.evidence.quote
    return None if quote is None else find_enrolled_key(connection, claimed_key_name(quote))


def _device(attester: Attester, result: AppraisalResult, enrolled: EnrolledKey | None) -> bytes:
    """Return the UEID: the enrolled device's, or one that lasts as long as the identity key.

    Only a quote by the enrolled key, fresh and trusted, lets a monitor speak for its device.
    """
    if enrolled is not None and result.counters is not None:
        return enrolled.device
    return _unproven_device(attester)


def _unproven_device(attester: Attester) -> bytes:
    name = b"affiant/1/unproven device" + attester.launch_record.identity_key
    return _UEID_RANDOM + hashlib.sha256(name).digest()


def _grant(
    context: ServiceContext,
    connection: Connection,
    attester: Attester,
    challenge: Challenge,
    result: AppraisalResult,
    policy: AppraisalPolicy,
    *,
    device: bytes,
    now: int,
) -> bytes:
    authority, settings = context.authority, context.settings
    session_id = secrets.token_bytes(16)
    expires_at = now + min(settings.session_seconds, _LONGEST_SECONDS)
    session_key = attester.enclave_report.session_key
    certificates = authority.issue_session_certificate(
        load_point(session_key, name="session key"), session_id=session_id, now=now, expires_at=expires_at
    )
    report = sign_session_report(
        _report(context, attester, challenge, result, policy, session_id=session_id, device=device, now=now),
        key=authority.signing_key,
        certificate=authority.signing,
    )
    report_digest = hashlib.sha256(report).digest()
    first_nonce = first_heartbeat_nonce(report_digest)
    open_session(
        connection,
        SessionRow(
            session_id=session_id,
            device=device,
            level=int(result.level),
            report=report,
            report_digest=report_digest,
            certificate=certificates[0],
            challenge=challenge.digest,
            issued_at=now,
            expires_at=expires_at,
            next_nonce=first_nonce,
            previous_nonce=first_nonce,
            due_at=now + settings.heartbeat_seconds,
            last_sequence=0,
            last_digest=bytes(32),
            last_seen=now,
            violations=0,
            ended_because="",
        ),
    )
    if device != (unproven := _unproven_device(attester)):
        # The same launcher spoke for no device yet while its guest was in firmware.
        supersede_sessions(connection, devices={unproven}, by=session_id, issued_at=now)
    response = sign_session_response(
        SessionResponse(
            challenge=challenge.digest,
            evidence=attester.evidence_digest,
            certificates=certificates,
            session_report=report,
            refresh_by=min(now + settings.refresh_seconds, expires_at),
        ),
        key=authority.signing_key,
        certificate=authority.signing,
    )
    return seal(
        response,
        recipient=attester.enclave_report.sealing_key,
        direction=Direction.TO_MONITOR,
        challenge=challenge.digest,
    )


def _report(
    context: ServiceContext,
    attester: Attester,
    challenge: Challenge,
    result: AppraisalResult,
    policy: AppraisalPolicy,
    *,
    session_id: bytes,
    device: bytes,
    now: int,
) -> SessionReport:
    return SessionReport(
        issuer=context.settings.issuer,
        device=device,
        issued_at=now,
        expires_at=now + min(context.settings.session_seconds, _LONGEST_SECONDS),
        session_id=session_id,
        nonce=challenge.nonce,
        session_key_thumbprint=thumbprint(attester.enclave_report.session_key),
        level=result.level,
        shortfalls=tuple(
            dataclasses.replace(shortfall, explanation=plain(shortfall.explanation[:_LONGEST_EXPLANATION]))
            for shortfall in result.shortfalls
        ),
        claims=result.claims,
        trust_vector=result.trust_vector,
        policy=policy_digest(policy),
        minimum_rules_version=challenge.minimum_rules_version,
        kernel=result.kernel,
        reference=result.reference,
        evidence=attester.evidence_digest,
        digest=b"",
    )


_LONGEST_EXPLANATION = 512
