"""Sessions copied, silenced, read on the wire, confused or downgraded (attacks 8, 9, 15 to 24)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.model.finding import Finding
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode, Outcome
from affiant.model.passport import Passport
from affiant.model.runtime_report import AssertionReport, Violation
from affiant.relying_party.decide import Policy, decide
from affiant.relying_party.verify import NotForUsError, verify_passport
from affiant.service.database import transaction
from affiant.service.session_store import SessionState, all_sessions
from affiant.wire.challenge import verify_challenge
from affiant.wire.enrolment import encode_enrolment_request
from affiant.wire.envelope import write_envelope
from affiant.wire.passport import encode_passport
from affiant.wire.seal import Direction, seal
from tests.simulator import AUDIENCE, NONCE, Machine, Session, World, make_world, root_pem


def state(session: Session) -> SessionState:
    service = session.machine.service
    with transaction(service.context.engine) as connection:
        (row,) = [r for r in all_sessions(connection) if r.session_id == session.report.session_id]
    return row.state(now=service.now)


def clone(session: Session) -> Session:
    """Return a copy of a monitor's state, as a snapshot of its memory would be."""
    return replace(session)


def test_a_forked_monitor_is_noticed_and_its_session_ends(machine: Machine) -> None:
    """Two monitors with one key give one number twice; nothing from this session counts again."""
    session = machine.attest()
    session.heartbeat()
    copy = clone(session)
    session.heartbeat()
    with pytest.raises(ForgedError, match="came after"):
        copy.heartbeat()
    assert state(session) is SessionState.ENDED
    with pytest.raises(ForgedError, match="has ended"):
        session.heartbeat()
    assert state(machine.attest()) is SessionState.ALIVE


def test_a_monitor_set_back_to_an_older_state_is_noticed(machine: Machine) -> None:
    session = machine.attest()
    old = clone(session)
    for _ in range(3):
        session.heartbeat()
    old.nonce = session.nonce
    with pytest.raises(ForgedError, match="came after"):
        old.heartbeat()
    assert state(session) is SessionState.ENDED


def test_a_chain_with_another_predecessor_is_noticed(machine: Machine) -> None:
    session = machine.attest()
    session.heartbeat()
    session.previous = b"\x01" * 32
    with pytest.raises(ForgedError, match="does not continue"):
        session.heartbeat()
    assert state(session) is SessionState.ENDED


def test_reports_to_relying_parties_between_heartbeats_are_no_fork(machine: Machine) -> None:
    session = machine.attest()
    session.heartbeat()
    session.passport()
    session.passport()
    session.heartbeat()
    assert state(session) is SessionState.ALIVE


def test_a_lost_acknowledgement_is_no_fork(machine: Machine) -> None:
    """The same report again, or the next one over the same nonce, is answered as if nothing was lost."""
    session = machine.attest()
    issuer = machine.service.settings.issuer
    lost_nonce = session.nonce
    report = session.runtime_report(lost_nonce, issuer)
    first = session.heartbeat(report)
    again = session.heartbeat(report)
    assert first.next_nonce == again.next_nonce
    for _ in range(3):
        session.nonce = lost_nonce
        session.heartbeat()
    assert state(session) is SessionState.ALIVE


def test_a_courier_that_changes_the_order_cannot_end_a_session(machine: Machine) -> None:
    session = machine.attest()
    issuer = machine.service.settings.issuer
    slow, fast = session.runtime_report(session.nonce, issuer), session.runtime_report(session.nonce, issuer)
    session.heartbeat(fast)
    with pytest.raises(ForgedError, match="overtaken"):
        session.heartbeat(slow)
    session.heartbeat()
    assert state(session) is SessionState.ALIVE


def test_an_old_heartbeat_sent_again_changes_nothing(machine: Machine) -> None:
    session = machine.attest()
    old = session.runtime_report(session.nonce, machine.service.settings.issuer)
    session.heartbeat(old)
    session.heartbeat()
    session.heartbeat()
    nonce = session.nonce
    with pytest.raises(ForgedError, match="nonce"):
        session.heartbeat(old)
    assert (state(session), session.nonce) == (SessionState.ALIVE, nonce)
    session.heartbeat()


