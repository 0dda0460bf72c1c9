"""BPF programs of live kernels: told with what they call, where they are entered, and who holds them."""

from __future__ import annotations

from typing import Any

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.facts.registry import collect
from affiant.model.outcome import Outcome
from lab.bpf import loaded_programs, passing_programs
from lab.live_guest import LiveGuest
from lab.looking import SkippingClock, judge_twice
from lab.references import reference_of

FACTS = ("bpf_programs", "trace_callbacks")
LOOKS = 8  # beyond what is believed for a while

ENTERED = {
    "lab_filter": set(),
    "lab_chained": {("tail call", "place 0")},
    "lab_xdp": {("xdp link", "link"), ("XDP", "lo"), ("dispatcher", "bpf_dispatcher_xdp")},
    "lab_traced": {("tracing link", "link"), ("fentry", "vfs_open"), ("trampoline", "bpf_trampoline_")},
    "lab_raw": {("raw_tracepoint link", "link"), ("raw tracepoint", "module_load")},
    "lab_event": {("trace event", "module_load"), ("perf event", "of CPU 0")},
    "lab_perf": {("perf event", "of CPU 0")},
    "lab_task": {("perf event", "of task ")},
    "lab_cgroup": {("cgroup link", "link"), ("cgroup inet_egress", "/")},
}
IF_KNOWN = {
    "lab_tcx": ("tcx?", {("tcx link", "link"), ("traffic control", "ingress of lo")}),
    "lab_netfilter": ("netfilter?", {("netfilter link", "link"), ("netfilter", "ipv4 hook point 1")}),
}


@pytest.fixture(scope="module")
def clock() -> SkippingClock:
    return SkippingClock()


def look(live: LiveGuest, clock: SkippingClock) -> dict[str, dict[str, Any]]:
    """Look until what passes has passed, and return what lasted."""
    for _ in range(LOOKS):
        facts = collect(live.refreshed(), FACTS, now=clock.now())
        clock.rest(1.0)
    return {name: fact.to_json() for name, fact in facts.items()}


def test_programs_are_told_with_what_they_call_and_where_they_are_entered(
    supported: LiveGuest, clock: SkippingClock
) -> None:
    with loaded_programs(supported.lab, reference_of(supported.lab.kernel), writer=True) as answers:
        known = {name: uses for name, (answer, uses) in IF_KNOWN.items() if answers[answer] >= 0}
        assert min(result for name, result in answers.items() if not name.endswith("?")) >= 0, answers
        fact = look(supported, clock)["bpf_programs"]
        assert (fact["unread"], fact["unlisted"], fact["settling"]) == ({}, [], [])
        programs = {program["name"]: program for program in fact["programs"]}
        for name, wanted in (ENTERED | known).items():
            uses = programs[name]["uses"]
            for what, where in wanted:
                assert any(use["what"] == what and where in use["where"] for use in uses), (name, what, uses)
            held = [use["where"] for use in uses if "descriptor" in use["what"]]
            assert any("(bpf_load)" in where for where in held), (name, uses)
            assert programs[name]["effects"] == [], name
        assert "bpf_ktime_get_ns" in programs["lab_filter"]["calls"]
        assert programs["lab_filter"]["functions"] == 2
        assert programs["lab_traced"]["attach_to"] == "vfs_open"
        writer = programs["lab_writer"]
        assert (writer["calls"], writer["effects"], writer["uid"]) == (
            *(["bpf_probe_write_user"], ["writes user memory"], 0),
        )
        assert all(program["calls_whole"] and program["uses_left_out"] == 0 for program in programs.values())


def test_callbacks_are_the_kernel_s_and_follow_what_is_attached(
    supported: LiveGuest, clock: SkippingClock
) -> None:
    before = look(supported, clock)["trace_callbacks"]
    with loaded_programs(supported.lab, reference_of(supported.lab.kernel)):
        fact = look(supported, clock)["trace_callbacks"]
        assert fact["events"] == before["events"] + 3
        called = {(each["via"], each["where"], each["symbol"]) for each in fact["callbacks"]}
        assert ("tracepoint", "module_load", "__bpf_trace_module_load") in called
        assert {each["kind"] for each in fact["callbacks"]} == {"function"}
        assert fact["changed"] == []
    after = look(supported, clock)["trace_callbacks"]
    assert (after["events"], after["callbacks"]) == (before["events"], before["callbacks"])


def test_every_rule_holds_while_programs_come_and_go(supported: LiveGuest, clock: SkippingClock) -> None:
    """Programs that only watch are no fault, wherever they are attached."""
    with Engine(packaged_library()) as engine:
        for _ in range(2):
            with loaded_programs(supported.lab, reference_of(supported.lab.kernel)):
                passed = passing_programs(supported.lab)
                assert min(passed[name] for name in ("filter", "chained", "classic", "loaded")) >= 0, passed
                for result in judge_twice(supported, engine, clock=clock):
                    assert result.outcome is Outcome.HOLDS, (result.name, result.reason, result.findings)
            for result in judge_twice(supported, engine, clock=clock):
                assert result.outcome is Outcome.HOLDS, (result.name, result.reason, result.findings)
