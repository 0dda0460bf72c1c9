"""The monitor's side of the launcher channel: one question, one answer."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TypeVar

from affiant.model.errors import AffiantError, SetupError, UnavailableError
from affiant.wire.cbor import Item
from affiant.wire.frames import FrameDecoder, encode_frame
from affiant.wire.launcher_requests import Failure, FailureKind, Pause, Request, Resume
from affiant.wire.secure_world import read_answer, write_request

__all__ = ["LauncherClient", "PauseOverError"]

_RECEIVE_BYTES = 1 << 16
_ANSWER_SECONDS = 30.0

ResultT = TypeVar("ResultT")


class PauseOverError(UnavailableError):
    """A pause was over before its end was asked for, or may have been."""


class LauncherClient:
    """Asks the launcher over a connected stream socket, which it owns from now on."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.settimeout(_ANSWER_SECONDS)
        self._frames = FrameDecoder()

    def ask(self, request: Request[ResultT]) -> ResultT:
        """Return the launcher's result.

        Raises `UnavailableError` when the launcher has no result now or is gone, `SetupError` when
        it refuses, `MalformedError` when the answer is not one.
        """
        try:
            self._channel.sendall(encode_frame(write_request(request)))
            answer = read_answer(request, self._receive())
        except OSError as error:
            raise UnavailableError(f"the launcher does not answer: {error}") from error
        if isinstance(answer, Failure):
            if answer.kind is FailureKind.REFUSED:
                raise SetupError(f"the launcher refuses: {answer.message}")
            raise UnavailableError(answer.message)
        return answer

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the guest for the body of a `with` statement; it runs on whatever happens inside.

        Raises `PauseOverError` behind a body that came to its end, if the guest may have run meanwhile.
        """
        self.ask(Pause())
        try:
            yield
        except BaseException:
            with contextlib.suppress(AffiantError):
                self.ask(Resume())
            raise
        try:
            self.ask(Resume())
        except UnavailableError as error:
            raise PauseOverError(str(error)) from error

    def _receive(self) -> Item:
        while True:
            data = self._channel.recv(_RECEIVE_BYTES)
            if not data:
                raise UnavailableError("the launcher closed its channel")
            items = self._frames.feed(data)
            if items:
                return items[0]
