"""Asking for a passport: the relay's own socket on the other side, and liars."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from affiant.cli import main
from affiant.model.errors import MalformedError, UnavailableError
from affiant.relay.passport_socket import serve_passports
from affiant.vm.report import ask_for_passport
from affiant.wire.courier import Ask, CourierMessage, Decline, PostAnswer, Show, write_message
from affiant.wire.frames import encode_frame

_NONCE = bytes(range(32))


@contextlib.contextmanager
def _relay(path: Path, answers: list[Show | Decline]) -> Iterator[list[tuple[bytes, str]]]:
    """Serve passports as the relay does; gives the questions that came."""
    questions: list[tuple[bytes, str]] = []
    ready, done = threading.Event(), threading.Event()

    async def ask(nonce: bytes, audience: str) -> Show | Decline:
        questions.append((nonce, audience))
        return answers[min(len(questions), len(answers)) - 1]

    async def serve() -> None:
        async with serve_passports(path, ask):
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield questions
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _liar(path: Path, reply: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                reply(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def _says(message: CourierMessage) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(encode_frame(write_message(message)))


def test_the_relays_passport_is_returned_as_it_is(tmp_path: Path) -> None:
    with _relay(tmp_path / "s", [Show(0, b"passport")]) as questions:
        assert ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="gate") == b"passport"
    assert questions == [(_NONCE, "gate")]


def test_a_machine_that_is_still_booting_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affiant.vm.report._PAUSE", 0.01)
    answers: list[Show | Decline] = [
        Decline(0, "no session yet"),
        Decline(0, "no session yet"),
        Show(0, b"now"),
    ]
    with _relay(tmp_path / "s", answers) as questions:
        assert ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="", wait=10) == b"now"
    assert len(questions) == 3


def test_the_reason_of_a_refusal_is_told(tmp_path: Path) -> None:
    with (
        _relay(tmp_path / "s", [Decline(0, "no session yet")]),
        pytest.raises(UnavailableError, match="no passport now: no session yet") as caught,
    ):
        ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="")
    assert "--wait" in caught.value.hint


def test_no_relay_is_the_worlds_failure(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no answer at"):
        ask_for_passport(tmp_path / "none", nonce=_NONCE, audience="")


@pytest.mark.parametrize(
    "message", [Show(7, b"another question's"), Ask(1, _NONCE, "echo"), PostAnswer(1, 200, b"")]
)
def test_an_answer_to_another_question_is_refused(tmp_path: Path, message: CourierMessage) -> None:
    with _liar(tmp_path / "s", _says(message)), pytest.raises(MalformedError):
        ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="")


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x05\x01", b"\0\0\0\x02\xff\xff"])
def test_a_broken_stream_is_refused(tmp_path: Path, data: bytes) -> None:
    with _liar(tmp_path / "s", lambda connection: connection.sendall(data)), pytest.raises(MalformedError):
        ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="")


def test_silence_is_told(tmp_path: Path) -> None:
    with (
        _liar(tmp_path / "s", lambda connection: None),
        pytest.raises(UnavailableError, match="closed without an answer"),
    ):
        ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="")


def test_a_dripping_relay_cannot_hold_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not extend the time that an answer may take."""
    monkeypatch.setattr("affiant.vm.report._ANSWER_SECONDS", 0.3)

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"\0\0\x40\0")
            for _ in range(200):
                connection.sendall(b"\0")
                threading.Event().wait(0.05)

    with _liar(tmp_path / "s", drip), pytest.raises(UnavailableError):
        ask_for_passport(tmp_path / "s", nonce=_NONCE, audience="")


def test_a_short_nonce_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonce"):
        ask_for_passport(tmp_path / "s", nonce=b"short", audience="")


@pytest.mark.parametrize("audience", ["x" * 257, "gate\n", "gate\x1b[2J"])
def test_a_name_that_no_report_could_hold_is_refused_before_anybody_is_asked(
    audience: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The relay would take the question for none, and end without a word."""
    assert main(["report", "--vm", "none", "--nonce", "00" * 32, "--audience", audience]) == 2
    assert "an audience has up to 256 printable characters" in capsys.readouterr().err
