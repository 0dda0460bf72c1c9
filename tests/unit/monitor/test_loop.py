"""The monitor's life against the service's own code, with a kernel that the test plays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.assertions.script import Script
from affiant.model.errors import MalformedError
from affiant.model.finding import Finding
from affiant.model.level import SecurityLevel
from affiant.model.outcome import AssertionResult, Mode, Outcome
from affiant.monitor import loop
from affiant.monitor.courier_client import CourierClosedError
from affiant.monitor.fact_keeper import FactKeeper
from affiant.monitor.loop import Monitor
from affiant.monitor.rules import MonitorRules
from affiant.monitor.rules_checks import RulesChecks
from affiant.monitor.session import SessionMaker
from affiant.monitor.settings import MonitorSettings
from affiant.monitor.watch import Look
from affiant.relying_party.decide import Policy, decide
from affiant.relying_party.verify import VerifiedPassport, verify_passport
from affiant.rules.trusted import TrustedRules
from affiant.wire.courier import Ask
from tests.rules_repository import FLEET, Repository, make_repository, rules_file, uncompiled
from tests.simulator import AUDIENCE, REFERENCE, World, make_world
from tests.unit.monitor.test_rules import PlayedCourier
from tests.unit.monitor.world import SimulatedBoot, SimulatedCourier, SimulatedLauncher

POLICY = Policy(required=frozenset({"kernel_text_intact"}))


@dataclass
class PlayedKernel:
    """What the watch would see."""

    reference: bytes | None = REFERENCE
    hooked: bool = False
    looks: int = 0
    whole_looks: int = 0
    results: list[AssertionResult] = field(default_factory=list)
    forgotten: int = 0

    copies: int = 0

    def forget_boot(self, *, counted: bool) -> None:
        self.forgotten += 1

    def follow_boot(self) -> bool:
        self.copies += self.reference is None
        return self.reference is None

    def look(self, *, everything: bool = False) -> Look:
        self.looks += 1
        self.whole_looks += everything
        name, version = "kernel_text_intact", 1
        if self.reference is None:
            result = AssertionResult(
                name, version, Mode.ENFORCE, Outcome.INCONCLUSIVE, 0, (), "the kernel does not run yet"
            )
        elif self.hooked:
            finding = Finding("tcp4_seq_show+0x5", "0f1f44", "e90000")
            result = AssertionResult(name, version, Mode.ENFORCE, Outcome.VIOLATED, 9, (finding,))
        else:
            result = AssertionResult(name, version, Mode.ENFORCE, Outcome.HOLDS, 9)
        facts = {"kernel_text": {"compared_bytes": 9 + self.looks, "hooked": self.hooked}}
        return Look((result,), self.reference, facts)


class Stage:
    """A monitor, what surrounds it, and a script of questions and events."""

    def __init__(
        self,
        world: World,
        engine: Engine,
        *,
        rules: MonitorRules | None = None,
        keep_facts_ms: int = 0,
        key: bytes = b"",
    ) -> None:
        self.service = world.service
        self.machine = world.machine()
        self.launcher = SimulatedLauncher(self.machine)
        self.courier = SimulatedCourier(world.service)
        self.kernel = PlayedKernel()
        self.monitor = Monitor(
            settings=MonitorSettings(1 << 30, 1 << 30, b"", "/references"),
            launcher=self.launcher,  # type: ignore[arg-type]
            courier=self.courier,  # type: ignore[arg-type]
            watch=self.kernel,  # type: ignore[arg-type]
            rules=rules or MonitorRules(engine),
            sessions=SessionMaker(
                launcher=self.launcher,  # type: ignore[arg-type]
                courier=self.courier,  # type: ignore[arg-type]
                boot=SimulatedBoot(self.machine),
                root=world.service.root,
            ),
            root=world.service.root,
            keeper=FactKeeper(
                self.launcher,  # type: ignore[arg-type]
                engine.bundle,
                every_ms=keep_facts_ms,
                recipient=key or None,
            )
            if keep_facts_ms
            else None,
        )

    def after_a_crash(self, world: World, engine: Engine) -> Stage:
        """Return the stage of the monitor that the same launcher starts after this one."""
        stage = Stage(world, engine)
        stage.machine = self.machine
        stage.kernel.hooked = self.kernel.hooked
        self.launcher.remembered, stage.launcher.remembered = (0, b""), self.launcher.remembered
        stage.launcher.generation = self.launcher.generation
        return stage

    def play(self, *script: object) -> list[VerifiedPassport | str]:
        """Ask where the script says "ask", do what else it holds; return verified passports or reasons."""
        asked = 0
        for item in script:
            if item == "ask":
                asked += 1
                self.courier.questions.append(Ask(asked, bytes([asked]) * 32, AUDIENCE))
            else:
                self.courier.questions.append(item)  # type: ignore[arg-type]
        with pytest.raises(CourierClosedError):
            self.monitor.run()
        return [
            answer if isinstance(answer, str) else self._verified(question, answer)
            for question, answer in self.courier.answers
        ]

    def _verified(self, question: Ask, passport: bytes) -> VerifiedPassport:
        return verify_passport(
            passport,
            root=self.service.root,
            expected_nonce=question.nonce,
            now=self.service.now,
            expected_audience=AUDIENCE,
            expected_device=None,
        )

    def hook(self) -> None:
        self.kernel.hooked = True

    def repair(self) -> None:
        self.kernel.hooked = False


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(packaged_library()) as engine:
        yield engine


@pytest.fixture
def stage(tmp_path: Path, engine: Engine) -> Stage:
    return Stage(make_world(tmp_path), engine)


def accepted(passport: VerifiedPassport | str) -> bool:
    assert isinstance(passport, VerifiedPassport)
    return decide(passport, policy=POLICY).accepted


def test_a_healthy_kernel_is_accepted(stage: Stage) -> None:
    (passport,) = stage.play("ask")
    assert accepted(passport)


def test_each_question_is_answered_by_a_new_look(stage: Stage) -> None:
    stage.play("ask", "ask", "ask")
    assert stage.kernel.looks == 4  # the first one before anybody asked


def test_reports_are_numbered_and_chained(stage: Stage) -> None:
    first, second = stage.play("ask", "ask")
    assert isinstance(first, VerifiedPassport)
    assert isinstance(second, VerifiedPassport)
    assert second.runtime.sequence == first.runtime.sequence + 1
    assert second.runtime.previous == first.runtime.digest


def test_a_repaired_hook_is_still_refused(stage: Stage) -> None:
    healthy, hooked, repaired = stage.play("ask", stage.hook, "ask", stage.repair, "ask")
    assert [accepted(each) for each in (healthy, hooked, repaired)] == [True, False, False]
    assert isinstance(repaired, VerifiedPassport)
    (violation,) = repaired.runtime.violations
    assert not violation.standing
    assert repaired.runtime.assertions[0].outcome is Outcome.HOLDS


def test_a_hook_is_told_to_the_service_at_once(stage: Stage) -> None:
    stage.play("ask", stage.hook, "ask")
    before = stage.courier.posted.count("/v1/heartbeat")
    assert before == 2  # one at the session's start, one for the violation


def test_a_hook_that_is_seen_while_a_heartbeat_is_awaited_is_told_at_once_after_it(stage: Stage) -> None:
    """The answer to a heartbeat that knew nothing of it does not put it off."""

    def slow(path: str, answer: bytes) -> bytes:
        if path == "/v1/heartbeat" and not stage.kernel.hooked:
            stage.hook()
            stage.monitor._while_waiting()
        return answer

    stage.courier.tamper = slow
    (passport,) = stage.play("ask", lambda: None)
    assert not accepted(passport)
    assert stage.courier.posted.count("/v1/heartbeat") == 2


def test_a_guest_that_is_started_anew_gets_a_new_session_and_a_clean_journal(stage: Stage) -> None:
    def reset() -> None:
        stage.machine.boot()
        stage.launcher.generation += 1
        stage.repair()

    hooked, anew = stage.play(stage.hook, "ask", reset, "ask")
    assert isinstance(hooked, VerifiedPassport)
    assert isinstance(anew, VerifiedPassport)
    assert stage.kernel.forgotten == 2  # at the monitor's own start, and now
    assert anew.session.session_id != hooked.session.session_id
    assert anew.runtime.sequence == 2  # after the heartbeat that begins the session
    assert accepted(anew)


def test_a_repaired_hook_is_refused_by_the_monitor_after_a_crash(tmp_path: Path, engine: Engine) -> None:
    """Whoever can make a monitor end does not make it forget."""
    world = make_world(tmp_path)
    before = Stage(world, engine)
    (hooked,) = before.play("ask", before.hook, "ask", before.repair)[1:]
    after = before.after_a_crash(world, engine)
    (told,) = after.play("ask")
    assert isinstance(hooked, VerifiedPassport)
    assert isinstance(told, VerifiedPassport)
    assert told.session.session_id != hooked.session.session_id
    assert not accepted(told)
    (violation,) = told.runtime.violations
    assert violation.findings == hooked.runtime.violations[0].findings
    assert not violation.standing
    assert told.runtime.assertions[0].outcome is Outcome.HOLDS


def test_a_hook_is_remembered_before_anybody_is_told(stage: Stage) -> None:
    """A monitor that ends right after it told leaves a launcher which knows."""
    known: list[bool] = []

    def note(path: str, answer: bytes) -> bytes:
        known.append(bool(stage.launcher.remembered[1]))
        return answer

    def hook() -> None:
        stage.hook()
        stage.courier.tamper = note

    stage.play("ask", hook, "ask", lambda: None)
    assert known == [True]


def test_a_guest_that_was_started_anew_is_not_told_of_what_a_monitor_of_its_last_boot_saw(
    tmp_path: Path, engine: Engine
) -> None:
    world = make_world(tmp_path)
    before = Stage(world, engine)
    before.play(before.hook, "ask", before.repair)
    before.launcher.generation += 1
    after = before.after_a_crash(world, engine)
    (healthy,) = after.play("ask")
    assert accepted(healthy)


def test_a_monitor_that_cannot_know_what_was_seen_before_has_no_session(stage: Stage) -> None:
    stage.launcher.remembered = (stage.launcher.generation, b"forged")
    with pytest.raises(MalformedError, match="remembered violations"):
        stage.monitor.run()
    assert stage.courier.posted == []
    assert stage.kernel.looks == 0


def test_a_launcher_that_remembers_nothing_more_does_not_end_the_monitor(stage: Stage) -> None:
    stage.launcher.full = True
    hooked, repaired = stage.play(stage.hook, "ask", stage.repair, "ask")
    assert not accepted(hooked)
    assert not accepted(repaired)


def test_a_passport_names_the_kernel_of_the_last_look_also_if_it_became_known_meanwhile(stage: Stage) -> None:
    """Looks go on while a session is awaited: what they found is not told of the kernel before."""
    stage.kernel.reference = None

    def slow(path: str, answer: bytes) -> bytes:
        if path == "/v1/session":
            stage.kernel.reference = REFERENCE
            stage.monitor._measure_due = 0
            stage.monitor._while_waiting()
        return answer

    def no_session_yet() -> None:
        stage.courier.unreachable = False
        stage.monitor._session_due = 0
        stage.courier.tamper = slow
        stage.monitor._answer(Ask(9, b"\x09" * 32, AUDIENCE))

    stage.courier.unreachable = True
    (passport,) = stage.play(no_session_yet)
    assert isinstance(passport, VerifiedPassport)
    assert [each.outcome for each in passport.runtime.assertions] == [Outcome.HOLDS]
    assert passport.runtime.reference == REFERENCE


def test_a_kernel_that_becomes_known_renews_the_session(stage: Stage) -> None:
    stage.kernel.reference = stage.machine.reference = None

    def booted() -> None:
        stage.kernel.reference = stage.machine.reference = REFERENCE

    early, later = stage.play("ask", booted, "ask")
    assert isinstance(early, VerifiedPassport)
    assert isinstance(later, VerifiedPassport)
    assert not accepted(early)
    assert early.session.level < later.session.level == SecurityLevel.ENFORCED_CODE
    assert later.runtime.reference == later.session.reference == REFERENCE


@pytest.mark.parametrize(("poll_ms", "copies"), [(0, 9), (3_600_000, 1)])
def test_the_log_of_a_guest_that_boots_is_copied_between_looks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, poll_ms: int, copies: int
) -> None:
    monkeypatch.setattr(loop, "_BOOT_LOG_POLL_MS", poll_ms)
    stage.kernel.reference = None
    stage.play(*[lambda: None] * 8)
    assert (stage.kernel.copies, stage.kernel.looks) == (copies, 1)


def test_a_log_that_is_long_to_be_found_takes_a_tenth_of_the_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000]

    def follow_boot() -> bool:
        now[0] += 400
        return True

    monkeypatch.setattr(loop, "monotonic_ms", lambda: now[0])
    monkeypatch.setattr(stage.kernel, "follow_boot", follow_boot)
    assert stage.monitor._boot_log_due() == 1_000 + 400 + 3_600
    now[0] = 4_999
    assert stage.monitor._boot_log_due() == 5_000
    assert now == [4_999], "it was not looked for"


def test_a_kernel_that_the_service_does_not_know_makes_no_storm_of_sessions(stage: Stage) -> None:
    stage.kernel.reference = stage.machine.reference = bytes(32)  # no reference value names this one
    passports = stage.play(*["ask"] * 20)
    assert len(passports) == 20
    assert stage.courier.posted.count("/v1/session") == 1


def test_without_a_service_there_is_a_reason_instead_of_a_passport(stage: Stage) -> None:
    stage.courier.unreachable = True
    (reason,) = stage.play("ask")
    assert isinstance(reason, str)
    assert "not reached" in reason


def test_a_session_that_expired_is_not_spoken_in(stage: Stage) -> None:
    """The service was out of reach for longer than the session lasts: the monitor says so, and lives on."""

    def an_hour_without_a_service() -> None:
        stage.courier.unreachable = True
        session = stage.monitor._reporter.session  # type: ignore[union-attr]
        late = replace(session.clock, origin_ms=session.clock.origin_ms - 3_600_000)
        stage.monitor._reporter._session = replace(session, clock=late)  # type: ignore[union-attr]
        stage.monitor._session_due = 1 << 62

    def again() -> None:
        stage.courier.unreachable = False
        stage.monitor._session_due = 0

    first, reason, anew = stage.play("ask", an_hour_without_a_service, "ask", again, "ask")
    assert accepted(first)
    assert isinstance(reason, str)
    assert "not reached" in reason
    assert accepted(anew)


def test_a_session_that_the_service_ended_is_replaced(stage: Stage) -> None:
    """A service that lost its database no longer knows the session: the monitor asks for another."""

    def forget() -> None:
        stage.monitor._heartbeat.due_ms = 0  # type: ignore[union-attr]
        stage.monitor._heartbeat.nonce = bytes(32)  # type: ignore[union-attr]

    first, second = stage.play("ask", forget, "ask")
    assert isinstance(first, VerifiedPassport)
    assert isinstance(second, VerifiedPassport)
    assert first.session.session_id != second.session.session_id
    assert accepted(second)


class PublishingStage(Stage):
    """A monitor that takes published rules: the kernel is judged by whichever the engine has."""

    def __init__(self, world: World, repository: Repository) -> None:
        self.repository = repository
        root = repository.files["metadata/1.root.json"]
        trusted = TrustedRules(
            root,
            expected_digest=hashlib.sha256(root).digest(),
            first=replace(uncompiled(rules_file(1, "kernel_text_intact")), name="affiant-library"),
            compiled=uncompiled,
        )
        self.engine = Engine(trusted.bundle)
        self.carrier = PlayedCourier(repository)
        self.checks = RulesChecks(trusted, self.carrier, fleet=FLEET)
        super().__init__(world, self.engine, rules=MonitorRules(self.engine, self.checks))
        self.kernel = JudgedKernel(self.engine)  # type: ignore[assignment]
        self.monitor._watch = self.kernel  # type: ignore[assignment]

    def check(self) -> None:
        """Let a check of the rules begin, and wait until it has ended.

        One that is under way may have asked before the repository was what it is now.
        """
        if (earlier := self.checks._thread) is not None:
            earlier.join(10)
        self.carrier.ended.clear()
        self.monitor._rules._due_ms = 0
        self.monitor._follow_the_rules()
        assert self.carrier.ended.wait(10)

    def publish(self, version: int, *names: str) -> Callable[[], None]:
        return lambda: self.repository.publish(rules_file(version, *sorted(names)))


@dataclass
class JudgedKernel:
    """Every rule of the engine's bundle looks, and those called `hook_...` find something."""

    engine: Engine
    looks: int = 0
    reference: bytes = REFERENCE

    def forget_boot(self, *, counted: bool) -> None:
        """Nothing of an earlier boot is kept here."""

    def follow_boot(self) -> bool:
        return False

    def look(self, *, everything: bool = False) -> Look:
        self.looks += 1
        return Look(tuple(self._result(script) for script in self.engine.bundle.scripts), self.reference)

    def _result(self, script: Script) -> AssertionResult:
        if script.name.startswith("hook_"):
            finding = Finding("tcp4_seq_show+0x5", "0f1f44", "e90000")
            return AssertionResult(script.name, script.version, script.mode, Outcome.VIOLATED, 9, (finding,))
        return AssertionResult(script.name, script.version, script.mode, Outcome.HOLDS, 9)


