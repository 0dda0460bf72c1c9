"""A monitor's own loop and channel, in a thread, with a relay that the test plays."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from affiant.assertions.bundle import compile_bundle
from affiant.assertions.engine import Engine
from affiant.model.runtime_report import RuntimeReport
from affiant.monitor.courier_client import CourierClient, CourierClosedError
from affiant.monitor.loop import Monitor
from affiant.monitor.rules import MonitorRules
from affiant.monitor.rules_checks import RulesChecks
from affiant.monitor.session import SessionMaker
from affiant.monitor.settings import MonitorSettings
from affiant.relying_party.verify import verify_passport
from affiant.rules.trusted import TrustedRules
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
from tests.rules_repository import FLEET, Repository, rules_file
from tests.simulator import AUDIENCE, World
from tests.unit.monitor.world import RecordedKernel, SimulatedBoot, SimulatedLauncher

SECONDS = 20.0
FACTS = {"fact": {"value": 1}, "secret": {"key": "hidden"}}
Answer = Callable[[Fetch], list[CourierMessage]]


@dataclass
class HostileRelay:
    """Carries posts as it should, so that there is a session; `fetched` decides what becomes of a fetch.

    Posts to the paths in `withheld` are counted, and never answered.
    """

    channel: socket.socket
    world: World
    fetched: Answer
    fetches: int = 0
    frames: FrameDecoder = field(default_factory=FrameDecoder)
    answers: list[CourierMessage] = field(default_factory=list)
    asked: int = 0
    withheld: set[str] = field(default_factory=set)
    posted: Counter[str] = field(default_factory=Counter)

    def ask(self) -> RuntimeReport:
        """Ask as a relying party, verify the answer, and return the report."""
        self.asked += 1
        nonce = self.asked.to_bytes(32, "big")
        self.send(Ask(self.asked, nonce, AUDIENCE))
        answer = self.until(lambda message: isinstance(message, Show | Decline) and message.id == self.asked)
        assert isinstance(answer, Show), answer
        return verify_passport(
            answer.passport,
            root=self.world.service.root,
            expected_nonce=nonce,
            now=self.world.service.now,
            expected_audience=AUDIENCE,
            expected_device=None,
        ).runtime

    def ask_until(self, fits: Callable[[RuntimeReport], bool]) -> RuntimeReport:
        deadline = time.monotonic() + SECONDS
        while not fits(report := self.ask()):
            assert time.monotonic() < deadline, report
        return report

    def send(self, message: CourierMessage) -> None:
        self.channel.sendall(encode_frame(write_message(message)))

    def until(self, wanted: Callable[[CourierMessage], bool]) -> CourierMessage:
        """Carry messages until the wanted one comes."""
        while True:
            for item in self.frames.feed(self.channel.recv(1 << 16)):
                message = read_message(item)
                self._carry(message)
                self.answers.append(message)
            for message in self.answers:
                if wanted(message):
                    self.answers.clear()
                    return message

    def _carry(self, message: CourierMessage) -> None:
        if isinstance(message, Fetch):
            self.fetches += 1
            for answer in self.fetched(message):
                self.send(answer)
        elif isinstance(message, Post):
            self.posted[message.path] += 1
            if message.path in self.withheld:
                return
            api: Any = self.world.service.api
            operation = message.path.removeprefix("/v1/").replace("/", "_")
            body = getattr(api, operation)(message.body, now=self.world.service.now)
            self.send(PostAnswer(message.id, 200 if body else 204, body))


def honest(repository: Repository) -> Answer:
    def fetched(message: Fetch) -> list[CourierMessage]:
        body = repository.files.get(message.path)
        return [FetchAnswer(message.id, 404 if body is None else 200, body or b"")]

    return fetched


@contextlib.contextmanager
def attacked_monitor(
    world: World, repository: Repository, *, interval_ms: tuple[int, int] = (1_000, 10_000)
) -> Iterator[tuple[HostileRelay, RecordedKernel]]:
    """Run a monitor in a thread, with the packaged library of one rule; its relay is the test's."""
    near, far = socket.socketpair()
    far.settimeout(SECONDS)
    root = repository.files["metadata/1.root.json"]
    library = compile_bundle(replace(rules_file(1, "packaged"), name="affiant-library"))
    trusted = TrustedRules(root, expected_digest=hashlib.sha256(root).digest(), first=library)
    launcher, courier = SimulatedLauncher(world.machine()), CourierClient(near)
    boot = SimulatedBoot(launcher.machine)
    with Engine(library) as engine, contextlib.closing(courier), far:
        watch = RecordedKernel(engine, FACTS)
        monitor = Monitor(
            settings=MonitorSettings(
                1 << 30, 1 << 30, b"", "/references", *interval_ms, rules_interval_ms=1_000
            ),
            launcher=launcher,  # type: ignore[arg-type]
            courier=courier,
            watch=watch,  # type: ignore[arg-type]
            rules=MonitorRules(engine, RulesChecks(trusted, courier, fleet=FLEET), interval_ms=1_000),
            sessions=SessionMaker(launcher=launcher, courier=courier, boot=boot, root=world.service.root),  # type: ignore[arg-type]
            root=world.service.root,
        )

        def live() -> None:
            with contextlib.suppress(CourierClosedError):
                monitor.run()

        thread = threading.Thread(target=live)
        thread.start()
        try:
            yield HostileRelay(far, world, honest(repository)), watch
        finally:
            far.close()
            thread.join(SECONDS)
        assert not thread.is_alive()
