"""The monitor's side of the courier channel: posts to the service, rules, questions of relying parties.

The relay is untrusted. Whatever it sends is decoded strictly, and a relay that breaks the channel's
format loses it: `CourierClosedError`, after which the launcher may start both ends anew.
"""

from __future__ import annotations

import collections
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from affiant.model.errors import AffiantError, MalformedError, UnavailableError
from affiant.wire.courier import (
    Ask,
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

__all__ = ["CourierClient", "CourierClosedError", "ServiceRefusedError"]

_RECEIVE_BYTES = 1 << 16
_QUESTIONS_KEPT = 32
_SEND_SECONDS = 10.0
_UNSENT_BYTES = 8 << 20
# A service that is well answers sooner; until then nothing else is begun.
_PATIENCE_SECONDS = 0.25


class CourierClosedError(AffiantError):
    """The relay is gone, or does not speak the courier's protocol."""


class ServiceRefusedError(UnavailableError):
    """The service (or a relay that says so) answered with an HTTP status that is no success."""

    def __init__(self, path: str, status: int, body: bytes) -> None:
        words = body[:200].decode("utf-8", "replace").strip() or "no reason given"
        super().__init__(
            f"{path}: status {status}: {words}" if status else f"{path}: the service was not reached"
        )
        self.status = status


@dataclass(slots=True)
class _Fetching:
    """A fetch on its way, between the thread that wants it and the one that owns the channel."""

    path: str
    maximum: int
    answered: threading.Event = field(default_factory=threading.Event)
    answer: FetchAnswer | None = None


class CourierClient:
    """Speaks with the relay over a connected stream socket, which it owns from now on.

    One thread owns the channel: the one that posts, takes questions and answers them. While it waits,
    it carries what other threads `fetch`; while it does something else, a fetch waits, and never the
    other way round. While a post waits for its answer, questions of relying parties are kept, at most
    32; more are declined at once, so that a relay cannot make the monitor grow.

    Nothing that the relay does or leaves undone holds up the thread that owns the channel: what the
    relay does not take is kept, at most 8 MiB and for 10 s without any progress, and while an answer is
    awaited for longer than a moment, `meanwhile` is called: it does what is due, and returns for how many
    seconds there is nothing more to do. It must not post; it may take questions and answer them.
    """

    meanwhile: Callable[[], float] | None = None

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._unsent = bytearray()
        self._last_sent_s = 0.0
        self._frames = FrameDecoder()
        self._last_id = 0
        self._answers: dict[int, PostAnswer] = {}
        self._awaited: int | None = None
        self._questions: collections.deque[Ask] = collections.deque()
        self._wanted: collections.deque[_Fetching] = collections.deque()
        self._fetching: dict[int, _Fetching] = {}
        self._called = threading.Event()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for end in (self._channel, self._woken):
            self._selector.register(end, selectors.EVENT_READ)

    def close(self) -> None:
        """Close the channel; who waits for a fetch is told that nothing came."""
        self._selector.close()
        for end in (self._channel, self._woken, self._waker):
            end.close()
        for fetching in (*self._wanted, *self._fetching.values()):
            fetching.answered.set()

    def post(self, path: str, body: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Post `body` to the service's `path` and return the answer's body.

        Raises `ServiceRefusedError` for any status but 200 and 204, `UnavailableError` when no
        answer comes in time, `CourierClosedError` when the channel is lost.
        """
        self._awaited = number = self._next_id()
        self._send(Post(number, path, body))
        begun = time.monotonic()
        try:
            while number not in self._answers:
                waited = time.monotonic() - begun
                if waited >= timeout_s:
                    raise UnavailableError(f"{path}: no answer within {timeout_s:.0f} s")
                pause = _PATIENCE_SECONDS - waited
                if pause <= 0:
                    pause = timeout_s if self.meanwhile is None else self.meanwhile()
                self._receive(min(pause, begun + timeout_s - time.monotonic()))
        finally:
            self._awaited = None
        answer = self._answers.pop(number)
        if answer.status not in (200, 204):
            raise ServiceRefusedError(path, answer.status, answer.body)
        return answer.body

    def fetch(self, path: str, maximum: int, *, timeout_s: float) -> FetchAnswer:
        """Return the relay's answer to a fetch: for threads that do not own the channel.

        The body has at most `maximum` bytes. Raises `UnavailableError` when there is no answer in
        time, or one that is too long.
        """
        fetching = _Fetching(path, maximum)
        self._wanted.append(fetching)
        self._ring()
        fetching.answered.wait(timeout_s)
        fetching.answered.set()  # nobody waits any more: the owner of the channel forgets it
        if fetching.answer is None:
            raise UnavailableError(f"{path}: no answer within {timeout_s:.0f} s")
        if len(fetching.answer.body) > maximum:
            raise UnavailableError(f"{path}: more than {maximum} bytes")
        return fetching.answer

    def wake(self) -> None:
        """End the wait of the thread that owns the channel: there is something to do. For any thread."""
        self._called.set()
        self._ring()

    def next_question(self, *, timeout_s: float) -> Ask | None:
        """Return the next question of a relying party; None when none comes in time, or when woken."""
        deadline = time.monotonic() + timeout_s
        while not self._questions:
            left = deadline - time.monotonic()
            if left <= 0 or self._receive(left):
                return None
        return self._questions.popleft()

    def show(self, question: Ask, passport: bytes) -> None:
        """Answer a question with a passport."""
        self._send(Show(question.id, passport))

    def decline(self, question: Ask, reason: str) -> None:
        """Answer a question with the reason why there is no passport now."""
        self._send(Decline(question.id, reason))

    def _ring(self) -> None:
        with suppress(OSError):  # full: the other thread is going to look anyway; closed: nobody waits
            self._waker.send(b"\0")

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _send(self, message: Post | Show | Decline | Fetch) -> None:
        if not self._unsent:
            self._last_sent_s = time.monotonic()
        self._unsent += encode_frame(write_message(message))
        if len(self._unsent) > _UNSENT_BYTES:
            self._lose("the relay takes no messages: too many wait for it", None)
        self._flush()

    def _flush(self) -> None:
        """Send what the relay takes now."""
        try:
            while self._unsent:
                sent = self._channel.send(self._unsent)
                del self._unsent[:sent]
                self._last_sent_s = time.monotonic()
        except BlockingIOError:
            if time.monotonic() - self._last_sent_s > _SEND_SECONDS:
                self._lose(f"the relay takes no messages: none for {_SEND_SECONDS:.0f} s", None)
        except OSError as error:
            self._lose(f"the relay takes no messages: {error}", error)

    def _receive(self, timeout_s: float) -> bool:
        """Take what the relay sends within the time, and send what is to be sent; tell if called."""
        self._send_wanted()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._channel, events)
        ready = {key.fileobj: mask for key, mask in self._selector.select(max(timeout_s, 0.001))}
        if self._woken in ready:
            self._woken.recv(_RECEIVE_BYTES)
            self._send_wanted()
        if self._unsent:
            self._flush()
        if ready.get(self._channel, 0) & selectors.EVENT_READ:
            self._take_all()
        called = self._called.is_set()
        self._called.clear()
        return called

    def _send_wanted(self) -> None:
        """Send fetches that wait, and forget those that nobody waits for any more."""
        for number in [number for number, one in self._fetching.items() if one.answered.is_set()]:
            del self._fetching[number]
        while self._wanted:
            fetching = self._wanted.popleft()
            if fetching.answered.is_set():
                continue
            number = self._next_id()
            self._fetching[number] = fetching
            self._send(Fetch(number, fetching.path, fetching.maximum))

    def _take_all(self) -> None:
        try:
            data = self._channel.recv(_RECEIVE_BYTES)
        except OSError as error:
            self._lose(f"the relay is gone: {error}", error)
        if not data:
            self._lose("the relay closed its channel", None)
        try:
            messages = [read_message(item) for item in self._frames.feed(data)]
        except MalformedError as error:
            self._lose(f"the relay broke the protocol: {error}", error)
        for message in messages:
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case PostAnswer(id=number):
                # An answer that nobody awaits (late, or invented) is dropped.
                if number == self._awaited:
                    self._answers[number] = message
            case FetchAnswer(id=number):
                if (fetching := self._fetching.pop(number, None)) is not None:
                    fetching.answer = message
                    fetching.answered.set()
            case Ask():
                if len(self._questions) < _QUESTIONS_KEPT:
                    self._questions.append(message)
                else:
                    self.decline(message, "too many questions at once")
            case _:
                self._lose("the relay sent a message that only a monitor sends", None)

    @staticmethod
    def _lose(reason: str, cause: BaseException | None) -> NoReturn:
        raise CourierClosedError(reason) from cause