@pytest.fixture
def publishing(tmp_path: Path) -> PublishingStage:
    return PublishingStage(make_world(tmp_path), make_repository())


def told(passport: VerifiedPassport | str) -> tuple[int, list[str], list[str]]:
    assert isinstance(passport, VerifiedPassport), passport
    runtime = passport.runtime
    names = sorted(each.name for each in runtime.assertions)
    return runtime.rules.version, names, [each.assertion for each in runtime.violations]


def test_new_rules_judge_the_next_look_of_the_same_session(publishing: PublishingStage) -> None:
    stage = publishing
    first, second = stage.play(
        stage.publish(3, "kernel_text_intact", "hook_noticed"), "ask", stage.check, "ask"
    )
    assert told(first) == (1, ["kernel_text_intact"], [])
    assert told(second) == (3, ["hook_noticed", "kernel_text_intact"], ["hook_noticed"])
    assert isinstance(first, VerifiedPassport)
    assert isinstance(second, VerifiedPassport)
    assert first.session.session_id == second.session.session_id
    assert second.runtime.freshness is not None
    assert second.runtime.freshness.trouble == ""


def test_the_service_hears_of_new_rules_without_being_asked(publishing: PublishingStage) -> None:
    """Nobody asks, and nothing is due: the next report goes out because the rules are others."""
    stage = publishing
    told_before: list[int] = []
    stage.play(
        lambda: told_before.append(stage.courier.posted.count("/v1/heartbeat")),
        stage.check,
        lambda: None,
        lambda: told_before.append(stage.courier.posted.count("/v1/heartbeat")),
    )
    assert told_before[1] > told_before[0]
    assert stage.kernel.looks == 2


