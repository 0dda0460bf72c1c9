"""The launcher client against a launcher that answers, refuses, or is gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from affiant.model.errors import MalformedError, SetupError, UnavailableError
from affiant.monitor.launcher_client import LauncherClient, PauseOverError
from affiant.wire.cbor import Item
from affiant.wire.frames import FrameDecoder, encode_frame
from affiant.wire.launcher_requests import FailureKind, Generation, Pause, Request, Resume
from affiant.wire.secure_world import read_request, write_answer, write_failure

Serve = Callable[[Callable[[Request[object]], Item]], list[Request[object]]]


@pytest.fixture
def launcher() -> Iterator[tuple[LauncherClient, Serve]]:
    """A client, and a function that starts a launcher which answers as it is told."""
    ours, theirs = socket.socketpair()
    threads: list[threading.Thread] = []

    def serve(answer: Callable[[Request[object]], Item]) -> list[Request[object]]:
        seen: list[Request[object]] = []

        def run() -> None:
            frames = FrameDecoder()
            while data := theirs.recv(4096):
                for item in frames.feed(data):
                    seen.append(read_request(item))
                    theirs.sendall(encode_frame(answer(seen[-1])))

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return seen

    with theirs:
        with ours:
            yield LauncherClient(ours), serve
        for thread in threads:
            thread.join()


def test_a_result_comes_back_typed(launcher: tuple[LauncherClient, Serve]) -> None:
    client, serve = launcher
    serve(lambda request: write_answer(request, 3))
    assert client.ask(Generation()) == 3


def test_a_thing_that_is_not_there_is_unavailable(launcher: tuple[LauncherClient, Serve]) -> None:
    client, serve = launcher
    serve(lambda _: write_failure(FailureKind.UNAVAILABLE, "the guest cleared its TPM"))
    with pytest.raises(UnavailableError, match="cleared its TPM"):
        client.ask(Generation())


def test_a_refusal_is_told_apart(launcher: tuple[LauncherClient, Serve]) -> None:
    client, serve = launcher
    serve(lambda _: write_failure(FailureKind.REFUSED, "not yours"))
    with pytest.raises(SetupError, match="not yours"):
        client.ask(Generation())


def test_an_answer_of_another_type_is_malformed(launcher: tuple[LauncherClient, Serve]) -> None:
    client, serve = launcher
    serve(lambda _: [0, "three"])
    with pytest.raises(MalformedError):
        client.ask(Generation())


def test_the_guest_is_resumed_when_looking_fails(launcher: tuple[LauncherClient, Serve]) -> None:
    client, serve = launcher
    seen = serve(lambda request: write_answer(request, None))
    with pytest.raises(ZeroDivisionError), client.paused():
        raise ZeroDivisionError
    assert seen == [Pause(), Resume()]


def test_a_pause_that_was_over_is_told_behind_what_was_done_in_it(
    launcher: tuple[LauncherClient, Serve],
) -> None:
    client, serve = launcher
    serve(
        lambda request: (
            write_answer(request, None)
            if request == Pause()
            else write_failure(FailureKind.UNAVAILABLE, "it has run on since")
        )
    )
    done = []
    with pytest.raises(PauseOverError, match="run on since"), client.paused():
        done.append("all")
    assert done == ["all"]
    with pytest.raises(ZeroDivisionError), client.paused():
        raise ZeroDivisionError


def test_a_launcher_that_is_gone_is_unavailable() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(UnavailableError):
        LauncherClient(ours).ask(Generation())
