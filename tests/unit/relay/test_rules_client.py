"""Getting rules: conditional, bounded in size and time, whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from affiant.relay.http_client import make_client
from affiant.relay.rules_client import RulesClient
from affiant.wire.courier import MAX_BODY, Ask, Fetch, FetchAnswer, Post, PostAnswer, Show
from tests.unit.relay.test_relay import NONCE, answering, http_service, read_request, relayed

TIMESTAMP = "metadata/timestamp.json"
TAG = '"v1"'


def fetch_all(
    handler: Callable[[httpx.Request], httpx.Response], *messages: Fetch
) -> tuple[list[FetchAnswer], list[httpx.Request]]:
    """Fetch one after another from a server that the test plays; return answers and requests."""
    seen: list[httpx.Request] = []

    def play(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return handler(request)

    async def scenario() -> list[FetchAnswer]:
        async with make_client(transport=httpx.MockTransport(play)) as http:
            client = RulesClient("http://rules.example/fleet/", http)
            return [await client.fetch(message) for message in messages]

    return asyncio.run(scenario()), seen


def repository(request: httpx.Request) -> httpx.Response:
    if request.headers.get("if-none-match") == TAG:
        return httpx.Response(304, headers={"etag": TAG}, stream=httpx.ByteStream(b""))
    return httpx.Response(200, headers={"etag": TAG}, stream=httpx.ByteStream(b"timestamp"))


def test_a_file_is_asked_for_below_the_repositorys_address() -> None:
    answers, seen = fetch_all(repository, Fetch(7, TIMESTAMP, 100))
    assert answers == [FetchAnswer(7, 200, b"timestamp")]
    assert str(seen[0].url) == "http://rules.example/fleet/metadata/timestamp.json"
    assert "if-none-match" not in seen[0].headers


def test_what_has_not_changed_is_not_carried_again() -> None:
    """The monitor gets the whole file each time; the server sends it once."""
    answers, seen = fetch_all(repository, *[Fetch(number, TIMESTAMP, 100) for number in range(3)])
    assert answers == [FetchAnswer(number, 200, b"timestamp") for number in range(3)]
    assert [request.headers.get("if-none-match") for request in seen] == [None, TAG, TAG]


def test_not_modified_without_having_asked_so_is_handed_back() -> None:
    """A server that answers 304 to everything cannot make an empty file of it."""
    answers, _ = fetch_all(
        lambda _: httpx.Response(304, headers={"etag": TAG}, stream=httpx.ByteStream(b"")),
        Fetch(1, TIMESTAMP, 100),
    )
    assert answers == [FetchAnswer(1, 304, b"")]


def test_a_remembered_file_is_never_larger_than_asked_for() -> None:
    answers, _ = fetch_all(repository, Fetch(1, TIMESTAMP, 100), Fetch(2, TIMESTAMP, 3))
    assert answers[1] == FetchAnswer(2, 304, b"")


def test_another_file_takes_the_place_of_the_one_before() -> None:
    bodies = iter([b"one", b"two"])

    def changing(request: httpx.Request) -> httpx.Response:
        body = next(bodies, None)
        if body is None:
            return httpx.Response(304, stream=httpx.ByteStream(b""))
        return httpx.Response(200, headers={"etag": f'"{body.decode()}"'}, stream=httpx.ByteStream(body))

    answers, seen = fetch_all(changing, *[Fetch(number, TIMESTAMP, 9) for number in range(3)])
    assert [answer.body for answer in answers] == [b"one", b"two", b"two"]
    assert [request.headers.get("if-none-match") for request in seen] == [None, '"one"', '"two"']


@pytest.mark.parametrize("status", [301, 404, 429, 500])
def test_other_statuses_are_handed_on_and_not_remembered(status: int) -> None:
    answers, seen = fetch_all(
        lambda _: httpx.Response(
            status,
            headers={"etag": TAG, "location": "http://other.example/"},
            stream=httpx.ByteStream(b""),
        ),
        Fetch(1, "metadata/2.root.json", 100),
        Fetch(2, "metadata/2.root.json", 100),
    )
    assert [answer.status for answer in answers] == [status, status]
    assert "if-none-match" not in seen[1].headers
    assert {request.url.host for request in seen} == {"rules.example"}


@pytest.mark.parametrize("tag", ["", "x" * 300])
def test_a_file_without_a_usable_tag_is_not_remembered(tag: str) -> None:
    _, seen = fetch_all(
        lambda _: httpx.Response(200, headers={"etag": tag}, stream=httpx.ByteStream(b"x")),
        Fetch(1, TIMESTAMP, 100),
        Fetch(2, TIMESTAMP, 100),
    )
    assert "if-none-match" not in seen[1].headers


def test_what_is_remembered_is_bounded() -> None:
    """In number and in bytes, however many versions a hostile server shows."""
    messages = [Fetch(number, f"metadata/{number}.root.json", MAX_BODY) for number in range(1, 40)]

    async def scenario() -> tuple[int, int]:
        large = httpx.MockTransport(
            lambda request: httpx.Response(
                200, headers={"etag": TAG}, stream=httpx.ByteStream(bytes(MAX_BODY))
            )
        )
        small = httpx.MockTransport(
            lambda request: httpx.Response(200, headers={"etag": TAG}, stream=httpx.ByteStream(b"x"))
        )
        kept = []
        for transport in (large, small):
            async with make_client(transport=transport) as http:
                client = RulesClient("http://rules.example", http)
                for message in messages:
                    await client.fetch(message)
                kept.append(client._kept)
        return sum(len(one.body) for one in kept[0].values()), len(kept[1])

    assert asyncio.run(scenario()) == (4 << 20, 16)


def test_more_than_was_asked_for_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> object:
        async with http_service(answering(bytes(1000))) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Fetch(1, TIMESTAMP, 999))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == FetchAnswer(1, 0, b"")


def test_endless_data_ends(tmp_path: Path) -> None:
    """A server without a length, that sends for ever: the relay stops reading at the bound."""
    stopped = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        stopped.set()

    async def scenario() -> object:
        async with http_service(endless) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Fetch(1, TIMESTAMP, MAX_BODY))
            answer = await relay.monitor.receive()
            await asyncio.wait_for(stopped.wait(), 10)
            return answer

    assert asyncio.run(scenario()) == FetchAnswer(1, 0, b"")


def test_a_server_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole never would; posts and questions pass meanwhile."""
    total = "affiant.relay.rules_client._TOTAL_SECONDS"
    monkeypatch.setattr(total, 600.0)  # for the first one, which lasts while the others are carried

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    async def scenario() -> list[object]:
        async with http_service(drip) as url, relayed(tmp_path / "p.sock", url) as relay:
            await relay.monitor.send(Fetch(1, TIMESTAMP, MAX_BODY))
            await relay.monitor.send(Post(2, "/v1/challenge", b""))
            answers: list[object] = [await relay.monitor.receive()]
            client = await relay.client()
            await client.send(Ask(5, NONCE, "rp"))
            question = await relay.monitor.receive()
            assert isinstance(question, Ask)
            await relay.monitor.send(Show(question.id, b"p"))
            answers.append(await client.receive())
            monkeypatch.setattr(total, 0.5)
            await relay.monitor.send(Fetch(3, TIMESTAMP, MAX_BODY))
            answers.append(await relay.monitor.receive())
            return answers

    assert asyncio.run(scenario()) == [PostAnswer(2, 204, b""), Show(5, b"p"), FetchAnswer(3, 0, b"")]


