"""What it costs the service to give rules to many: up to 2,000 attesters that ask every five seconds.

The service is the real one in a process of its own, with its own limits. An attester is one connection
that is kept open and asks for the timestamp with the tag of the one that it has, as a relay does; when
that is another, it asks for what a monitor asks for then. Forty share an address, as machines share a host.

What is told is the service's own processor time (user and system, from /proc), so that a machine that does
something else meanwhile does not count.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from affiant.assertions.bundle import library_file
from affiant.assertions.bundle_file import BundleFile
from affiant.wire.rules_path import RULES_PREFIX
from benchmarks.rules_fleet import service_process
from benchmarks.table import Row
from tests.rules_repository import FLEET, Repository, make_repository
from tests.simulator import make_world

ATTESTERS = (100, 500, 1000, 2000)
INTERVAL = 5.0
_SECONDS = 20.0
_PER_ADDRESS = 40
_TIMESTAMP = "metadata/timestamp.json"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """What so many attesters cost the service: milliseconds of processor time, and what they waited."""

    attesters: int
    ask_ms: float  # of processor time, for one attester that asks and has the newest
    publish_ms: float  # of processor time, for one attester that gets a new bundle
    answered_ms: float  # between question and answer, the 99th percentile
    spread_seconds: float  # from publishing until the last attester has the new bundle


def rows() -> list[Row]:
    """Compare what one attester costs among more and more of them with what it costs among the fewest."""
    loads = [measure(attesters) for attesters in ATTESTERS]
    fewest = loads[0]
    beside = f"among {fewest.attesters}"
    table = []
    for load in loads:
        table.append(Row(f"nothing new, one of {load.attesters}", load.ask_ms, beside, fewest.ask_ms))
        table.append(
            Row(f"a new bundle, one of {load.attesters}", load.publish_ms, beside, fewest.publish_ms)
        )
        table.append(
            Row(f"the last of {load.attesters} has it", 1000 * load.spread_seconds, "10 s", 10_000.0)
        )
    return table


def measure(attesters: int) -> Load:
    """Run a service and so many attesters: at rest first, then while something is published."""
    _allow_descriptors(attesters + 200)
    with _published() as (service, url, repository, folder):
        return asyncio.run(_measure(attesters, service, url, repository, folder))


async def _measure(
    count: int, service: subprocess.Popen[bytes], url: str, repository: Repository, folder: Path
) -> Load:
    host, port = url.removeprefix("http://").split(":")
    attesters = [_Attester(host, int(port), number) for number in range(count)]
    tasks = [
        asyncio.create_task(each.live(number * INTERVAL / count)) for number, each in enumerate(attesters)
    ]
    await _until(lambda: all(each.version == 2 for each in attesters))
    waits = [each.waits for each in attesters]
    for each in waits:
        each.clear()
    before, asked = _cpu_seconds(service), sum(each.asked for each in attesters)
    await asyncio.sleep(_SECONDS)
    rest, asks = _cpu_seconds(service) - before, sum(each.asked for each in attesters) - asked
    answered = sorted(wait for each in waits for wait in each)
    before, started, asked = _cpu_seconds(service), time.monotonic(), sum(each.asked for each in attesters)
    _publish(repository, folder, 3)
    await _until(lambda: all(each.version == 3 for each in attesters))
    spread = time.monotonic() - started
    busy, more = _cpu_seconds(service) - before, sum(each.asked for each in attesters) - asked
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Among these are questions to which there was nothing new.
    publish = busy - max(0, more - count) * rest / asks
    return Load(
        attesters=count,
        ask_ms=1000 * rest / asks,
        publish_ms=1000 * publish / count,
        answered_ms=1000 * answered[int(0.99 * len(answered))],
        spread_seconds=spread,
    )


@dataclass
class _Attester:
    """One relay with its monitor, as a web server sees them."""

    host: str
    port: int
    number: int
    version: int = 0
    asked: int = 0
    tag: str = ""
    waits: list[float] = field(default_factory=list)

    async def live(self, delay: float) -> None:
        await asyncio.sleep(delay)
        # Machines of one host come from one address; any of 127.0.0.0/8 is ours.
        local = (f"127.0.1.{1 + self.number // _PER_ADDRESS}", 0)
        reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=local)
        try:
            while True:
                due = asyncio.get_running_loop().time() + INTERVAL
                await self._check(reader, writer)
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        finally:
            writer.close()

    async def _check(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started = time.monotonic()
        status, tag, body = await self._get(reader, writer, _TIMESTAMP, self.tag)
        self.waits.append(time.monotonic() - started)
        self.asked += 1
        if status == 304:
            return
        self.tag = tag
        version = _named_version(body, "snapshot.json")
        await self._get(reader, writer, "metadata/2.root.json")
        _, _, snapshot = await self._get(reader, writer, f"metadata/{version}.snapshot.json")
        _, _, targets = await self._get(
            reader, writer, f"metadata/{_named_version(snapshot, 'targets.json')}.targets.json"
        )
        digest = targets.split(b'"sha256":"')[1][:64].decode()
        status, _, bundle = await self._get(reader, writer, f"targets/{digest}.{FLEET}.rules")
        assert (status, bundle[:1]) == (200, b"\xa5")
        self.version = self.version + 1 if self.version else 2

    @staticmethod
    async def _get(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, tag: str = ""
    ) -> tuple[int, str, bytes]:
        condition = f"if-none-match: {tag}\r\n" if tag else ""
        writer.write(f"GET {RULES_PREFIX}/{path} HTTP/1.1\r\nhost: rules\r\n{condition}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        status = int(head[0].split(" ")[1])
        assert status in (200, 304, 404), head[0]
        return status, fields.get("etag", ""), body


def _named_version(metadata: bytes, name: str) -> int:
    after = metadata.split(f'"{name}"'.encode(), 1)[1].split(b'"version":', 1)[1]
    return int(after.split(b"}")[0].split(b",")[0])


@contextmanager
def _published() -> Iterator[tuple[subprocess.Popen[bytes], str, Repository, Path]]:
    with tempfile.TemporaryDirectory(prefix="affiant-") as name:
        folder = Path(name)
        make_world(folder / "service", now=int(time.time()))
        repository = make_repository(now=int(time.time()))
        _publish(repository, folder / "rules", 2)
        with service_process(folder / "service", folder / "rules") as (process, url):
            yield process, url, repository, folder / "rules"


def _publish(repository: Repository, folder: Path, version: int) -> None:
    repository.publish(BundleFile(FLEET, version, library_file().rules))
    repository.write(folder)


async def _until(condition: object, *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "not every attester got the bundle"
        await asyncio.sleep(0.05)


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """The processor time that a process has used so far: utime and stime of proc_pid_stat(5)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _allow_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
