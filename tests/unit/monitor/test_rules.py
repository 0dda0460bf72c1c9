"""Published rules in a monitor: checked beside everything else, applied between looks, told in reports."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from affiant.assertions.bundle import Bundle
from affiant.assertions.engine import Engine
from affiant.assertions.rollout import Rollout
from affiant.model.errors import UnavailableError
from affiant.model.runtime_report import RulesFreshness
from affiant.monitor.clock import SessionClock
from affiant.monitor.rules import MonitorRules
from affiant.monitor.rules_checks import RulesChecks
from affiant.rules.trusted import TrustedRules
from affiant.wire.courier import FetchAnswer
from tests.rules_repository import DAY, FLEET, NOW, Repository, make_repository, rules_file, uncompiled

DEVICE = b"\x01" + bytes(32)
TIMESTAMP = "metadata/timestamp.json"
LIBRARY = replace(uncompiled(rules_file(1, "packaged")), name="affiant-library")


@dataclass
class PlayedCourier:
    """Brings a repository's files; `status` and `bent` stand in for what a relay makes of them."""

    repository: Repository
    status: int = 200
    bent: bytes | None = None
    silent: bool = False
    asked: list[tuple[str, int]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def fetch(self, path: str, maximum: int, *, timeout_s: float) -> FetchAnswer:
        assert timeout_s <= 10
        self.asked.append((path, maximum))
        if self.silent:
            raise UnavailableError(f"{path}: no answer within {timeout_s:.0f} s")
        if self.status != 200:
            return FetchAnswer(1, self.status, b"")
        if self.bent is not None:
            return FetchAnswer(1, 200, self.bent)
        if path not in self.repository.files:
            return FetchAnswer(1, 404, b"")
        return FetchAnswer(1, 200, self.repository.files[path])

    def wake(self) -> None:
        self.ended.set()


class Follower:
    """A monitor's rules with a clock of the test's own: one call of `check` is one whole check."""

    def __init__(self, repository: Repository, *, compiled: object = uncompiled, **trusted: object) -> None:
        self.courier = PlayedCourier(repository)
        root = repository.files["metadata/1.root.json"]
        digest = hashlib.sha256(root).digest()
        self.trusted = TrustedRules(
            root,
            expected_digest=digest,
            first=LIBRARY,
            compiled=compiled,
            **trusted,  # type: ignore[arg-type]
        )
        self.engine = Engine(LIBRARY)
        checks = RulesChecks(self.trusted, self.courier, fleet=FLEET)
        self.rules = MonitorRules(self.engine, checks, interval_ms=5_000)
        self.now_ms = 0
        self.device: bytes | None = DEVICE

    def tend(self) -> bool:
        return self.rules.tend(clock=SessionClock(NOW, 0), device=self.device, now_ms=self.now_ms)

    def check(self, *, after_s: float = 6) -> bool:
        """Let the time pass and one check begin and end; tell whether other rules judge."""
        self.now_ms += int(after_s * 1000)
        self.courier.ended.clear()
        self.courier.asked.clear()
        self.tend()
        assert self.courier.ended.wait(10), "no check began"
        return self.tend()

    @property
    def version(self) -> int:
        return self.rules.used.version

    @property
    def names(self) -> list[str]:
        return [script.name for script in self.engine.bundle.scripts]

    @property
    def freshness(self) -> RulesFreshness:
        freshness = self.rules.freshness(now=NOW + self.now_ms // 1000, now_ms=self.now_ms)
        assert freshness is not None
        return freshness


@pytest.fixture
def repository() -> Repository:
    return make_repository()


@pytest.fixture
def follower(repository: Repository) -> Iterator[Follower]:
    follower = Follower(repository)
    yield follower
    follower.engine.close()


def test_before_the_first_check_the_library_judges_and_reports_say_so(follower: Follower) -> None:
    assert (follower.version, follower.names) == (1, ["packaged"])
    assert follower.freshness == RulesFreshness(None, False, "no check of the rules has ended yet")


def test_published_rules_take_the_place_of_the_library(follower: Follower) -> None:
    assert follower.check()
    assert (follower.version, follower.names, follower.rules.used.name) == (2, ["example"], FLEET)
    assert follower.freshness == RulesFreshness(0, False, "")


def test_newer_rules_are_found_at_the_interval(follower: Follower, repository: Repository) -> None:
    follower.check()
    repository.publish(rules_file(3, "example", "newer"))
    follower.now_ms += 3_900
    assert not follower.tend()
    assert follower.version == 2, "not due yet"
    assert follower.check()
    assert (follower.version, follower.names) == (3, ["example", "newer"])


def test_a_withdrawn_rule_judges_no_longer(follower: Follower, repository: Repository) -> None:
    repository.publish(rules_file(3, "example", "noisy"))
    follower.check()
    repository.publish(rules_file(4, "example"))
    assert follower.check()
    assert follower.names == ["example"]


def test_a_repository_without_news_costs_one_file(follower: Follower) -> None:
    follower.check()
    assert not follower.check()
    assert follower.courier.asked == [(TIMESTAMP, 16 * 1024)]
    assert follower.freshness == RulesFreshness(0, False, "")


def test_a_rotated_root_is_found_without_other_news(follower: Follower, repository: Repository) -> None:
    from securesystemslib.signer import CryptoSigner

    follower.check()
    repository.rotate("targets", CryptoSigner.generate_ed25519())
    for _ in range(60):
        follower.check()
    assert follower.trusted.root_version == 2


def test_a_hint_brings_a_check_at_once(follower: Follower, repository: Repository) -> None:
    follower.check()
    repository.publish(rules_file(3))
    newest = hashlib.sha256(repository.files[TIMESTAMP]).digest()
    follower.rules.heard_of(newest)
    assert follower.check(after_s=0)
    assert follower.version == 3
    follower.rules.heard_of(newest)
    follower.rules.heard_of(None)
    follower.courier.asked.clear()
    follower.tend()
    assert follower.courier.asked == [], "nothing new was heard of"


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        ({"silent": True}, "no answer within"),
        ({"status": 0}, "the repository was not reached"),
        ({"status": 304}, "status 304"),
        ({"status": 500}, "status 500"),
        ({"status": 404}, "the repository has none"),
        ({"bent": b""}, "unreadable"),
        ({"bent": b"\xff" * 1000}, "unreadable"),
        ({"bent": b"[" * 16_000}, "unreadable"),
        ({"bent": bytes(1 << 20)}, "are read"),
    ],
)
def test_whatever_a_relay_brings_the_last_good_rules_judge_and_it_is_told(
    follower: Follower, bend: dict[str, object], said: str
) -> None:
    follower.check()
    for name, value in bend.items():
        setattr(follower.courier, name, value)
    assert not follower.check()
    assert (follower.version, follower.names) == (2, ["example"])
    assert said in follower.freshness.trouble
    assert follower.freshness.age_ms == 6_000
    for name, value in {"silent": False, "status": 200, "bent": None}.items():
        setattr(follower.courier, name, value)
    follower.check()
    assert follower.freshness == RulesFreshness(0, False, "")


