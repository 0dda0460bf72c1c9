"""The HTTP door: what it lets in, and how it bounds those who come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from affiant.service.attestation_service import AttestationService
from affiant.service.http import build_app
from affiant.service.rate_limit import RateLimit, client_of
from affiant.service.settings import Limits
from affiant.wire.challenge import verify_challenge
from tests.serving import serving
from tests.simulator import World, make_world

LIMITS = Limits(burst=1000, requests_per_second=1000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "service")


def post(
    world: World, path: str, body: bytes = b"", *, limits: Limits = LIMITS, method: str = "POST"
) -> httpx.Response:
    """Send one request straight into the application."""

    async def send() -> httpx.Response:
        app = build_app(world.service.api, limits=limits, clock=lambda: world.service.now)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(send())


def test_a_challenge_is_given_out(world: World) -> None:
    answer = post(world, "/v1/challenge")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/cbor")
    verify_challenge(answer.content, root=world.service.root, now=world.service.now)


def test_a_whole_session_goes_over_http(world: World) -> None:
    """What the simulator does over bytes works over HTTP, with the statuses of the API."""
    machine = world.machine()
    session_body = machine.answer(world.service.challenge())
    sealed = machine.sealed(session_body.challenge, session_body.message())
    assert post(world, "/v1/session", sealed).status_code == 200
    assert post(world, "/v1/session", sealed).status_code == 403
    root = post(world, "/v1/root", method="GET")
    assert root.content.startswith(b"-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/challenge", b"x", 400),
        ("/v1/session", b"", 400),
        ("/v1/session", bytes(32 + 4096), 403),
        ("/v1/heartbeat", bytes(100), 400),
        ("/v1/enrolment/proof", bytes(32 + 4096), 403),
        ("/v1/nothing", b"", 404),
        ("/v1/session/", b"", 404),
    ],
)
def test_bad_requests_get_one_line_and_their_status(
    world: World, path: str, body: bytes, status: int
) -> None:
    answer = post(world, path, body)
    assert answer.status_code == status
    assert len(answer.text.splitlines()) <= 1
    assert "Traceback" not in answer.text


def test_other_methods_are_not_answered(world: World) -> None:
    assert post(world, "/v1/session", method="GET").status_code == 405


def test_a_body_beyond_the_bound_is_not_read(world: World) -> None:
    limits = replace(LIMITS, body_bytes=1000)
    assert post(world, "/v1/session", bytes(1001), limits=limits).status_code == 413

    async def send() -> httpx.Response:
        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(100):
                yield bytes(100)

        app = build_app(world.service.api, limits=limits, clock=lambda: world.service.now)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as client:
            return await client.post("/v1/session", content=chunks())

    assert asyncio.run(send()).status_code == 413


def test_a_database_that_fails_is_told_as_unavailable_and_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="affiant.service")

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("disk is full at /secret/path"))

    monkeypatch.setattr("affiant.service.challenging.remember_challenge", fail)
    answer = post(world, "/v1/challenge")
    assert (answer.status_code, answer.text) == (503, "the service cannot answer at the moment\n")
    assert "disk is full" in caplog.records[-1].fields["reason"]  # type: ignore[attr-defined]


def test_a_fault_of_our_own_shows_nothing_of_the_inside(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(AttestationService, "challenge", fail)
    answer = post(world, "/v1/challenge")
    assert (answer.status_code, answer.text) == (500, "the service failed\n")
    assert "secret detail" in caplog.text


def test_requests_beyond_the_rate_are_turned_away(world: World) -> None:
    async def send() -> list[int]:
        limits = Limits(burst=3, requests_per_second=0.001)
        app = build_app(world.service.api, limits=limits, clock=lambda: world.service.now)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as client:
            return [(await client.post("/v1/challenge")).status_code for _ in range(5)]

    assert asyncio.run(send()) == [200, 200, 200, 429, 429]


def test_each_request_is_one_line_of_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="affiant.service")
    post(world, "/v1/session", b"short")
    (record,) = [r for r in caplog.records if r.name == "affiant.service"]
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["path"], fields["status"]) == ("/v1/session", 400)
    assert json.dumps(fields)


def test_the_rate_limit_forgets_only_the_longest_unseen() -> None:
    limit = RateLimit(burst=1, per_second=1)
    assert limit.take("a", now=0)
    assert not limit.take("a", now=0.5)
    assert limit.take("a", now=2)
    for number in range(4096):
        assert limit.take(str(number), now=2)
    assert limit.take("a", now=2), "forgotten, so it starts with a full bucket"
    assert not limit.take("4095", now=2)


def test_one_host_of_an_ipv6_network_is_one_client() -> None:
    """It may choose among 2^64 addresses; each of them must not come with a full bucket."""
    limit = RateLimit(burst=1, per_second=1)
    assert limit.take(client_of("2001:db8:1:2::1"), now=0)
    assert not limit.take(client_of("2001:db8:1:2:ffff:ffff:ffff:ffff"), now=0)
    assert limit.take(client_of("2001:db8:1:3::1"), now=0)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_a_client_is_counted_under_its_network(address: str, client: str) -> None:
    assert client_of(address) == client


def test_one_client_cannot_take_every_connection(world: World) -> None:
    """Beyond its share a connection is closed at once; with one given back the next is served."""
    limits = replace(LIMITS, connections_per_client=3)
    with serving(world, limits) as address, contextlib.ExitStack() as held:
        request = b"POST /v1/challenge HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        first, *_ = [held.enter_context(socket.create_connection(address)) for _ in range(3)]
        with contextlib.suppress(ConnectionError):  # reset before or after the request is read
            assert closed_after(address, request, within=10) == b""
        first.sendall(request)
        first.settimeout(10)
        assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
        first.close()
        deadline = time.monotonic() + 10
        while not answered(address, request):
            assert time.monotonic() < deadline, "the place of a closed connection is not given to another"


def test_one_client_cannot_have_every_body_read(world: World) -> None:
    """Bodies that come slowly take memory and time: beyond a client's share they are refused at once."""
    limits = replace(LIMITS, bodies_per_client=2)
    slow = b"POST /v1/session HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc"
    with serving(world, limits) as address, contextlib.ExitStack() as held:
        begun = [held.enter_context(socket.create_connection(address)) for _ in range(2)]
        for client in begun:
            client.sendall(slow)
        deadline = time.monotonic() + 10
        while not (refused := closed_after(address, slow, within=10)).startswith(b"HTTP/1.1 503 "):
            assert time.monotonic() < deadline, refused
        for client in begun:
            client.sendall(b"defghij")
            client.settimeout(10)
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        request = b"POST /v1/challenge HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        assert answered(address, request), "their places are free again"