def test_a_withdrawn_rule_disappears_and_its_violation_stays(publishing: PublishingStage) -> None:
    stage = publishing
    _, later = stage.play(
        stage.publish(3, "kernel_text_intact", "hook_noticed"),
        stage.check,
        "ask",
        stage.publish(4, "kernel_text_intact"),
        stage.check,
        "ask",
    )
    assert told(later) == (4, ["kernel_text_intact"], ["hook_noticed"])
    assert not accepted(later)
    assert isinstance(later, VerifiedPassport)
    assert decide(later, policy=replace(POLICY, tolerate_withdrawn=True)).accepted


def test_trouble_with_the_rules_stands_in_the_next_report(publishing: PublishingStage) -> None:
    stage = publishing

    def fail() -> None:
        stage.carrier.status = 500

    _, later = stage.play(stage.check, "ask", fail, stage.check, "ask")
    assert told(later)[0] == 2, "the last good rules judge on"
    assert isinstance(later, VerifiedPassport)
    assert later.runtime.freshness is not None
    assert "status 500" in later.runtime.freshness.trouble


def test_below_the_demanded_version_there_is_no_session_until_there_are_rules(tmp_path: Path) -> None:
    """A fresh monitor whose relay shows an older repository says so, and gets none."""
    stage = PublishingStage(make_world(tmp_path, minimum_rules_version=5), make_repository())

    def at_once() -> None:
        stage.monitor._session_due = 0

    first, stale, fresh = stage.play(
        "ask",
        stage.check,
        at_once,
        "ask",
        stage.publish(6, "kernel_text_intact"),
        stage.check,
        at_once,
        "ask",
    )
    assert isinstance(first, str)
    assert "the rules here are of version 1, the service demands 5 or later" in first
    assert isinstance(stale, str)
    assert "the rules here are of version 1" in stale
    assert told(fresh) == (6, ["kernel_text_intact"], [])
    assert accepted(fresh)
    assert isinstance(fresh, VerifiedPassport)
    assert fresh.session.minimum_rules_version == 5