def test_silence_is_noticed(machine: Machine) -> None:
    """A relay can keep the monitor from speaking, but not make that look healthy (attack 16)."""
    session = machine.attest()
    machine.service.now += machine.service.settings.heartbeat_seconds + 1
    assert state(session) is SessionState.SILENT
    session.heartbeat()
    assert state(session) is SessionState.ALIVE
    machine.service.now = session.report.expires_at
    assert state(session) is SessionState.EXPIRED


def test_a_later_session_takes_the_place_of_an_earlier_one(machine: Machine) -> None:
    """And only once its monitor speaks by it: the answer that opened it may be lost on the way."""
    earlier = machine.attest()
    earlier.heartbeat()
    machine.service.now += 5
    lost = machine.attest()
    earlier.heartbeat()
    assert (state(earlier), state(lost)) == (SessionState.ALIVE, SessionState.ALIVE)
    machine.service.now += 5
    later = machine.attest()
    later.heartbeat()
    assert [state(one) for one in (earlier, lost, later)] == [
        SessionState.SUPERSEDED,
        SessionState.SUPERSEDED,
        SessionState.ALIVE,
    ]


def test_a_copied_monitor_cannot_go_on_with_the_earlier_session(machine: Machine) -> None:
    """One machine, one monitor, one session: a copy that stays behind is refused and ends nothing."""
    session = machine.attest()
    session.heartbeat()
    copy = clone(session)
    machine.service.now += 5
    renewed = machine.attest()
    renewed.heartbeat()
    with pytest.raises(ForgedError, match="has ended: superseded"):
        copy.heartbeat()
    machine.service.now += 5
    renewed.heartbeat()
    assert state(renewed) is SessionState.ALIVE


def test_a_session_that_ended_for_a_fork_is_never_called_superseded(machine: Machine) -> None:
    session = machine.attest()
    session.heartbeat()
    copy = clone(session)
    session.heartbeat()
    with pytest.raises(ForgedError, match="came after"):
        copy.heartbeat()
    machine.service.now += 5
    machine.attest().heartbeat()
    assert state(session) is SessionState.ENDED


def test_another_machine_supersedes_nothing(world: World, machine: Machine) -> None:
    session = machine.attest()
    session.heartbeat()
    world.service.now += 5
    world.machine().attest().heartbeat()
    assert state(session) is SessionState.ALIVE


def test_a_machine_in_its_firmware_is_superseded_by_what_it_becomes(world: World, machine: Machine) -> None:
    """Before its TPM speaks for it, a launcher's sessions are of no device; it is the same machine."""
    tpm, machine.tpm = machine.tpm, None
    in_firmware = machine.attest()
    world.service.now += 5
    machine.tpm = tpm
    booted = machine.attest()
    assert in_firmware.report.device != booted.report.device
    assert (state(in_firmware), state(booted)) == (SessionState.SUPERSEDED, SessionState.ALIVE)


def test_a_heartbeat_of_another_session_is_refused(world: World, machine: Machine) -> None:
    mine, other = machine.attest(), world.machine().attest()
    report = other.runtime_report(mine.nonce, world.service.settings.issuer)
    with pytest.raises(ForgedError, match="another session"):
        mine.heartbeat(report)
    assert (state(mine), state(other)) == (SessionState.ALIVE, SessionState.ALIVE)


def test_a_runtime_report_for_a_relying_party_is_no_heartbeat(machine: Machine) -> None:
    """And none for the service is a passport: audiences keep them apart (attack 15)."""
    session = machine.attest()
    with pytest.raises(ForgedError, match="made for"):
        session.heartbeat(session.runtime_report(session.nonce, AUDIENCE))
    issuer = machine.service.settings.issuer
    with pytest.raises(NotForUsError):
        verify_passport(
            session.passport(NONCE, issuer),
            root=root_pem(machine.service),
            expected_nonce=NONCE,
            now=machine.service.now,
            expected_audience=AUDIENCE,
            expected_device=None,
        )