def test_fetches_beyond_the_bound_are_answered_at_once(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"never")

    async def scenario() -> object:
        async with http_service(hang) as url, relayed(tmp_path / "p.sock", url) as relay:
            for number in range(1, 6):
                await relay.monitor.send(Fetch(number, TIMESTAMP, 9))
            return await relay.monitor.receive()

    assert asyncio.run(scenario()) == FetchAnswer(5, 0, b"")


@pytest.mark.parametrize("own", [True, False], ids=["another web server", "the service"])
def test_rules_come_from_the_server_that_the_operator_names(tmp_path: Path, own: bool) -> None:
    asked: list[bytes] = []

    def at(name: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head, _ = await read_request(reader)
            asked.append(name + b" " + head.split(b" ")[1])
            writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            writer.close()

        return handler

    async def scenario() -> None:
        async with (
            http_service(at(b"service")) as service,
            http_service(at(b"web")) as web,
            relayed(tmp_path / "p.sock", service, rules=f"{web}/r/" if own else None) as relay,
        ):
            await relay.monitor.send(Fetch(1, TIMESTAMP, 9))
            await relay.monitor.receive()

    asyncio.run(scenario())
    assert asked == [
        b"web /r/metadata/timestamp.json" if own else b"service /v1/rules/metadata/timestamp.json"
    ]
