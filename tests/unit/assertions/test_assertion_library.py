"""Every rule of the library, judged on what real guests looked like: healthy, and tampered with."""

from __future__ import annotations

import copy
import importlib.resources
import json
import time
import zlib
from pathlib import Path

import pytest

from affiant.assertions.authoring import problems, untested
from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.assertions.recording import (
    Recording,
    read_facts,
    recorded_facts_text,
    recordings_beside,
    replay,
)
from affiant.kernel.facts.registry import FACTS
from affiant.model.outcome import Mode, Outcome
from affiant.wire.fact_record import pack_facts

FOLDER = Path(str(importlib.resources.files("affiant.assertions").joinpath("library")))
SCRIPTS = sorted(FOLDER.glob("*.star"))
RECORDINGS = {
    f"{recording.script}.{recording.case}": recording
    for script in SCRIPTS
    for recording in recordings_beside(script)
}


@pytest.fixture(scope="module")
def engine():
    with Engine(packaged_library()) as engine:
        yield engine


@pytest.fixture(scope="module")
def other_engine():
    with Engine(packaged_library()) as engine:
        yield engine


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_leads_to_its_verdict(engine, name):
    result, differences = replay(engine, RECORDINGS[name])
    assert not differences
    assert result.looked_at > 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_rule_has_a_healthy_and_a_tampered_recording(path):
    assert not untested(path, recordings_beside(path))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_rule_has_a_problem(path):
    assert not problems(path, known_facts=FACTS)


def test_the_rules_that_the_first_chain_needs_are_there_and_enforced():
    modes = {script.name: script.mode for script in packaged_library().scripts}
    for name in ("kernel_known", "kernel_text_intact", "modules_listed", "syscall_table_intact"):
        assert modes[name] is Mode.ENFORCE


@pytest.mark.parametrize(
    "fact", sorted({fact for script in packaged_library().scripts for fact in script.facts})
)
def test_no_rule_holds_on_a_fact_that_says_nothing(engine, fact):
    """An empty fact, or one of an unknown shape, must not look healthy to any rule that reads it."""
    for empty in ({}, {"unavailable": "gone"}, {"listed": []}):
        for result in engine.judge({fact: empty}):
            assert result.outcome is Outcome.INCONCLUSIVE


NOBODY_NEED_BE_THERE = {
    "kernel_unpatched.patches",
    "keyboard_notifiers_owned.notifiers",
    "netfilter_hooks_owned.ipv4",
    "netfilter_hooks_owned.ipv6",
    "notifiers_owned.panic_notifier_list",
    "packet_handlers_owned.hot_taps",
    "packet_handlers_owned.net_taps",
    "packet_handlers_owned.taps",
}


@pytest.mark.parametrize("asked", sorted(packaged_library().queries))
def test_no_rule_holds_on_an_answer_that_says_nothing(engine, asked):
    """Without an answer, or with an empty one, no rule holds, unless nobody need be there."""
    empties = [{}, {"unavailable": "gone"}, {"value": None}, {"elements": [{}]}]
    if asked not in NOBODY_NEED_BE_THERE:
        empties.append({"elements": []})
    rule = asked.partition(".")[0]
    healthy = RECORDINGS[f"{rule}.healthy"].facts
    for empty in empties:
        (result,) = engine.judge(healthy | {asked: empty}, only=[rule])
        assert result.outcome is Outcome.INCONCLUSIVE, (empty, result)


@pytest.mark.parametrize(
    ("rule", "fact", "change", "reason"),
    [
        ("kernel_text_intact", "kernel_text", {"unread_bytes": 4096}, "4096 bytes could not be read"),
        ("kernel_text_intact", "kernel_text", {"compared_bytes": 0}, "nothing was looked at"),
        ("kernel_rodata_intact", "kernel_rodata", {"unread_bytes": 1}, "1 bytes could not be read"),
        ("syscall_table_intact", "syscall_table", {"tables": []}, "nothing was looked at"),
        (
            "syscall_table_intact",
            "syscall_table",
            {"tables": [{"name": "sys_call_table", "entries": 0, "unread": 451, "dispatch": "table"}]},
            "sys_call_table was not seen: 451 entries could not be read",
        ),
        ("write_protection_on", "cpus", {"cpus": []}, "nothing was looked at"),
        (
            "processors_as_built",
            "cpu_state",
            {"running": 2, "starting": [0, 1]},
            "each of them is being started",
        ),
        (
            "system_calls_as_built",
            "system_registers",
            {"running": 2, "starting": [0, 1]},
            "each of them is being started",
        ),
    ],
)
def test_a_partial_look_is_inconclusive(engine, rule, fact, change, reason):
    result, _ = replay(engine, _healthy(rule, fact, change))
    assert result.outcome is Outcome.INCONCLUSIVE
    assert reason in result.reason


