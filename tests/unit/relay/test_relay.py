"""The relay with a real channel, a real Unix socket and real HTTP, between hostile neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from affiant.model.errors import MalformedError, SetupError
from affiant.relay.courier import RelaySettings, run_relay
from affiant.wire.courier import (
    Ask,
    CourierMessage,
    Decline,
    Post,
    PostAnswer,
    Show,
    read_message,
    write_message,
)
from affiant.wire.frames import FrameDecoder, encode_frame

NONCE = bytes(range(32))
_SECONDS = 20

HttpHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """One end of a frame stream, as monitor or as relying party's tool."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = FrameDecoder()
        self._ready: list[CourierMessage] = []

    async def send(self, message: CourierMessage) -> None:
        self.writer.write(encode_frame(write_message(message)))
        await self.writer.drain()

    async def receive(self) -> CourierMessage:
        while not self._ready:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self._ready += [read_message(item) for item in self._decoder.feed(data)]
        return self._ready.pop(0)


class Relayed:
    """A running relay with its monitor end, and ways to talk to it."""

    def __init__(self, monitor: Peer, path: Path, task: asyncio.Task[None]) -> None:
        self.monitor = monitor
        self.path = path
        self.task = task

    async def client(self) -> Peer:
        for _ in range(200):
            with contextlib.suppress(OSError):
                return Peer(*await asyncio.open_unix_connection(str(self.path)))
            await asyncio.sleep(0.01)
        raise AssertionError("the passport socket never appeared")


@contextlib.asynccontextmanager
async def relayed(
    path: Path, service: str = "http://127.0.0.1:9", rules: str | None = None
) -> AsyncIterator[Relayed]:
    near, far = socket.socketpair()
    task = asyncio.create_task(run_relay(far, RelaySettings(service, path, rules=rules)))
    far_end = near
    far_end.setblocking(False)
    monitor = Peer(*await asyncio.open_connection(sock=far_end))
    try:
        async with asyncio.timeout(_SECONDS):
            yield Relayed(monitor, path, task)
    finally:
        monitor.writer.close()
        with contextlib.suppress(MalformedError):
            await asyncio.wait_for(task, _SECONDS)


@contextlib.asynccontextmanager
async def http_service(handler: HttpHandler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ),
        0,
    )
    return head, await reader.readexactly(length)


