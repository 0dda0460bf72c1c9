"""The whole way: a monitor, a relay process, HTTP, the service; and a relay that is not honest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.model.level import SecurityLevel
from affiant.service.settings import Limits
from affiant.wire.courier import Post, PostAnswer, read_message, write_message
from affiant.wire.frames import FrameDecoder, encode_frame
from tests.serving import serving
from tests.simulator import Machine, World

_SECONDS = 30


@dataclass
class CarriedApi:
    """The service's API as a monitor has it: over a channel, a relay, and HTTP."""

    channel: socket.socket
    number: int = 0

    def _post(self, path: str, body: bytes) -> bytes:
        self.number += 1
        self.channel.sendall(encode_frame(write_message(Post(self.number, path, body))))
        decoder = FrameDecoder()
        items = []
        while not items:
            items = decoder.feed(self.channel.recv(65536))
        answer = read_message(items[0])
        assert isinstance(answer, PostAnswer)
        assert answer.id == self.number
        if answer.status == 403:
            raise ForgedError(answer.body.decode())
        if answer.status not in (200, 204):
            raise MalformedError(f"status {answer.status}: {answer.body.decode()}")
        return answer.body

    def challenge(self, body: bytes, *, now: int) -> bytes:
        return self._post("/v1/challenge", body)

    def enrolment(self, body: bytes, *, now: int) -> bytes:
        return self._post("/v1/enrolment", body)

    def enrolment_proof(self, body: bytes, *, now: int) -> bytes:
        return self._post("/v1/enrolment/proof", body)

    def session(self, body: bytes, *, now: int) -> bytes:
        return self._post("/v1/session", body)

    def heartbeat(self, body: bytes, *, now: int) -> bytes:
        return self._post("/v1/heartbeat", body)


@pytest.fixture
def carried(world: World, tmp_path: Path) -> Iterator[World]:
    """The truthful world, with everything between monitor and service carried by a real relay."""
    near, far = socket.socketpair()
    near.settimeout(_SECONDS)
    with serving(world, Limits()) as (host, port):
        os.set_inheritable(far.fileno(), True)
        command = [sys.executable, "-m", "affiant.relay", "--courier-fd", str(far.fileno())]
        command += ["--service", f"http://{host}:{port}", "--socket", str(tmp_path / "passport.sock")]
        with subprocess.Popen(command, pass_fds=[far.fileno()], stderr=subprocess.DEVNULL) as relay:
            far.close()
            world.service.api = CarriedApi(near)  # type: ignore[assignment]  # the same five methods
            yield world
            near.close()
            assert relay.wait(_SECONDS) == 0


def test_a_session_is_carried_end_to_end(carried: World) -> None:
    session = carried.machine().attest()
    assert session.report.level is SecurityLevel.ENFORCED_CODE
    session.heartbeat()
    session.heartbeat()


def test_a_refusal_is_carried_too(carried: World) -> None:
    machine = carried.machine()
    answer = machine.answer(carried.service.challenge())
    machine.send(answer)
    with pytest.raises(ForgedError, match="answered before"):
        machine.send(answer)


class Bent:
    """A courier that changes one byte of every answer of the service."""

    def __init__(self, api: object, position: int) -> None:
        self._api = api
        self._position = position

    def __getattr__(self, name: str) -> object:
        operation = getattr(self._api, name)

        def carry(body: bytes, *, now: int) -> bytes:
            answer = bytearray(operation(body, now=now))
            answer[self._position % len(answer)] ^= 1
            return bytes(answer)

        return carry


@pytest.mark.parametrize("position", [0, 40, 200, -1])
def test_a_changed_answer_is_refused_by_the_monitor(world: World, machine: Machine, position: int) -> None:
    """Challenge, session response, acknowledgement: none survives a flipped bit."""
    session = machine.attest()
    honest = world.service.api
    challenge = world.service.challenge()
    world.service.api = Bent(honest, position)  # type: ignore[assignment]
    with pytest.raises(EvidenceError):
        world.service.challenge()
    with pytest.raises(EvidenceError):
        machine.send(machine.answer(challenge))
    with pytest.raises(EvidenceError):
        session.heartbeat()
    world.service.api = honest
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


@pytest.mark.parametrize("position", [0, 33, 100, 3000, -1])
def test_a_changed_request_is_refused_by_the_service(world: World, machine: Machine, position: int) -> None:
    """Envelope and seal: a relay that flips a bit gets a refusal, and nobody a session."""
    answer = machine.answer(world.service.challenge())
    body = bytearray(machine.sealed(answer.challenge, answer.message()))
    body[position] ^= 1
    with pytest.raises(EvidenceError):
        world.service.api.session(bytes(body), now=world.service.now)
    assert machine.send(answer).report.level is SecurityLevel.ENFORCED_CODE