def test_messages_of_one_kind_are_not_taken_for_another(world: World, machine: Machine) -> None:
    """Each door refuses what belongs at another one (attack 9)."""
    session = machine.attest()
    challenge = world.service.challenge()
    request = encode_enrolment_request(machine.enrolment_request(challenge))
    evidence = machine.answer(challenge).message()
    runtime = session.runtime_report(NONCE, AUDIENCE)
    now = world.service.now
    for door, messages in (
        (world.service.api.session, (request, runtime, session.report_bytes)),
        (world.service.api.enrolment, (evidence, runtime, session.report_bytes)),
        (world.service.api.enrolment_proof, (request, evidence, runtime)),
    ):
        for message in messages:
            fresh = world.service.challenge()
            with pytest.raises(EvidenceError):
                door(machine.sealed(fresh, message), now=now)
    with pytest.raises(EvidenceError):
        world.service.api.heartbeat(machine.sealed(session.challenge, evidence), now=now)
    assert session.heartbeat().next_nonce


def test_a_seal_for_another_challenge_or_service_stays_shut(world: World, machine: Machine) -> None:
    challenge, other = world.service.challenge(), world.service.challenge()
    message = machine.answer(challenge).message()
    moved = write_envelope(other.digest, machine.sealed(challenge, message)[32:])
    with pytest.raises(ForgedError, match="seal does not open"):
        world.service.api.session(moved, now=world.service.now)
    stranger = X25519PrivateKey.generate().public_key().public_bytes_raw()
    sealed = seal(message, recipient=stranger, direction=Direction.TO_SERVICE, challenge=challenge.digest)
    with pytest.raises(ForgedError, match="seal does not open"):
        world.service.api.session(write_envelope(challenge.digest, sealed), now=world.service.now)
    assert machine.send(machine.answer(challenge)).report.level is SecurityLevel.ENFORCED_CODE


def test_a_monitor_with_older_rules_than_demanded_gets_no_session(world: World, machine: Machine) -> None:
    """The minimum stands in the signed challenge, so a relay cannot lower it (attacks 8, 17)."""
    strict = make_world(world.service.settings.folder.parent / "strict", minimum_rules_version=5)
    late = strict.machine()
    with pytest.raises(ForgedError, match="rules of version 1"):
        late.attest()
    report = late.send(late.answer(strict.service.challenge(), rules_version=5)).report
    assert report.minimum_rules_version == 5


def test_a_relying_party_refuses_rules_older_than_the_session_demands(world: World) -> None:
    strict = make_world(world.service.settings.folder.parent / "strict", minimum_rules_version=5)
    machine = strict.machine()
    session = machine.send(machine.answer(strict.service.challenge(), rules_version=5))
    verified = verify_passport(
        session.passport(),
        root=root_pem(strict.service),
        expected_nonce=NONCE,
        now=strict.service.now,
        expected_audience=AUDIENCE,
        expected_device=None,
    )
    assert not decide(verified, policy=Policy()).accepted


def test_a_challenge_that_a_relay_weakened_is_refused(world: World) -> None:
    """Protocol, suites, rules and PCRs stand under the service's signature (attack 8)."""
    message = world.service.api.challenge(b"", now=world.service.now)
    for position in range(0, len(message), 7):
        bent = bytearray(message)
        bent[position] ^= 1
        with pytest.raises(EvidenceError):
            verify_challenge(bytes(bent), root=world.service.root, now=world.service.now)


