"""The courier client against a relay that answers, lies, floods or breaks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from affiant.model.errors import AffiantError, UnavailableError
from affiant.monitor import courier_client
from affiant.monitor.courier_client import CourierClient, CourierClosedError, ServiceRefusedError
from affiant.wire.courier import (
    Ask,
    CourierMessage,
    Decline,
    Fetch,
    FetchAnswer,
    Post,
    PostAnswer,
    Show,
    read_message,
    write_message,
)
from affiant.wire.frames import FrameDecoder, encode_frame


class Relay:
    """The other end of the channel, under the test's control."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._frames = FrameDecoder()
        self._pending: list[CourierMessage] = []

    def send(self, message: CourierMessage) -> None:
        self.channel.sendall(encode_frame(write_message(message)))

    def receive(self) -> CourierMessage:
        while not self._pending:
            self._pending += [read_message(item) for item in self._frames.feed(self.channel.recv(1 << 16))]
        return self._pending.pop(0)


@pytest.fixture
def ends() -> Iterator[tuple[CourierClient, Relay]]:
    monitor, relay = socket.socketpair()
    relay.settimeout(5)
    with relay, contextlib.closing(CourierClient(monitor)) as client:
        yield client, Relay(relay)


def answer_with(relay: Relay, *answers: CourierMessage) -> threading.Thread:
    def run() -> None:
        relay.receive()
        for answer in answers:
            relay.send(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_answer_is_matched_by_its_id(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    thread = answer_with(relay, PostAnswer(77, 200, b"invented"), PostAnswer(1, 200, b"real"))
    assert client.post("/v1/challenge", b"") == b"real"
    thread.join()


def test_a_refusal_tells_its_status_and_reason(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    thread = answer_with(relay, PostAnswer(1, 403, b"not enrolled"))
    with pytest.raises(ServiceRefusedError, match="403: not enrolled") as refused:
        client.post("/v1/session", b"x")
    assert refused.value.status == 403
    thread.join()


def test_silence_is_noticed(ends: tuple[CourierClient, Relay]) -> None:
    client, _ = ends
    with pytest.raises(UnavailableError, match="no answer within"):
        client.post("/v1/challenge", b"", timeout_s=0.05)


def test_a_late_answer_is_not_taken_for_the_next(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    with pytest.raises(UnavailableError):
        client.post("/v1/challenge", b"", timeout_s=0.01)
    relay.receive()
    thread = answer_with(relay, PostAnswer(1, 200, b"late"), PostAnswer(2, 200, b"second"))
    assert client.post("/v1/challenge", b"") == b"second"
    thread.join()


def test_questions_are_kept_while_a_post_waits(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    ask = Ask(9, bytes(32), "bank")
    thread = answer_with(relay, ask, PostAnswer(1, 204, b""))
    assert client.post("/v1/enrolment/proof", b"p") == b""
    thread.join()
    assert client.next_question(timeout_s=0) == ask
    client.show(ask, b"passport")
    assert relay.receive() == Show(9, b"passport")


def test_what_is_due_is_done_while_an_answer_is_awaited(ends: tuple[CourierClient, Relay]) -> None:
    """At its own pace; and a question is answered in the midst of a post."""
    client, relay = ends
    ask = Ask(9, bytes(32), "bank")
    calls: list[float] = []

    def meanwhile() -> float:
        calls.append(time.monotonic())
        if (question := client.next_question(timeout_s=0)) is not None:
            client.show(question, b"passport")
            relay.send(PostAnswer(1, 200, b"answer"))
        elif len(calls) == 3:
            relay.send(ask)
        return 0.02

    client.meanwhile = meanwhile
    assert client.post("/v1/heartbeat", b"") == b"answer"
    assert len(calls) >= 4
    assert relay.receive() == Post(1, "/v1/heartbeat", b"")
    assert relay.receive() == Show(9, b"passport")


def test_a_service_that_answers_at_once_is_not_kept_waiting(
    ends: tuple[CourierClient, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, relay = ends
    monkeypatch.setattr(courier_client, "_PATIENCE_SECONDS", 20.0)  # what a moment is on a busy host
    client.meanwhile = lambda: pytest.fail("the answer was there in a moment")
    thread = answer_with(relay, PostAnswer(1, 200, b"real"))
    assert client.post("/v1/challenge", b"") == b"real"
    thread.join()


def test_a_relay_that_reads_nothing_holds_up_nobody(ends: tuple[CourierClient, Relay]) -> None:
    """What does not fit into the channel waits, whole and in order, until the relay takes it."""
    client, relay = ends
    calls: list[float] = []
    client.meanwhile = lambda: calls.append(0.02) or 0.02  # type: ignore[func-returns-value]
    body = bytes(range(256)) * 4000  # five times what the channel holds
    with pytest.raises(UnavailableError, match="no answer within"):
        client.post("/v1/session", body, timeout_s=0.4)
    assert len(calls) >= 2
    thread = answer_with(relay, PostAnswer(2, 200, b"second"))
    assert client.post("/v1/challenge", b"", timeout_s=5) == b"second"
    thread.join()
    assert relay.receive() == Post(2, "/v1/challenge", b"")


def test_a_relay_that_takes_nothing_for_long_loses_the_channel(
    ends: tuple[CourierClient, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = ends
    monkeypatch.setattr(courier_client, "_SEND_SECONDS", 0.2)
    with pytest.raises(CourierClosedError, match="takes no messages: none for"):
        client.post("/v1/session", bytes(1 << 20), timeout_s=5)


def test_what_a_relay_does_not_take_is_bounded(ends: tuple[CourierClient, Relay]) -> None:
    client, _ = ends
    passport = bytes(1 << 20)
    with pytest.raises(CourierClosedError, match="too many wait"):
        for number in range(20):
            client.show(Ask(number, bytes(32), "gate"), passport)


def test_a_flood_of_questions_is_declined(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    for number in range(40):
        relay.send(Ask(number, bytes(32), "flood"))
    assert client.next_question(timeout_s=1) is not None
    assert relay.receive() == Decline(32, "too many questions at once")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        encode_frame([9, 1, 2]),
        encode_frame(write_message(Post(1, "/x", b""))),
    ],
    ids=["endless frame", "empty frame", "unknown message", "message of a monitor"],
)
def test_a_relay_that_breaks_the_protocol_loses_the_channel(
    ends: tuple[CourierClient, Relay], data: bytes
) -> None:
    client, relay = ends
    relay.channel.sendall(data)
    with pytest.raises(CourierClosedError):
        client.next_question(timeout_s=1)


def test_a_relay_that_leaves_is_noticed(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    relay.channel.close()
    with pytest.raises(CourierClosedError):
        client.next_question(timeout_s=1)


class Elsewhere:
    """Does something in another thread; `result` waits for it, and raises what it raised."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._outcome: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(do,))
        self._thread.start()

    def _run(self, do: Callable[[], object]) -> None:
        try:
            self._outcome.append(do())
        except AffiantError as error:
            self._outcome.append(error)

    def result(self) -> object:
        self._thread.join(10)
        (outcome,) = self._outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def fetching(client: CourierClient, maximum: int = 100, timeout_s: float = 5) -> Elsewhere:
    return Elsewhere(lambda: client.fetch("metadata/timestamp.json", maximum, timeout_s=timeout_s))


def test_a_fetch_is_carried_while_the_channels_owner_waits_for_questions(
    ends: tuple[CourierClient, Relay],
) -> None:
    client, relay = ends
    fetch = fetching(client)
    thread = answer_with(
        relay, FetchAnswer(9, 200, b"invented"), FetchAnswer(1, 200, b"real"), Ask(3, bytes(32), "x")
    )
    assert client.next_question(timeout_s=5) is not None
    assert fetch.result() == FetchAnswer(1, 200, b"real")
    thread.join()


def test_a_fetch_is_carried_while_a_post_waits(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends

    def answer() -> None:
        while not isinstance(message := relay.receive(), Fetch):
            posted = message
        relay.send(FetchAnswer(message.id, 404, b""))
        assert isinstance(posted, Post)
        relay.send(PostAnswer(posted.id, 200, b"late"))

    relays = Elsewhere(answer)
    fetches = Elsewhere(lambda: client.fetch("metadata/2.root.json", 9, timeout_s=5))
    assert client.post("/v1/heartbeat", b"") == b"late"
    fetched = fetches.result()
    assert isinstance(fetched, FetchAnswer)
    assert fetched.status == 404
    relays.result()


def test_a_relay_that_never_answers_a_fetch_delays_nothing_else(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    fetch = fetching(client, timeout_s=0.3)
    relay.send(Ask(5, bytes(32), "gate"))
    assert client.next_question(timeout_s=5) == Ask(5, bytes(32), "gate")
    while client.next_question(timeout_s=0.05) is None and not client._fetching:
        pass
    assert relay.receive() == Fetch(1, "metadata/timestamp.json", 100)
    with pytest.raises(UnavailableError, match="no answer within"):
        fetch.result()
    # What comes later has nobody waiting for it, and leaves nothing behind.
    relay.send(FetchAnswer(1, 200, b"late"))
    client.next_question(timeout_s=0.05)
    assert not client._fetching


def test_more_than_was_asked_for_is_no_answer(ends: tuple[CourierClient, Relay]) -> None:
    client, relay = ends
    fetch = fetching(client, maximum=4)
    thread = answer_with(relay, FetchAnswer(1, 200, b"12345"))
    while client.next_question(timeout_s=0.05) is None and not fetch._outcome:
        pass
    with pytest.raises(UnavailableError, match="more than 4 bytes"):
        fetch.result()
    thread.join()


def test_who_waits_for_a_question_can_be_woken(ends: tuple[CourierClient, Relay]) -> None:
    client, _ = ends
    client.wake()
    assert client.next_question(timeout_s=3600) is None


def test_who_waits_for_a_fetch_is_told_when_the_channel_closes(ends: tuple[CourierClient, Relay]) -> None:
    client, _ = ends
    fetch = fetching(client, timeout_s=3600)
    client.next_question(timeout_s=0.2)
    client.close()
    with pytest.raises(UnavailableError):
        fetch.result()
