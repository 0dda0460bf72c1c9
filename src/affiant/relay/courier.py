"""Running a relay: the monitor's channel, the service's client and the passport socket together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from affiant.relay.http_client import make_client
from affiant.relay.monitor_channel import MonitorChannel
from affiant.relay.passport_socket import serve_passports
from affiant.relay.rules_client import RulesClient
from affiant.relay.service_client import ServiceClient
from affiant.wire.courier import Decline, Show
from affiant.wire.rules_path import RULES_PREFIX

__all__ = ["RelaySettings", "run_relay"]

_log = logging.getLogger("affiant.relay")

_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """`service` is the service's URL, `passport_socket` where relying parties' tools ask.

    `rules` is the URL of the rules repository, None for the one that the service gives out. `tls_ca`:
    a PEM file with the CAs for https, instead of the system's.
    """

    service: str
    passport_socket: Path
    tls_ca: str | None = None
    rules: str | None = None


async def run_relay(channel: socket.socket, settings: RelaySettings) -> None:
    """Carry messages until the monitor closes its end of `channel`, or SIGTERM or SIGINT comes.

    Returns with the passport socket removed and nothing left running. Raises MalformedError when
    the monitor breaks the channel's rules.
    """
    channel.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=channel)
    rules_url = settings.rules or settings.service.rstrip("/") + RULES_PREFIX
    # One client for both: where the service gives out the rules, one connection carries all.
    async with make_client(tls_ca=settings.tls_ca) as client:
        service, rules = ServiceClient(settings.service, client), RulesClient(rules_url, client)
        monitor = MonitorChannel(reader, writer, post=service.post, fetch=rules.fetch)

        async def ask(nonce: bytes, audience: str) -> Show | Decline:
            return await monitor.ask(nonce, audience, seconds=_ANSWER_SECONDS)

        async with serve_passports(settings.passport_socket, ask):
            running = asyncio.create_task(monitor.run())
            _end_on_signals(running)
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await running
    _log.info("ended")


def _end_on_signals(task: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