@pytest.mark.parametrize(
    ("rule", "fact", "change", "subject"),
    [
        (
            "kernel_text_intact",
            "kernel_text",
            {"displaced": [{"address": "0xffffffff81000000", "physical": "0x1000", "pages": 3}]},
            "3 pages of kernel text at 0xffffffff81000000",
        ),
        ("kernel_text_intact", "kernel_text", {"displaced_left_out": 9}, "kernel text"),
        ("kernel_text_intact", "kernel_text", {"unexplained_left_out": 9}, "kernel text"),
        ("kernel_rodata_intact", "kernel_rodata", {"unexplained_left_out": 9}, "read-only data"),
        (
            "kernel_rodata_intact",
            "kernel_rodata",
            {"displaced": [{"address": "0xffffffff82000000", "physical": "0x1000", "pages": 1}]},
            "1 pages of read-only data at 0xffffffff82000000",
        ),
        ("syscall_table_intact", "syscall_table", {"wrong_left_out": 44}, "system call tables"),
        (
            "modules_listed",
            "modules",
            {"unowned": [{"address": "0xffffffffc0000000", "pages": 2}]},
            "2 executable pages at 0xffffffffc0000000",
        ),
        ("modules_listed", "modules", {"unowned_left_out": 1}, "modules"),
        ("modules_listed", "modules", {"unlisted_left_out": 1}, "modules"),
        (
            "page_tables_shared",
            "page_rights",
            {"tasks": 600, "cpu_tables": {"cpu 0": "", "cpu 1": "kernel"}},
            "page tables of cpu 0",
        ),
    ],
)
def test_each_way_of_being_wrong_is_a_violation(engine, rule, fact, change, subject):
    result, _ = replay(engine, _healthy(rule, fact, change))
    assert result.outcome is Outcome.VIOLATED
    assert [finding.subject for finding in result.findings] == [subject]


def test_a_processor_that_is_not_up_yet_is_no_violation(engine):
    recording = copy.deepcopy(RECORDINGS["write_protection_on.healthy"])
    recording.facts["cpus"]["cpus"][1] |= {"cr0": "0x60000010", "write_protect": False}
    result, differences = replay(engine, recording)
    assert (result.outcome, result.looked_at, differences) == (Outcome.HOLDS, 1, ())


@pytest.mark.parametrize(("settling", "outcome"), [(True, Outcome.HOLDS), (False, Outcome.INCONCLUSIVE)])
def test_a_program_whose_code_may_be_changing_just_now_has_some_seconds(engine, settling, outcome):
    recording = copy.deepcopy(RECORDINGS["bpf_programs_only_watch.writing_program"])
    for program in recording.facts["bpf_programs"]["programs"]:
        program |= {"effects": [], "calls_whole": False, "settling": settling}
    result, _ = replay(engine, recording)
    assert result.outcome is outcome


def test_a_kernel_without_modules_is_healthy(engine):
    change = {"listed": [], "executable_pages": 0}
    result, _ = replay(engine, _healthy("modules_listed", "modules", change))
    assert (result.outcome, result.looked_at) == (Outcome.HOLDS, 1)


def test_one_cycle_of_the_library_costs_little(engine):
    """A bound that a busy machine keeps; the figure itself is measured in the benchmarks."""
    facts: dict[str, object] = {}
    for recording in RECORDINGS.values():
        if recording.case == "healthy":
            facts |= recording.facts
    engine.judge(facts)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        engine.judge(facts)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.015


def _healthy(rule: str, fact: str, change: dict[str, object]) -> Recording:
    recording = copy.deepcopy(RECORDINGS[f"{rule}.healthy"])
    recording.facts[fact].update(change)
    return recording


def test_every_built_in_fact_has_a_rule():
    """What is looked at by nobody would be collected and kept for nothing."""
    read = {fact for script in packaged_library().scripts for fact in script.facts}
    assert read == set(FACTS)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_fact_set_replays_bit_for_bit(engine, other_engine, name, tmp_path):
    """Another worker, and another way of the facts onto disk and back: the same verdict in every letter."""
    recording = RECORDINGS[name]
    (before,) = engine.judge(recording.facts, only=[recording.script])
    again = tmp_path / "again.json"
    again.write_text(recorded_facts_text("again", dict(reversed(recording.facts.items()))))
    kept = json.loads(zlib.decompress(pack_facts(recording.facts)))
    for facts in (read_facts(again), kept):
        (after,) = other_engine.judge(facts, only=[recording.script])
        assert after == before
    assert recorded_facts_text("again", read_facts(again)) == again.read_text()


@pytest.mark.parametrize("gone", ["cred_user", "cred_charged", "cred_uid"])
def test_credentials_without_an_owner_are_a_finding_and_no_fault_of_the_rule(engine, gone):
    facts = copy.deepcopy(RECORDINGS["credentials_consistent.healthy"].facts)
    facts["credentials_consistent.tasks"]["elements"][0][gone] = None
    (result,) = engine.judge(facts, only=["credentials_consistent"])
    assert result.outcome is Outcome.VIOLATED
    assert len(result.findings) == 1