def answering(body: bytes, status: str = "200 OK", extra: str = "") -> HttpHandler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(
            f"HTTP/1.1 {status}\r\nconnection: close\r\n{extra}content-length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    return handler


def test_a_post_reaches_the_service_and_its_answer_comes_back(tmp_path: Path) -> None:
    """The body travels unchanged both ways, with the number of the message it belongs to."""
    seen: list[tuple[bytes, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 3\r\nconnection: close\r\n\r\n\x00\xffz")
        await writer.drain()
        writer.close()

    async def scenario() -> CourierMessage:
        async with http_service(handler) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Post(7, "/v1/session", b"\x01\x02\x00"))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == PostAnswer(7, 201, b"\x00\xffz")
    assert seen[0][0].startswith(b"POST /v1/session HTTP/1.1\r\n")
    assert seen[0][1] == b"\x01\x02\x00"


def test_a_question_is_passed_on_and_its_answer_is_given_to_the_one_who_asked(tmp_path: Path) -> None:
    """Two clients use the same number; each gets its own answer under that number."""

    async def scenario() -> tuple[CourierMessage, CourierMessage]:
        async with relayed(tmp_path / "p.sock") as relay:
            first, second = await relay.client(), await relay.client()
            await first.send(Ask(1, NONCE, "first"))
            await second.send(Ask(1, NONCE, "second"))
            asked = [await relay.monitor.receive(), await relay.monitor.receive()]
            for question in reversed(asked):
                assert isinstance(question, Ask)
                answer = (
                    Show(question.id, b"passport")
                    if question.audience == "first"
                    else Decline(question.id, "busy")
                )
                await relay.monitor.send(answer)
            return await first.receive(), await second.receive()

    assert asyncio.run(scenario()) == (Show(1, b"passport"), Decline(1, "busy"))


def test_who_waits_when_the_monitor_ends_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> CourierMessage:
        async with relayed(tmp_path / "passport.sock") as relay:
            client = await relay.client()
            idle = await relay.client()
            await client.send(Ask(7, NONCE, "me"))
            await relay.monitor.receive()
            relay.monitor.writer.close()
            answer = await client.receive()
            await asyncio.wait_for(relay.task, _SECONDS)
            assert await idle.reader.read() == b""
            return answer

    assert asyncio.run(scene()) == Decline(7, "the monitor has ended")
    assert "Traceback" not in caplog.text


def test_the_monitors_end_ends_the_relay_and_removes_the_socket(tmp_path: Path) -> None:
    """The launcher starts a new relay with a new channel; the old one leaves nothing behind."""

    async def scenario() -> None:
        async with relayed(tmp_path / "p.sock") as relay:
            client = await relay.client()
            await client.send(Ask(1, NONCE, "rp"))
            await relay.monitor.receive()
            relay.monitor.writer.close()
            await asyncio.wait_for(relay.task, 5)
            with pytest.raises((EOFError, ConnectionError)):
                while True:
                    await client.receive()

    asyncio.run(scenario())
    assert not (tmp_path / "p.sock").exists()


@pytest.mark.parametrize(
    "item",
    [
        [2, 1, 200, b""],
        [3, 1, NONCE, "rp"],
        [9, 1],
        [1, 1, "/v1/session"],
        "text",
        [1, 1, "http://else", b""],
        [6, 1, "metadata/../root.json", 9],
        [7, 1, 200, b""],
    ],
)
def test_a_monitor_that_breaks_the_rules_is_not_served(tmp_path: Path, item: object) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        _, writer = await asyncio.open_connection(sock=near)
        writer.write(encode_frame(item))  # type: ignore[arg-type]
        with pytest.raises(MalformedError):
            await asyncio.wait_for(
                run_relay(far, RelaySettings("http://127.0.0.1:9", tmp_path / "p.sock")), _SECONDS
            )
        writer.close()

    asyncio.run(scenario())
    assert not (tmp_path / "p.sock").exists()


@pytest.mark.parametrize(
    "path", ["/", "/metadata/latest", "/v1/../admin", "/v1/session?x=1", "/v1//session", "/v1/%2e%2e/x"]
)
def test_the_relay_cannot_be_steered_to_other_addresses(tmp_path: Path, path: str) -> None:
    """Only paths of the service's API are posted to; nothing reaches the network otherwise."""
    contacted: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        contacted.append(await reader.read(100))
        writer.close()

    async def scenario() -> CourierMessage:
        async with http_service(handler) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Post(1, path, b"x"))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == PostAnswer(1, 404, b"")
    assert contacted == []


def test_a_redirect_is_handed_back_and_not_followed(tmp_path: Path) -> None:
    async def scenario() -> CourierMessage:
        handler = answering(b"", "307 Temporary Redirect", "location: http://127.0.0.1:9/v1/session\r\n")
        async with http_service(handler) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Post(1, "/v1/session", b"x"))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == PostAnswer(1, 307, b"")


def test_an_answer_beyond_the_bound_is_no_answer(tmp_path: Path) -> None:
    async def scenario() -> CourierMessage:
        async with (
            http_service(answering(bytes((1 << 20) + 1))) as url,
            relayed(tmp_path / "p.sock", url) as relay,
        ):
            await relay.monitor.send(Post(1, "/v1/session", b"x"))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == PostAnswer(1, 0, b"")


def test_a_service_that_is_gone_or_no_http_is_told_as_unreachable(tmp_path: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"220 ready for mail\r\n")
        writer.close()

    async def scenario() -> list[CourierMessage]:
        answers = []
        async with relayed(tmp_path / "p.sock") as relay:
            await relay.monitor.send(Post(1, "/v1/session", b"x"))
            answers.append(await relay.monitor.receive())
        async with http_service(nonsense) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Post(2, "/v1/session", b"x"))
            answers.append(await relay.monitor.receive())
        return answers

    assert asyncio.run(scenario()) == [PostAnswer(1, 0, b""), PostAnswer(2, 0, b"")]