def test_a_look_from_long_ago_is_refused(machine: Machine) -> None:
    """A fresh signature over an old look: each assertion says how old its look is (attack 20)."""
    session = machine.attest()
    stale = AssertionReport("kernel_text_intact", 1, Mode.ENFORCE, Outcome.HOLDS, 600_000, 5, "")
    verified = verify_passport(
        encode_passport(
            Passport(session.report_bytes, session.runtime_report(NONCE, AUDIENCE, assertions=(stale,)))
        ),
        root=root_pem(machine.service),
        expected_nonce=NONCE,
        now=machine.service.now,
        expected_audience=AUDIENCE,
        expected_device=session.report.device,
    )
    decision = decide(verified, policy=Policy())
    assert not decision.accepted
    assert decide(verified, policy=Policy(max_age_s=601)).accepted


def test_a_report_from_the_future_or_the_past_is_refused(machine: Machine) -> None:
    """The host's clock does not count, and a monitor whose clock runs wild is not believed (attack 18)."""
    session = machine.attest()
    now = machine.service.now
    for issued_at in (now + 200, now - 400):
        report = session.runtime_report(
            session.nonce, machine.service.settings.issuer, issued_at=issued_at, expires_at=issued_at + 60
        )
        with pytest.raises(ForgedError):
            session.heartbeat(report)
    assert state(session) is SessionState.ALIVE


def test_a_violation_cannot_be_read_off_the_length(world: World, machine: Machine) -> None:
    """Healthy or not, a sealed heartbeat has the same size (attack 22)."""
    session = machine.attest()
    issuer = world.service.settings.issuer
    violation = Violation(
        "kernel_text_intact", 10, 20, 5, True, (Finding("tcp4_seq_show+0x5", "0f1f44", "e9abcd"),), 0
    )
    healthy = session.runtime_report(session.nonce, issuer)
    violated = session.runtime_report(session.nonce, issuer, violations=(violation,))
    assert len(healthy) != len(violated)
    sealed = [machine.sealed(session.challenge, message) for message in (healthy, violated)]
    assert len(sealed[0]) == len(sealed[1])
    session.heartbeat(violated)
    with transaction(world.service.context.engine) as connection:
        assert [row.violations for row in all_sessions(connection)] == [1]


def test_the_session_report_names_the_device_by_nothing_of_its_tpm(world: World, machine: Machine) -> None:
    """Relying parties learn no endorsement key and no raw evidence (attack 23)."""
    assert machine.tpm is not None
    session = machine.attest()
    passport = session.passport()
    for secret in (
        machine.tpm.ek_public[-32:],
        machine.tpm.ak_public[-32:],
        machine.tpm.ek_certificates[0][-32:],
    ):
        assert secret not in passport
    assert world.machine().attest().report.device != session.report.device


@pytest.mark.parametrize(
    "body",
    [b"", bytes(31), bytes(32), bytes(33), bytes(32 + 4096), bytes(1 << 20)],
    ids=["empty", "short", "digest only", "one byte", "zeros", "largest"],
)
def test_nonsense_is_refused_at_every_door(world: World, machine: Machine, body: bytes) -> None:
    """And the service goes on as before (attack 21)."""
    api, now = world.service.api, world.service.now
    for door in (api.enrolment, api.enrolment_proof, api.session, api.heartbeat):
        with pytest.raises(EvidenceError):
            door(body, now=now)
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


@pytest.mark.parametrize(
    "message",
    [b"\x81" * 5000, b"\xa0", b"\x9b" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, bytes(200_000)],
    ids=["deep", "map", "huge array", "huge bytes", "zeros"],
)
def test_cbor_bombs_inside_a_seal_are_refused(world: World, machine: Machine, message: bytes) -> None:
    for door in (world.service.api.session, world.service.api.enrolment):
        challenge = world.service.challenge()
        with pytest.raises(MalformedError):
            door(machine.sealed(challenge, message), now=world.service.now)


def test_a_log_bomb_is_refused(world: World, machine: Machine) -> None:
    """A log of many tiny events is refused by its number, before it is replayed."""
    answer = machine.answer(world.service.challenge())
    assert machine.log is not None
    told = machine.log.copy()
    event = replace(told.events[-1], digests={}, data=b"")
    told.events += [event] * 20_000
    with pytest.raises(MalformedError, match="more than"):
        machine.send(answer.with_evidence(event_log=told.encode()))
