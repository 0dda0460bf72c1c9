"""Sessions are made with the service's own code, at the level that is deserved."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.model.errors import EvidenceError, ForgedError, UnavailableError
from affiant.model.level import SecurityLevel
from affiant.monitor.session import SessionMaker
from affiant.wire.keys import point_of, thumbprint
from tests.simulator import Machine, World, make_world
from tests.unit.monitor.world import SimulatedBoot, SimulatedCourier, SimulatedLauncher


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def maker(machine: Machine, courier: SimulatedCourier, **launcher: object) -> SessionMaker:
    return SessionMaker(
        launcher=SimulatedLauncher(machine, **launcher),  # type: ignore[arg-type]
        courier=courier,  # type: ignore[arg-type]
        boot=SimulatedBoot(machine),
        root=machine.service.root,
    )


def test_a_truthful_machine_gets_level_4_and_a_key_of_its_own(world: World) -> None:
    machine, courier = world.machine(), SimulatedCourier(world.service)
    sessions = maker(machine, courier)
    first, second = (sessions.establish(rules_version=1) for _ in range(2))
    assert first.report.level is SecurityLevel.ENFORCED_CODE
    assert first.report.reference == first.reference == machine.reference
    assert first.report.session_key_thumbprint == thumbprint(point_of(first.key.public_key()))
    assert point_of(first.key.public_key()) != point_of(second.key.public_key())
    assert courier.posted.count("/v1/enrolment") == 1  # once, not for each session


def test_a_machine_without_tpm_gets_a_session_that_proves_nothing(world: World) -> None:
    session = maker(world.machine(), SimulatedCourier(world.service), broken_tpm=True).establish(
        rules_version=1
    )
    assert session.report.level is SecurityLevel.UNPROVEN
    assert session.report.shortfalls


def test_a_tpm_that_cannot_be_enrolled_costs_the_level_not_the_session(world: World) -> None:
    machine, courier = world.machine(), SimulatedCourier(world.service)
    stranger = make_world(world.service.settings.folder / "other").machine()
    assert stranger.tpm is not None
    machine.tpm = stranger.tpm  # endorsed by a CA that this service does not trust
    session = maker(machine, courier).establish(rules_version=1)
    assert session.report.level is SecurityLevel.UNPROVEN


@pytest.mark.parametrize("path", ["/v1/challenge", "/v1/enrolment", "/v1/session"])
def test_a_changed_answer_is_refused(world: World, path: str) -> None:
    courier = SimulatedCourier(world.service)
    courier.tamper = lambda where, answer: answer[:-1] + bytes([answer[-1] ^ 1]) if where == path else answer
    with pytest.raises(EvidenceError):
        maker(world.machine(), courier).establish(rules_version=1)


def test_the_challenge_of_another_service_is_refused(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other")
    courier = SimulatedCourier(other.service)
    machine = world.machine()
    with pytest.raises(ForgedError):
        maker(machine, courier).establish(rules_version=1)


def test_an_old_challenge_is_noticed(world: World) -> None:
    courier = SimulatedCourier(world.service)
    old = world.service.api.challenge(b"", now=world.service.now - 100)
    sessions = maker(world.machine(), courier)
    sessions.establish(rules_version=1)
    courier.tamper = lambda path, answer: old if path == "/v1/challenge" else answer
    with pytest.raises(ForgedError, match="older"):
        sessions.establish(rules_version=1)


def test_a_replayed_session_response_is_refused(world: World) -> None:
    courier = SimulatedCourier(world.service)
    answers: list[bytes] = []

    def replay(path: str, answer: bytes) -> bytes:
        if path == "/v1/session":
            answers.append(answer)
            return answers[0]
        return answer

    courier.tamper = replay
    sessions = maker(world.machine(), courier)
    sessions.establish(rules_version=1)
    with pytest.raises(ForgedError):
        sessions.establish(rules_version=1)


def test_a_service_out_of_reach_is_unavailable(world: World) -> None:
    courier = SimulatedCourier(world.service, unreachable=True)
    with pytest.raises(UnavailableError):
        maker(world.machine(), courier).establish(rules_version=1)


def test_the_key_does_not_show_in_the_session_s_text(world: World) -> None:
    session = maker(world.machine(), SimulatedCourier(world.service)).establish(rules_version=1)
    assert "key=" not in repr(session).replace("session_key", "").replace("sealing_key", "")
