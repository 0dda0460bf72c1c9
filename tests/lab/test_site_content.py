"""Patch sites of live kernels: nothing to object to in healthy ones, however they patch themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from affiant.kernel.facts.registry import collect
from lab.guests import GuestPlan, LabGuest, load_modules, start_guest, unload_modules
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of
from lab.tamper.technique import SUITES

TRACING = "/sys/kernel/tracing"


@pytest.fixture(scope="module", params=SUITES)
def booted(request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    # QEMU's emulation lets another processor run into a breakpoint that the kernel has taken away already,
    # so that kernels which patch themselves all the time die of it. One processor has no other.
    plan = GuestPlan(suite=request.param, firmware=False, tpm=False, append="maxcpus=1")
    with start_guest(plan) as guest:
        yield guest


@pytest.fixture(scope="module")
def live(booted: LabGuest) -> Iterator[LiveGuest]:
    with open_live_guest(booted, reference_of(booted.kernel)) as live:
        yield live


def look(live: LiveGuest) -> dict[str, Any]:
    return collect(live.refreshed(), ["kernel_text"])["kernel_text"].to_json()


def assert_clean(text: dict[str, Any]) -> None:
    assert text["unexplained"] == text["unchecked_classes"] == text["unjudged"] == []
    assert text["compared_bytes"] > 1 << 20


def test_a_healthy_kernel_holds_what_it_may_at_every_site(live: LiveGuest) -> None:
    text = look(live)
    assert_clean(text)
    assert text["hooks"] == []
    for name in ("alternative", "retpoline", "return", "smp_lock", "jump_label", "static_call", "ftrace"):
        assert text["sites"][name] > 1000, name


def test_tracing_probes_keys_and_modules_are_told_and_not_blamed(booted: LabGuest, live: LiveGuest) -> None:
    run = booted.console.run
    run(f"cd {TRACING}; echo 'tcp_* vfs_*' > set_ftrace_filter; echo function > current_tracer", timeout=200)
    text = look(live)
    assert_clean(text)
    assert {hook["via"] for hook in text["hooks"]} == {"ftrace"}
    run(f"cd {TRACING}; echo nop > current_tracer; echo > set_ftrace_filter", timeout=200)
    run(f"cd {TRACING}; echo 'p:one vfs_open+9' > kprobe_events; echo 'r:two vfs_read' >> kprobe_events")
    run(f"cd {TRACING}; for f in events/kprobes/*/enable; do echo 1 > $f; done; ls / > /dev/null")
    text = look(live)
    assert_clean(text)
    assert "kprobe" in {hook["via"] for hook in text["hooks"]}
    assert any(hook["symbol"].startswith("vfs_open") for hook in text["hooks"])
    run(f"cd {TRACING}; for f in events/kprobes/*/enable; do echo 0 > $f; done; echo > kprobe_events")
    run(f"cd {TRACING}; echo 1 > events/sched/enable; echo 1 > /proc/sys/kernel/sched_schedstats")
    assert_clean(look(live))
    run(f"cd {TRACING}; echo 0 > events/sched/enable; echo 0 > /proc/sys/kernel/sched_schedstats")
    load_modules(booted)
    assert_clean(look(live))
    unload_modules(booted)
    assert_clean(look(live))


def test_looks_while_the_kernel_patches_itself_are_clean(booted: LabGuest, live: LiveGuest) -> None:
    booted.console.run(
        "(while [ ! -e /tmp/stop ]; do for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; "
        f"echo $v > {TRACING}/events/sched/enable; done; done) > /dev/null 2>&1 & true"
    )
    try:
        for _ in range(60):
            assert_clean(look(live))
    finally:
        booted.console.run("touch /tmp/stop; wait; rm /tmp/stop", timeout=200)
