"""From publishing a rule to the report that carries its verdict: twenty monitors of one service.

Everything is the real thing but the machines: the service in a process of its own, and for each of
twenty monitors the monitor's own loop and a relay in processes of their own, over HTTP. A machine is
the tests' simulator (a software TPM, a recorded boot log), and its kernel a set of recorded facts, which
the engine judges at each look.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from affiant.assertions.bundle import library_file, packaged_library
from affiant.assertions.bundle_file import BundledRule, BundleFile
from affiant.assertions.engine import Engine
from affiant.assertions.recording import read_recording
from affiant.monitor.courier_client import CourierClient, CourierClosedError
from affiant.monitor.heartbeat import Heartbeat
from affiant.monitor.loop import Monitor
from affiant.monitor.rules import MonitorRules
from affiant.monitor.rules_checks import RulesChecks
from affiant.monitor.session import SessionMaker
from affiant.monitor.settings import MonitorSettings
from affiant.rules.trusted import TrustedRules
from affiant.wire.runtime_report import read_runtime_report
from benchmarks.table import Row
from tests.rules_repository import FLEET, Repository, make_repository
from tests.simulator import Machine, make_world
from tests.unit.monitor.world import RecordedKernel, SimulatedBoot, SimulatedLauncher

MONITORS = 20
ROUNDS = 5
LIMIT_MS = 10_000.0
_PATIENCE = 120.0

_RULE = '''"""An example."""
load("affiant", "ok")
NAME = "published_{version}"
VERSION = 1
SENTENCE = "The kernel's text was compared."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "enforce"
FACTS = ["kernel_text"]
def check(facts):
    return [ok("kernel text")]
'''


def rows() -> list[Row]:
    """Publish again and again; tell of the monitor in the middle and of the last one, in the middle round."""
    rounds = publish_times(monitors=MONITORS, rounds=ROUNDS)
    middle = statistics.median(statistics.median(times) for times in rounds)
    last = statistics.median(max(times) for times in rounds)
    return [
        Row(f"{MONITORS} monitors, the one in the middle", 1000 * middle, "10 s", LIMIT_MS),
        Row(f"{MONITORS} monitors, the last one", 1000 * last, "10 s", LIMIT_MS),
    ]


def publish_times(*, monitors: int, rounds: int) -> list[list[float]]:
    """Return for each round how many seconds each monitor took from publishing to its report.

    The report is the runtime report that the service acknowledged, with the new rule's verdict in it.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="affiant-")))
        world = make_world(folder / "service", now=int(time.time()))
        repository = make_repository(now=world.service.now)
        _publish(repository, folder / "rules", version=2)
        machines = [world.machine() for _ in range(monitors)]
        _, url = stack.enter_context(service_process(folder / "service", folder / "rules"))
        root = repository.files["metadata/1.root.json"]
        fleet = [
            stack.enter_context(_monitor(machine, url, root, folder, n)) for n, machine in enumerate(machines)
        ]
        _reported(fleet, version=2)
        times = []
        for version in range(3, 3 + rounds):
            published = time.monotonic()
            _publish(repository, folder / "rules", version=version)
            times.append([at - published for at in _reported(fleet, version=version)])
        return times


def _publish(repository: Repository, folder: Path, *, version: int) -> None:
    """Publish the library and one rule more, of a name that no version before had."""
    rule = BundledRule(f"published_{version}", _RULE.format(version=version))
    rules = sorted((*library_file().rules, rule), key=lambda each: each.name)
    repository.publish(BundleFile(FLEET, version, tuple(rules)))
    repository.write(folder)


def _reported(fleet: list[Connection], *, version: int) -> list[float]:
    """Wait until each monitor's report with that version's verdict was acknowledged; return the moments."""
    moments: dict[Connection, float] = {}
    deadline = time.monotonic() + _PATIENCE
    while len(moments) < len(fleet):
        waiting = [each for each in fleet if each not in moments]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"{len(waiting)} monitors never reported version {version}")
        for each in ready:
            assert isinstance(each, Connection)
            at, judged = each.recv()
            if judged == version:
                moments[each] = at
    return [moments[each] for each in fleet]


@contextmanager
def service_process(folder: Path, rules: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `affiant service run --rules`; give the process and its address."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "affiant.cli", "service", "run", "--folder", str(folder)]
    command += ["--port", "0", "--rules", str(rules), "--ready-file", str(ready)]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, (folder / "service.log").read_text()
            assert time.monotonic() < deadline, "the service never answered"
            time.sleep(0.05)
        yield process, str(json.loads(ready.read_text())["url"])
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _monitor(machine: Machine, url: str, root: bytes, folder: Path, number: int) -> Iterator[Connection]:
    """Run a relay and a monitor in processes of their own; give where the monitor tells of its reports."""
    near, far = socket.socketpair()
    os.set_inheritable(far.fileno(), True)
    command = [sys.executable, "-m", "affiant.relay", "--courier-fd", str(far.fileno())]
    command += ["--service", url, "--socket", str(folder / f"{number}.sock")]
    relay = subprocess.Popen(command, pass_fds=[far.fileno()], stderr=subprocess.DEVNULL)
    far.close()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # Forked: the machine comes along as it is, with its keys.
    process = multiprocessing.get_context("fork").Process(target=_live, args=(machine, near, root, theirs))
    process.start()
    near.close()
    theirs.close()
    try:
        yield ours
    finally:
        relay.terminate()
        relay.wait(30)
        process.join(30)
        ours.close()


def _live(machine: Machine, channel: socket.socket, root: bytes, told: Connection) -> None:
    """A monitor's whole life, until its relay ends."""
    launcher, courier = SimulatedLauncher(machine), CourierClient(channel)
    service_root = machine.service.root
    library = packaged_library()
    trusted = TrustedRules(root, expected_digest=hashlib.sha256(root).digest(), first=library)
    with Engine(library) as engine:
        monitor = Monitor(
            settings=MonitorSettings(1 << 30, 1 << 30, b"", "/references"),
            launcher=launcher,  # type: ignore[arg-type]
            courier=courier,
            watch=RecordedKernel(engine, _recorded_facts()),  # type: ignore[arg-type]
            rules=MonitorRules(engine, RulesChecks(trusted, courier, fleet=FLEET)),
            sessions=SessionMaker(
                launcher=launcher,  # type: ignore[arg-type]
                courier=courier,
                boot=SimulatedBoot(machine),
                root=service_root,
            ),
            root=service_root,
        )
        _tell_of_heartbeats(told)
        with contextlib.suppress(CourierClosedError, BrokenPipeError):
            monitor.run()


def _tell_of_heartbeats(told: Connection) -> None:
    """Tell of each acknowledged report: when that was, and the version whose rule it has a verdict of."""
    send = Heartbeat.send

    def send_and_tell(self: Heartbeat, report: bytes, *, now_ms: int) -> None:
        send(self, report, now_ms=now_ms)
        said = read_runtime_report(report).said
        judged = {each.name for each in said.assertions}
        if f"published_{said.rules.version}" in judged:
            told.send((time.monotonic(), said.rules.version))

    Heartbeat.send = send_and_tell  # type: ignore[method-assign]


def _recorded_facts() -> dict[str, object]:
    """Return what the healthy recordings of the library hold."""
    library = Path(sys.modules["affiant.assertions"].__path__[0], "library")
    facts: dict[str, object] = {}
    for path in sorted(library.glob("*.healthy.json")):
        facts |= read_recording(path).facts
    return facts
