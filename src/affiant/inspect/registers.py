"""The vCPUs' register listings, asked from QEMU's monitor socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from affiant.model.errors import UnavailableError

__all__ = ["read_register_listings"]

_TIMEOUT_SECONDS = 10.0
_MOST_CPUS = 512


def read_register_listings(path: Path) -> tuple[str, ...]:
    """Return QEMU's `info registers` text of each vCPU, in order.

    The guest is not paused: the listings are of slightly different moments. Raises UnavailableError
    when QEMU does not answer within ten seconds, as when someone else holds the socket.
    """
    from qemu.qmp import QMPError

    try:
        return asyncio.run(asyncio.wait_for(_ask(path), _TIMEOUT_SECONDS))
    except TimeoutError as error:
        raise UnavailableError(
            f"QEMU does not answer on {path} within {_TIMEOUT_SECONDS:.0f} s",
            hint="does someone else hold the socket?",
        ) from error
    except (QMPError, OSError, EOFError) as error:
        raise UnavailableError(
            f"QEMU does not answer on {path}: {error}", hint="is the machine running? affiant vm list"
        ) from error


async def _ask(path: Path) -> tuple[str, ...]:
    from qemu.qmp import QMPClient

    client = QMPClient("inspect")
    await client.connect(str(path))
    try:
        cpus = await client.execute("query-cpus-fast")
        count = len(cpus) if isinstance(cpus, list) else 0
        listings: list[str] = []
        for index in range(min(count, _MOST_CPUS)):
            arguments = {"command-line": "info registers", "cpu-index": index}
            listings.append(str(await client.execute("human-monitor-command", arguments)))
        return tuple(listings)
    finally:
        await client.disconnect()
