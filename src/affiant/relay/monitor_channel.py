"""The relay's end of the courier channel: one monitor, many messages, answers matched by number."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from affiant.model.errors import MalformedError
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

__all__ = ["MonitorChannel"]

_log = logging.getLogger("affiant.relay")

_READ_BYTES = 1 << 16
_POSTS_AT_ONCE = 8
_FETCHES_AT_ONCE = 4
_ASKS_AT_ONCE = 64
_WRITE_SECONDS = 30.0
_ENDED = "the monitor has ended"
_LARGEST_NUMBER = (1 << 32) - 1


class MonitorChannel:
    """Carries posts and fetches of the monitor to `post` and `fetch`, and relying parties' questions to it.

    The monitor may have eight posts and four fetches under way; one more is answered as unreachable
    at once.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        post: Callable[[Post], Awaitable[PostAnswer]],
        fetch: Callable[[Fetch], Awaitable[FetchAnswer]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._post = post
        self._fetch = fetch
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Show | Decline]] = {}
        self._posts: set[asyncio.Task[None]] = set()
        self._fetches: set[asyncio.Task[None]] = set()
        self._write_lock = asyncio.Lock()

    async def run(self) -> None:
        """Serve until the monitor closes its end; then return, with nothing left running.

        Raises MalformedError when the monitor breaks the channel's rules, and TimeoutError when it
        stops reading.
        """
        decoder = FrameDecoder()
        try:
            while data := await self._reader.read(_READ_BYTES):
                for item in decoder.feed(data):
                    await self._receive(read_message(item))
            decoder.end()
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_result(Decline(0, _ENDED))
            carried = (*self._posts, *self._fetches)
            for task in carried:
                task.cancel()
            await asyncio.gather(*carried, return_exceptions=True)
            self._writer.close()

    async def ask(self, nonce: bytes, audience: str, *, seconds: float) -> Show | Decline:
        """Pass a relying party's question on; the answer's number is the channel's own.

        Whatever goes wrong comes back as a Decline that says so.
        """
        if len(self._waiting) >= _ASKS_AT_ONCE:
            return Decline(0, "the monitor has too many questions to answer at the moment")
        number = next(self._numbers) & _LARGEST_NUMBER
        future: asyncio.Future[Show | Decline] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(seconds):
                await self._send(Ask(number, nonce, audience))
                return await future
        except TimeoutError:
            return Decline(0, f"the monitor did not answer within {seconds:g} seconds")
        except ConnectionError:
            return Decline(0, _ENDED)
        finally:
            del self._waiting[number]

    async def _receive(self, message: CourierMessage) -> None:
        match message:
            case Post():
                if len(self._posts) < _POSTS_AT_ONCE:
                    self._begin(self._posts, self._post(message))
                else:
                    _log.warning("post refused: %d are under way", len(self._posts))
                    await self._send(PostAnswer(message.id, 0, b""))
            case Fetch():
                if len(self._fetches) < _FETCHES_AT_ONCE:
                    self._begin(self._fetches, self._fetch(message))
                else:
                    _log.warning("fetch refused: %d are under way", len(self._fetches))
                    await self._send(FetchAnswer(message.id, 0, b""))
            case Show() | Decline():
                future = self._waiting.get(message.id)
                # An answer that comes too late has nobody waiting for it any more.
                if future is not None and not future.done():
                    future.set_result(message)
            case _:
                raise MalformedError(f"the monitor sent a {type(message).__name__}, which is not its to send")

    def _begin(
        self, under_way: set[asyncio.Task[None]], exchange: Awaitable[PostAnswer | FetchAnswer]
    ) -> None:
        task = asyncio.create_task(self._forward(exchange))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async def _forward(self, exchange: Awaitable[PostAnswer | FetchAnswer]) -> None:
        await self._send(await exchange)

    async def _send(self, message: CourierMessage) -> None:
        async with self._write_lock, asyncio.timeout(_WRITE_SECONDS):
            self._writer.write(encode_frame(write_message(message)))
            await self._writer.drain()
