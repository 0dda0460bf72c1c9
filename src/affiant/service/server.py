"""Running the HTTP door: a socket, uvicorn with our bounds, and word when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from affiant.model.errors import UnavailableError
from affiant.service.rate_limit import client_of
from affiant.service.settings import Limits

__all__ = ["listen", "serve"]

_LARGEST_HEAD = 16 * 1024
_BACKLOG = 512
_OTHER_DESCRIPTORS = 64
_IDLE_SECONDS = 15
_SHUTDOWN_SECONDS = 5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises UnavailableError."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error}", hint="choose another --host or --port"
        ) from error
    return listener


def serve(app: Starlette, listener: socket.socket, *, limits: Limits, ready: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT; call `ready` once when answering begins."""
    _allow_descriptors(limits.connections + _OTHER_DESCRIPTORS)
    config = uvicorn.Config(
        app,
        http=_bounded(limits.head_seconds, limits.connections_per_client),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could claim any address with them
        limit_concurrency=limits.connections,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
    )
    _Server(config, ready).run(sockets=[listener])


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files towards `wanted`: by default it is lower than our own bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, as uvicorn does, but end then as after any other good end."""
        before = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def _bounded(head_seconds: float, per_client: int) -> type[asyncio.Protocol]:
    """Return an HTTP protocol that closes connections whose request head does not end in time.

    uvicorn bounds how long a connection may idle after an answer, but not how slowly a head comes; and
    how many connections there are, but not how many of them are one client's: who has that many
    already is closed at once.
    """
    open_connections: Counter[str] = Counter()

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _counted_as: str | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._counted_as = client_of(self.client[0] if self.client else "")
            open_connections[self._counted_as] += 1
            if open_connections[self._counted_as] > per_client:
                self.transport.abort()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            self._await_head()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_timer()
            if (client := self._counted_as) is not None:
                self._counted_as = None
                open_connections[client] -= 1
                if not open_connections[client]:
                    del open_connections[client]  # or every client there ever was is remembered
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:
                self._forget_timer()  # idle from here on: the keep-alive bound applies

        def _await_head(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(head_seconds, self.transport.close)

        def _forget_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