def test_an_older_repository_changes_nothing_and_is_told(follower: Follower, repository: Repository) -> None:
    """A relay that kept yesterday's files replays them."""
    older = repository.copy()
    repository.publish(rules_file(3))
    follower.check()
    follower.courier.repository = older
    assert not follower.check()
    assert follower.version == 3
    assert "version" in follower.freshness.trouble


def test_a_frozen_repository_expires_and_still_judges(follower: Follower) -> None:
    """A relay that shows the same files for ever: what they say is judged by, and reported as expired."""
    follower.check()
    follower.courier.silent = True
    follower.check(after_s=DAY + 60)
    assert follower.freshness.expired
    follower.courier.silent = False
    assert not follower.check()
    assert "expired" in follower.freshness.trouble
    assert (follower.version, follower.names, follower.freshness.expired) == (2, ["example"], True)


def test_expiry_shows_without_a_check(follower: Follower) -> None:
    follower.check()
    follower.now_ms += 2 * DAY * 1000
    assert follower.freshness.expired


def test_a_bundle_that_does_not_compile_keeps_the_last_good_one(repository: Repository) -> None:
    """With the real compiler: the publisher signed what cannot judge."""
    from affiant.assertions.bundle import compile_bundle

    follower = Follower(repository, compiled=compile_bundle)
    follower.check()
    good = rules_file(3)
    bad = replace(good.rules[0], source=good.rules[0].source.replace("return", "return return"))
    repository.publish(replace(good, rules=(bad,)))
    assert not follower.check()
    assert (follower.version, follower.names) == (2, ["example"])
    assert "Parse error" in follower.freshness.trouble
    assert not follower.check(), "and it is not tried for ever"
    assert "Parse error" in follower.freshness.trouble
    repository.publish(rules_file(4))
    assert follower.check()
    assert (follower.version, follower.freshness.trouble) == (4, "")


def test_a_bundle_for_another_fleet_is_told_and_not_judged_by(
    follower: Follower, repository: Repository
) -> None:
    follower.check()
    repository.publish(rules_file(3, fleet="db"))
    assert not follower.check()
    assert follower.version == 2
    assert "for the fleet db" in follower.freshness.trouble


def test_what_the_service_demands_is_asked_for_at_once(follower: Follower, repository: Repository) -> None:
    follower.check()
    repository.publish(rules_file(7))
    follower.rules.demand(7)
    assert follower.check(after_s=0)
    assert follower.version == 7


