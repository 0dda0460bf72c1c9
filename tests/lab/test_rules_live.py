"""Rules reach a running machine: published, judged by, withdrawn, and broken ones told of.

One guest through Secure Boot, one service that gives out a repository, and the real processes between:
launcher, sandboxed monitor, relay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from affiant.assertions.bundle import library_file
from affiant.assertions.bundle_file import BundledRule, BundleFile
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Outcome
from affiant.model.runtime_report import RuntimeReport
from affiant.vm.ready import wait_for_guest
from tests.lab.attested import (
    BOOT_SECONDS,
    Asked,
    AttestedGuest,
    attested_guest,
    request_for,
    running_service,
)
from tests.rules_repository import FLEET, Repository, make_repository

# What is promised is ten seconds; nothing here measures it on a machine that others share.
PATIENCE = 180  # seconds on a loaded host; how soon it is, the benchmarks measure

TASKS = '''"""An example that is so on every machine that runs."""
load("affiant", "bad", "ok")
NAME = "{name}"
VERSION = 1
SENTENCE = "Some task runs."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "audit"
FACTS = ["tasks"]
def check(facts):
    return [{verdict}(task["name"]{more}) for task in facts["tasks"]["listed"][:3]]
'''


def rule(name: str, *, holds: bool = True) -> BundledRule:
    verdict, more = ("ok", "") if holds else ("bad", ', "none", "a task"')
    return BundledRule(name, TASKS.format(name=name, verdict=verdict, more=more))


@dataclass
class Publisher:
    """Publishes the library with further rules, each time with the next version."""

    repository: Repository
    folder: Path
    version: int = 2

    def publish(self, *rules: BundledRule) -> int:
        self.version += 1
        together = sorted((*library_file().rules, *rules), key=lambda each: each.name)
        self.repository.publish(BundleFile(FLEET, self.version, tuple(together)))
        self.repository.write(self.folder)
        return self.version


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("rules")
    repository = make_repository(now=int(time.time()))
    publisher = Publisher(repository, folder)
    publisher.publish()
    return publisher


@pytest.fixture(scope="module")
def judged(home: Path, publisher: Publisher) -> Iterator[AttestedGuest]:
    """A guest whose monitor takes the rules that the service gives out, and already judges by them."""
    with running_service(home / "publishing", "--rules", str(publisher.folder)) as service:
        root = publisher.folder / "public" / "metadata" / "1.root.json"
        with attested_guest(service, request_for(service, "judged", rules_root=root, fleet=FLEET)) as guest:
            service.know_references()
            wait_for_guest(guest.state, timeout=BOOT_SECONDS)
            guest.ask_until(lambda asked: asked.level is SecurityLevel.ENFORCED_CODE)
            yield guest


def outcomes(runtime: RuntimeReport) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in runtime.assertions}


def asked_under(guest: AttestedGuest, version: int) -> Asked:
    """The first passport that the published version judged, confirmed as the newest."""

    def fits(asked: Asked) -> bool:
        runtime = asked.verified.runtime
        return (runtime.rules.name, runtime.rules.version) == (FLEET, version)

    return guest.ask_until(fits, seconds=PATIENCE)


def test_a_published_rule_judges_the_next_report(judged: AttestedGuest, publisher: Publisher) -> None:
    """Same session, same monitor, same level; the bundle is named with its digest."""
    before = asked_under(judged, publisher.publish())
    starts = judged.status()["monitor_starts"]
    started = time.monotonic()
    after = asked_under(judged, publisher.publish(rule("tasks_run")))
    print(f"published and judged by within {time.monotonic() - started:.1f} s")
    assert outcomes(before.verified.runtime).get("tasks_run") is None
    assert outcomes(after.verified.runtime)["tasks_run"] is Outcome.HOLDS
    assert after.session == before.session
    assert after.level is SecurityLevel.ENFORCED_CODE
    assert judged.status()["monitor_starts"] == starts
    digests = [name.split(".")[0] for name in publisher.repository.files if name.startswith("targets/")]
    assert f"targets/{after.verified.runtime.rules.digest.hex()}" in digests
    freshness = after.verified.runtime.freshness
    assert freshness is not None
    assert (freshness.expired, freshness.trouble) == (False, "")
    assert after.decide().accepted


def test_a_withdrawn_rule_disappears_and_what_it_saw_is_told(
    judged: AttestedGuest, publisher: Publisher
) -> None:
    """The rule finds fault with every machine: that is told at once, and still told after it is gone.

    As everything that is told, it is so in the launcher's copies of one moment.
    """
    seen = asked_under(judged, publisher.publish(rule("no_task_runs", holds=False)))
    assert outcomes(seen.verified.runtime)["no_task_runs"] is Outcome.VIOLATED
    assert "the guest is paused for" not in (judged.state.folder / "monitor.log").read_text()
    later = asked_under(judged, publisher.publish())
    assert "no_task_runs" not in outcomes(later.verified.runtime)
    assert "no_task_runs" in {each.assertion for each in later.verified.runtime.violations}
    assert later.session == seen.session


def test_a_broken_bundle_leaves_the_last_good_one_and_is_told(
    judged: AttestedGuest, publisher: Publisher
) -> None:
    """Signed by the publisher, and no monitor can compile it: the report says so and goes on."""
    good = publisher.publish(rule("tasks_run"))
    asked_under(judged, good)
    broken = rule("tasks_run")
    publisher.publish(replace(broken, source=broken.source.replace("return", "return return")))

    def troubled(asked: Asked) -> bool:
        freshness = asked.verified.runtime.freshness
        return freshness is not None and "tasks_run" in freshness.trouble

    asked = judged.ask_until(troubled, seconds=PATIENCE)
    assert asked.verified.runtime.rules.version == good
    assert outcomes(asked.verified.runtime)["tasks_run"] is Outcome.HOLDS
    assert "tasks_run" in "".join(remark.found for remark in asked.decide().remarks)
    mended = asked_under(judged, publisher.publish(rule("tasks_run")))
    assert mended.verified.runtime.freshness is not None
    assert mended.verified.runtime.freshness.trouble == ""