def test_posts_beyond_the_bound_are_answered_at_once(tmp_path: Path) -> None:
    """A ninth post is told to be unreachable while eight hang; questions still pass."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"never")

    async def scenario() -> tuple[CourierMessage, CourierMessage]:
        async with http_service(hang) as url, relayed(tmp_path / "p.sock", url) as relay:
            for number in range(1, 10):
                await relay.monitor.send(Post(number, "/v1/session", b"x"))
            refused = await relay.monitor.receive()
            client = await relay.client()
            await client.send(Ask(5, NONCE, "rp"))
            question = await relay.monitor.receive()
            assert isinstance(question, Ask)
            await relay.monitor.send(Show(question.id, b"p"))
            return refused, await client.receive()

    assert asyncio.run(scenario()) == (PostAnswer(9, 0, b""), Show(5, b"p"))


@pytest.mark.parametrize(
    "sent",
    [
        encode_frame(write_message(Show(1, b"p"))),
        (1 << 20).to_bytes(4, "big"),
        b"\x00\x00\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x05\xff\xff\xff\xff\xff",
    ],
)
def test_a_client_that_asks_nothing_sensible_is_dropped(tmp_path: Path, sent: bytes) -> None:
    """The next client is served as before, and the monitor saw nothing of it."""

    async def scenario() -> CourierMessage:
        async with relayed(tmp_path / "p.sock") as relay:
            hostile = await relay.client()
            hostile.writer.write(sent)
            with pytest.raises((EOFError, ConnectionError)):
                await hostile.receive()
            honest = await relay.client()
            await honest.send(Ask(2, NONCE, "rp"))
            question = await relay.monitor.receive()
            assert isinstance(question, Ask)
            assert question.audience == "rp"
            await relay.monitor.send(Show(question.id, b"p"))
            return await honest.receive()

    assert asyncio.run(scenario()) == Show(2, b"p")


def test_slow_clients_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who opens a frame and never ends it does not keep its place."""
    monkeypatch.setattr("affiant.relay.passport_socket._QUESTION_SECONDS", 0.05)

    async def scenario() -> bytes:
        async with relayed(tmp_path / "p.sock") as relay:
            client = await relay.client()
            client.writer.write(b"\x00\x00")
            return await client.reader.read(1)

    assert asyncio.run(scenario()) == b""


def test_more_clients_than_allowed_are_turned_away(tmp_path: Path) -> None:
    """Those who were there first stay connected."""

    async def scenario() -> tuple[bytes, CourierMessage]:
        async with relayed(tmp_path / "p.sock") as relay:
            clients = [await relay.client() for _ in range(33)]
            turned_away = await clients[-1].reader.read(1)
            await clients[0].send(Ask(1, NONCE, "rp"))
            question = await relay.monitor.receive()
            assert isinstance(question, Ask)
            await relay.monitor.send(Show(question.id, b"p"))
            return turned_away, await clients[0].receive()

    assert asyncio.run(scenario()) == (b"", Show(1, b"p"))


def test_a_monitor_that_stays_silent_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late answer then goes nowhere, least of all to the next question."""
    monkeypatch.setattr("affiant.relay.courier._ANSWER_SECONDS", 0.05)

    async def scenario() -> list[CourierMessage]:
        async with relayed(tmp_path / "p.sock") as relay:
            client = await relay.client()
            await client.send(Ask(1, NONCE, "rp"))
            late = await relay.monitor.receive()
            answers = [await client.receive()]
            monkeypatch.setattr("affiant.relay.courier._ANSWER_SECONDS", 5)
            await client.send(Ask(2, NONCE, "rp"))
            question = await relay.monitor.receive()
            assert isinstance(late, Ask)
            assert isinstance(question, Ask)
            await relay.monitor.send(Show(late.id, b"late"))
            await relay.monitor.send(Show(question.id, b"now"))
            answers.append(await client.receive())
            return answers

    first, second = asyncio.run(scenario())
    assert first == Decline(1, "the monitor did not answer within 0.05 seconds")
    assert second == Show(2, b"now")


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    path.write_text("precious")

    async def scenario() -> None:
        async with relayed(path) as relay:
            with pytest.raises(SetupError):
                await relay.task

    with contextlib.suppress(SetupError):
        asyncio.run(scenario())
    assert path.read_text() == "precious"


def test_the_process_ends_with_its_channel(tmp_path: Path) -> None:
    """As the launcher starts it: one descriptor, and exit code 0 when the monitor has gone."""
    near, far = socket.socketpair()
    os.set_inheritable(far.fileno(), True)
    command = [sys.executable, "-m", "affiant.relay", "--courier-fd", str(far.fileno())]
    command += ["--service", "http://127.0.0.1:9", "--socket", str(tmp_path / "p.sock")]
    with subprocess.Popen(command, pass_fds=[far.fileno()], stderr=subprocess.PIPE) as process:
        far.close()
        near.sendall(encode_frame(write_message(Post(3, "/v1/challenge", b""))))
        near.settimeout(_SECONDS)
        assert FrameDecoder().feed(near.recv(1000)) == [[2, 3, 0, b""]]
        near.close()
        assert process.wait(timeout=_SECONDS) == 0
    assert not (tmp_path / "p.sock").exists()