def test_a_repository_below_the_demanded_version_is_told(follower: Follower) -> None:
    """The newest that the relay shows is older than the service's signed word: it holds something back."""
    follower.check()
    follower.rules.demand(5)
    assert not follower.check(after_s=0)
    assert follower.version == 2
    assert "version 2 is offered, 5 or later is due" in follower.freshness.trouble


def test_without_the_services_time_nothing_is_checked(follower: Follower) -> None:
    """What has expired could not be known; the host's clock is nobody's word."""
    for now_ms in (0, 60_000):
        assert not follower.rules.tend(clock=None, device=DEVICE, now_ms=now_ms)
    assert follower.courier.asked == []


def test_a_check_that_hangs_delays_nothing(follower: Follower) -> None:
    """Measuring goes on, and no second check begins beside the first."""
    release, begun = threading.Event(), threading.Event()
    honest = follower.courier.fetch

    def hang(path: str, maximum: int, *, timeout_s: float) -> FetchAnswer:
        begun.set()
        assert release.wait(20)
        return honest(path, maximum, timeout_s=timeout_s)

    follower.courier.fetch = hang  # type: ignore[method-assign]
    assert not follower.tend()
    assert begun.wait(10)
    for _ in range(100):
        follower.now_ms += 1_000
        assert not follower.tend()
    assert follower.version == 1
    assert [thread.name for thread in threading.enumerate()].count("rules check") == 1
    release.set()
    assert follower.courier.ended.wait(10)
    assert follower.tend()
    assert follower.version == 2


def test_a_slow_check_does_not_look_fresher_than_it_is(follower: Follower) -> None:
    """What was asked for eight seconds ago says nothing of the eight seconds."""
    assert not follower.tend()
    assert follower.courier.ended.wait(10)
    follower.now_ms += 8_000
    assert follower.tend()
    assert follower.freshness == RulesFreshness(8_000, False, "")


def test_a_repository_of_endless_rotations_ends(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay may always have one more file: a check asks for so many and no more."""
    monkeypatch.setattr("affiant.monitor.rules_checks._MOST_FETCHES", 2)
    assert not follower.check()
    assert len(follower.courier.asked) == 2
    assert "took too long" in follower.freshness.trouble


def test_a_check_that_dies_is_told(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(follower.trusted, "update", fail)
    assert not follower.check()
    assert follower.freshness.trouble == "the check failed: RuntimeError"


def staged(version: int, **rollout: object) -> Bundle:
    file = rules_file(version, "everywhere", "staged")
    return replace(uncompiled(file), rollouts={"staged": Rollout(**rollout)})  # type: ignore[arg-type]


def staged_follower(repository: Repository, **rollout: object) -> Follower:
    return Follower(repository, compiled=lambda file: staged(file.version, **rollout))


def test_a_rule_for_a_share_of_the_fleet_judges_only_there(repository: Repository) -> None:
    judged = []
    for number in range(40):
        follower = staged_follower(repository, percent=50)
        follower.device = number.to_bytes(33, "big")
        follower.check()
        judged.append("staged" in follower.names)
    assert 8 < sum(judged) < 32


def test_a_rule_for_a_share_waits_until_the_device_is_known(repository: Repository) -> None:
    follower = staged_follower(repository, percent=99)
    follower.device = None
    follower.check()
    assert follower.names == ["everywhere"]
    share = Rollout(percent=99)
    follower.device = next(d for d in (n.to_bytes(33, "big") for n in range(9)) if share.reaches("staged", d))
    assert follower.tend()
    assert follower.names == ["everywhere", "staged"]


def test_a_rule_begins_and_ends_at_its_times_without_a_new_bundle(repository: Repository) -> None:
    follower = staged_follower(repository, not_before=NOW + 100, expires=NOW + 200)
    follower.check()
    assert follower.names == ["everywhere"]
    follower.courier.silent = True
    for at_s, names in ((99, ["everywhere"]), (100, ["everywhere", "staged"]), (200, ["everywhere"])):
        follower.now_ms = at_s * 1000
        follower.tend()
        assert follower.names == names


def test_without_published_rules_there_is_no_freshness_to_tell() -> None:
    rules = MonitorRules(Engine(LIBRARY))
    assert rules.freshness(now=NOW, now_ms=0) is None
    assert not rules.tend(clock=SessionClock(NOW, 0), device=DEVICE, now_ms=0)


def test_a_pinned_root_that_is_none_is_told_for_ever() -> None:
    rules = MonitorRules(Engine(LIBRARY), trouble="rules root: unreadable")
    assert rules.freshness(now=NOW, now_ms=0) == RulesFreshness(None, False, "rules root: unreadable")
