"""Old messages sent again: to the service, to the monitor, to a relying party (attack 1)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from affiant.model.errors import ForgedError
from affiant.model.level import SecurityLevel
from affiant.model.passport import Passport
from affiant.relying_party.verify import NotForUsError, verify_passport
from affiant.wire.challenge import verify_challenge
from affiant.wire.enrolment import encode_enrolment_request
from affiant.wire.keys import point_of
from affiant.wire.passport import encode_passport
from affiant.wire.seal import Direction, open_sealed
from affiant.wire.session_response import verify_session_response
from tests.simulator import AUDIENCE, NONCE, Machine, Session, World, root_pem


def check(session: Session, passport: bytes, *, nonce: bytes = NONCE, audience: str = AUDIENCE) -> None:
    """Verify a passport as a relying party does."""
    service = session.machine.service
    verify_passport(
        passport,
        root=root_pem(service),
        expected_nonce=nonce,
        now=service.now,
        expected_audience=audience,
        expected_device=session.report.device,
    )


def test_replayed_evidence_is_refused(world: World, machine: Machine) -> None:
    """The same body twice opens one session, and the session of the first stays as it was."""
    answer = machine.answer(world.service.challenge())
    body = machine.sealed(answer.challenge, answer.message())
    world.service.api.session(body, now=world.service.now)
    with pytest.raises(ForgedError, match="answered before"):
        world.service.api.session(body, now=world.service.now)
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


def test_old_evidence_under_a_new_challenge_is_refused(world: World, machine: Machine) -> None:
    """Its enclave report, its quote and its signature all answer the challenge of before."""
    old = machine.answer(world.service.challenge())
    machine.send(old)
    with pytest.raises(ForgedError):
        machine.send(replace(old, challenge=world.service.challenge()))


def test_an_old_quote_in_fresh_evidence_is_refused(world: World, machine: Machine) -> None:
    old = machine.answer(world.service.challenge())
    fresh = machine.answer(world.service.challenge()).with_evidence(quote=old.evidence.quote)
    with pytest.raises(ForgedError, match="extraData"):
        machine.send(fresh)


def test_replayed_challenge_is_refused(world: World, machine: Machine) -> None:
    """A relay that hands out an old challenge makes the monitor's answer worthless."""
    challenge = world.service.challenge()
    machine.send(machine.answer(challenge))
    with pytest.raises(ForgedError, match="answered before"):
        machine.send(machine.answer(challenge))


def test_an_expired_challenge_is_refused_by_both_sides(world: World, machine: Machine) -> None:
    data = world.service.api.challenge(b"", now=world.service.now)
    challenge = verify_challenge(data, root=world.service.root, now=world.service.now)
    world.service.now += 121
    with pytest.raises(ForgedError, match="expired"):
        verify_challenge(data, root=world.service.root, now=world.service.now)
    with pytest.raises(ForgedError, match="expired"):
        machine.send(machine.answer(challenge))


def test_a_challenge_spent_by_a_forgery_stays_spent(world: World, machine: Machine) -> None:
    """Otherwise a forger could try one challenge as often as he likes."""
    honest = machine.answer(world.service.challenge())
    with pytest.raises(ForgedError, match="extraData"):
        machine.send(honest.with_evidence(quote=machine.answer(world.service.challenge()).evidence.quote))
    with pytest.raises(ForgedError, match="answered before"):
        machine.send(honest)


def test_a_replayed_enrolment_is_refused(world: World, machine: Machine) -> None:
    challenge = world.service.challenge()
    body = machine.sealed(challenge, encode_enrolment_request(machine.enrolment_request(challenge)))
    world.service.api.enrolment(body, now=world.service.now)
    with pytest.raises(ForgedError, match="answered before"):
        world.service.api.enrolment(body, now=world.service.now)


def test_a_replayed_session_response_is_refused_by_the_monitor(world: World, machine: Machine) -> None:
    """An answer to an earlier challenge does not open, nor verify, for a later one."""
    first = machine.answer(world.service.challenge())
    sealed = world.service.api.session(
        machine.sealed(first.challenge, first.message()), now=world.service.now
    )
    later = world.service.challenge()
    with pytest.raises(ForgedError):
        open_sealed(sealed, key=first.sealing_key, direction=Direction.TO_MONITOR, challenge=later.digest)
    opened = open_sealed(
        sealed, key=first.sealing_key, direction=Direction.TO_MONITOR, challenge=first.challenge.digest
    )
    with pytest.raises(ForgedError, match="another challenge"):
        verify_session_response(
            opened,
            root=world.service.root,
            now=world.service.now,
            challenge=later,
            evidence_digest=hashlib.sha256(first.message()).digest(),
            session_key=point_of(first.session_key.public_key()),
        )


def test_replayed_runtime_report_is_refused(machine: Machine) -> None:
    """A passport answers one nonce of one relying party; the true one is accepted before and after."""
    session = machine.attest()
    passport = session.passport()
    check(session, passport)
    with pytest.raises(NotForUsError, match="nonce"):
        check(session, passport, nonce=bytes(32))
    with pytest.raises(NotForUsError, match="gate"):
        check(session, passport, audience="bank")
    check(session, passport)


def test_an_expired_runtime_report_is_refused(machine: Machine) -> None:
    session = machine.attest()
    passport = session.passport()
    machine.service.now += 61
    with pytest.raises(NotForUsError, match="expired"):
        check(session, passport)
    check(session, session.passport())


def test_a_passport_after_the_sessions_end_is_refused(machine: Machine) -> None:
    """One hour is the longest that a stolen session key is worth anything (attack 24)."""
    session = machine.attest()
    machine.service.now = session.report.expires_at + 1
    with pytest.raises(NotForUsError):
        check(session, session.passport())


def test_an_older_session_report_under_a_newer_runtime_report_is_refused(machine: Machine) -> None:
    """The key that signs must be the key that was appraised (attack 12)."""
    older, newer = machine.attest(), machine.attest()
    swapped = encode_passport(Passport(older.report_bytes, newer.runtime_report(NONCE, AUDIENCE)))
    with pytest.raises(ForgedError):
        check(newer, swapped)
    check(newer, newer.passport())