def answered(address: tuple[str, int], request: bytes) -> bool:
    """Whether a new connection is served."""
    with contextlib.suppress(ConnectionError), socket.create_connection(address) as client:
        client.settimeout(10)
        client.sendall(request)
        return client.recv(4096).startswith(b"HTTP/1.1 200 ")
    return False


def closed_after(address: tuple[str, int], sent: bytes, *, within: float) -> bytes:
    """Send bytes, then only wait; return what came until the server closed."""
    received = b""
    with socket.create_connection(address) as client:
        client.sendall(sent)
        client.settimeout(within)
        while data := client.recv(4096):
            received += data
    return received


def test_slow_heads_and_bodies_lose_their_connection(world: World) -> None:
    """Both are closed by their own bound, while a client in good order is served."""
    limits = replace(LIMITS, head_seconds=0.3, body_seconds=0.3)
    with serving(world, limits) as address:
        assert closed_after(address, b"POST /v1/session HTTP/1.1\r\nhost: x\r\n", within=10) == b""
        assert closed_after(address, b"", within=10) == b""
        slow = b"POST /v1/session HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc"
        assert closed_after(address, slow, within=10).startswith(b"HTTP/1.1 408 ")
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", trust_env=False) as client:
            assert client.post("/v1/challenge").status_code == 200
            time.sleep(0.5)  # longer than a head may take: an idle connection is another matter
            assert client.post("/v1/challenge").status_code == 200


def test_a_head_beyond_the_bound_is_refused(world: World) -> None:
    with serving(world, LIMITS) as address:
        head = b"POST /v1/challenge HTTP/1.1\r\nx: " + b"a" * 100_000
        assert closed_after(address, head, within=10).startswith(b"HTTP/1.1 400 ")
