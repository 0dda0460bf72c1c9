"""The Unix socket where programs on this host ask for passports; none of them is trusted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from affiant.model.errors import MalformedError, SetupError
from affiant.wire.courier import Ask, Decline, Show, read_message, write_message
from affiant.wire.frames import FrameDecoder, encode_frame

__all__ = ["AskMonitor", "serve_passports"]

_log = logging.getLogger("affiant.relay")

AskMonitor = Callable[[bytes, str], Awaitable[Show | Decline]]

_CLIENTS = 32
_LONGEST_QUESTION = 4096
_QUESTION_SECONDS = 10.0
_WRITE_SECONDS = 10.0
_GOODBYE_SECONDS = 0.5
_QUESTIONS_PER_CLIENT = 1000
_MODE = 0o660  # the socket's folder says who else may come near


@contextlib.asynccontextmanager
async def serve_passports(path: Path, ask: AskMonitor) -> AsyncIterator[None]:
    """Answer questions on a socket at `path` while the context lasts; then remove it.

    A client may ask one thing at a time, has ten seconds for each question, and is dropped at the
    first thing that is none. A socket left behind by an earlier relay is replaced; anything else at
    `path` raises SetupError.
    """
    _remove_stale(path)
    clients: set[asyncio.Task[None]] = set()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(clients) >= _CLIENTS:
            writer.close()
            return
        clients.add(task)
        try:
            await _serve_client(reader, writer, ask)
        except (MalformedError, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            _log.info("client dropped: %s: %s", type(error).__name__, error)
        except asyncio.CancelledError:
            _log.info("client dropped: the relay ends")  # and this task with it; asyncio would print a trace
        finally:
            clients.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(welcome, path=path, limit=_LONGEST_QUESTION, backlog=_CLIENTS)
    path.chmod(_MODE)
    try:
        yield
    finally:
        server.close()
        if clients:  # who asked is told why there is no answer
            await asyncio.wait(clients, timeout=_GOODBYE_SECONDS)
        for task in tuple(clients):
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: AskMonitor) -> None:
    for _ in range(_QUESTIONS_PER_CLIENT):
        question = await _read_question(reader)
        if question is None:
            return
        answer = await ask(question.nonce, question.audience)
        match answer:
            case Show(passport=passport):
                reply: Show | Decline = Show(question.id, passport)
            case Decline(reason=reason):
                reply = Decline(question.id, reason)
        async with asyncio.timeout(_WRITE_SECONDS):
            writer.write(encode_frame(write_message(reply)))
            await writer.drain()


async def _read_question(reader: asyncio.StreamReader) -> Ask | None:
    """Return the next question, or None when the client has no more."""
    async with asyncio.timeout(_QUESTION_SECONDS):
        head = await reader.read(1)
        if not head:
            return None
        head += await reader.readexactly(3)
        length = int.from_bytes(head, "big")
        if not 1 <= length <= _LONGEST_QUESTION:
            raise MalformedError(f"a question of {length} bytes")
        items = FrameDecoder().feed(head + await reader.readexactly(length))
    message = read_message(items[0])
    if not isinstance(message, Ask):
        raise MalformedError(f"a {type(message).__name__} instead of a question")
    return message


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SetupError(
            f"{path} is there and is no socket", hint="choose another path for the passport socket"
        )
    path.unlink()
