"""A relay that carries rules badly, and rules that reach for more than they declare.

What a repository may be bent into is in `test_rules_forged`; here the way is hostile. The monitor's own
loop and channel, the service's own code, the real engine; the relay is the attacker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from affiant.assertions.bundle_file import BundledRule
from affiant.model.outcome import Outcome
from affiant.model.runtime_report import RuntimeReport
from affiant.wire.courier import MAX_BODY, Ask, CourierMessage, Decline, Fetch, FetchAnswer, Show
from tests.attacks.hostile_relay import SECONDS, HostileRelay, attacked_monitor, honest
from tests.rules_repository import Repository, make_repository, rules_file
from tests.simulator import AUDIENCE, World
from tests.unit.monitor.world import RecordedKernel


@pytest.fixture
def repository() -> Repository:
    return make_repository()


@pytest.fixture
def attacked(world: World, repository: Repository) -> Iterator[tuple[HostileRelay, RecordedKernel]]:
    with attacked_monitor(world, repository) as both:
        yield both


def judged_by(report: RuntimeReport, version: int) -> bool:
    return report.rules.version == version and report.freshness is not None and not report.freshness.trouble


def test_an_honest_relay_brings_rules(attacked: tuple[HostileRelay, RecordedKernel]) -> None:
    relay, _ = attacked
    report = relay.ask_until(lambda report: judged_by(report, 2))
    assert [each.name for each in report.assertions] == ["example"]


def test_a_relay_that_answers_no_fetch_stalls_neither_looks_nor_answers(
    attacked: tuple[HostileRelay, RecordedKernel],
) -> None:
    """For ten seconds a check waits for its first file. Meanwhile everything goes on as ever."""
    relay, watch = attacked
    relay.fetched = lambda _: []
    relay.ask()
    started, looks = time.monotonic(), watch.looks
    reports = [relay.ask() for _ in range(20)]
    assert time.monotonic() - started < 5
    assert watch.looks == looks + 20
    assert relay.fetches == 1
    assert {report.rules.version for report in reports} == {1}
    assert {report.freshness.trouble for report in reports if report.freshness} == {
        "no check of the rules has ended yet"
    }


def test_endless_answers_to_nothing_are_dropped(attacked: tuple[HostileRelay, RecordedKernel]) -> None:
    """A megabyte each, and none of them asked for: the monitor takes the one that it waits for."""
    relay, _ = attacked
    honestly = relay.fetched

    def flood(message: Fetch) -> list[CourierMessage]:
        return [FetchAnswer(message.id + 1000 + n, 200, bytes(MAX_BODY)) for n in range(20)] + honestly(
            message
        )

    relay.fetched = flood
    assert relay.ask_until(lambda report: judged_by(report, 2))


def test_more_than_was_asked_for_is_told(attacked: tuple[HostileRelay, RecordedKernel]) -> None:
    relay, _ = attacked
    relay.fetched = lambda message: [FetchAnswer(message.id, 200, bytes(MAX_BODY))]
    report = relay.ask_until(
        lambda report: report.freshness is not None and "bytes" in report.freshness.trouble
    )
    assert report.freshness is not None
    assert "metadata/timestamp.json: more than 16384 bytes" in report.freshness.trouble
    assert report.rules.version == 1


@pytest.mark.parametrize("status", [204, 304, 404, 429, 503])
def test_statuses_without_a_file_are_told(attacked: tuple[HostileRelay, RecordedKernel], status: int) -> None:
    relay, _ = attacked
    relay.fetched = lambda message: [FetchAnswer(message.id, status, b"garbage")]
    report = relay.ask_until(
        lambda report: report.freshness is not None and "timestamp.json: " in report.freshness.trouble
    )
    assert report.rules.version == 1


def test_an_older_repository_is_not_gone_back_to(
    attacked: tuple[HostileRelay, RecordedKernel], repository: Repository
) -> None:
    relay, _ = attacked
    older = repository.copy()
    repository.publish(rules_file(3, "newer"))
    relay.ask_until(lambda report: judged_by(report, 3))
    relay.fetched = honest(older)
    report = relay.ask_until(lambda report: report.freshness is not None and report.freshness.trouble != "")
    assert report.rules.version == 3
    assert [each.name for each in report.assertions] == ["newer"]


def test_a_fresh_monitor_gets_no_session_with_an_older_repository(
    attacked: tuple[HostileRelay, RecordedKernel], world: World, repository: Repository
) -> None:
    """Nothing in its memory tells it of newer rules; the service's signed challenge does."""
    relay, _ = attacked
    older = repository.copy()
    repository.publish(rules_file(7))
    world.service.api._context = replace(  # type: ignore[misc]
        world.service.context, settings=replace(world.service.settings, minimum_rules_version=7)
    )
    relay.fetched = honest(older)
    declined: list[str] = []
    for number in range(1, 4):
        relay.send(Ask(number, bytes(32), AUDIENCE))
        answer = relay.until(lambda message: isinstance(message, Show | Decline))
        assert isinstance(answer, Decline)
        declined.append(answer.reason)
    assert all("the service demands 7 or later" in reason for reason in declined)
    relay.fetched = honest(repository)
    relay.asked = 3
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            report = relay.ask()
            break
    assert report.rules.version == 7


def test_a_rule_that_reads_beyond_its_declared_facts_sees_nothing(
    attacked: tuple[HostileRelay, RecordedKernel], repository: Repository
) -> None:
    """Signed or not: it is given what it declares, and its failure is its own."""
    relay, _ = attacked
    file = rules_file(3, "curious", "honest")
    curious = file.rules[0].source.replace('ok("x")', 'ok(facts["secret"]["key"])')
    repository.publish(replace(file, rules=(BundledRule("curious", curious), file.rules[1])))
    report = relay.ask_until(lambda report: judged_by(report, 3))
    results = {each.name: each for each in report.assertions}
    assert results["curious"].outcome is Outcome.INCONCLUSIVE
    assert "secret" in results["curious"].reason
    assert "hidden" not in results["curious"].reason
    assert results["honest"].outcome is Outcome.HOLDS


def test_a_rule_that_loads_what_is_not_its_own_is_not_judged_by(
    attacked: tuple[HostileRelay, RecordedKernel], repository: Repository
) -> None:
    relay, _ = attacked
    relay.ask_until(lambda report: judged_by(report, 2))
    file = rules_file(3)
    source = file.rules[0].source.replace('load("affiant"', 'load("fact:secret"')
    repository.publish(replace(file, rules=(BundledRule("example", source),)))
    report = relay.ask_until(
        lambda report: report.freshness is not None and "there is no module" in report.freshness.trouble
    )
    assert report.rules.version == 2
    assert [each.outcome for each in report.assertions] == [Outcome.HOLDS]
