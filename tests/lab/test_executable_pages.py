"""Executable pages of live kernels that use BPF, probes and tracing: all of it told, none of it blamed."""

from __future__ import annotations

from typing import Any

import pytest
from iced_x86 import Decoder

from affiant.kernel.facts.registry import collect
from affiant.kernel.page_content.bpf_lists import read_bpf_lists
from lab.bpf import loaded_programs, replaced_operations
from lab.live_guest import LiveGuest
from lab.looking import SkippingClock
from lab.references import reference_of
from lab.tamper.traced_entry import behind_entry

TRACING = "/sys/kernel/tracing"
LOOKS, CLOSE_LOOKS = 12, 4  # beyond what is believed for a while, and a minute for a grace period
NEEDED = ("filter", "chained", "tail call", "xdp", "traced", "classic")


@pytest.fixture(scope="module")
def clock() -> SkippingClock:
    return SkippingClock()


def look(live: LiveGuest, clock: SkippingClock) -> dict[str, dict[str, Any]]:
    """Look until what passes has passed, and return what lasted."""
    for number in range(LOOKS):
        facts = collect(live.refreshed(), ["executable_pages", "kernel_text"], now=clock.now())
        clock.rest(1.0 if number < CLOSE_LOOKS else 10.0)
    return {name: fact.to_json() for name, fact in facts.items()}


def assert_clean(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["executable_pages"]["findings"] == []
    assert facts["executable_pages"]["unread"] == {}
    assert facts["kernel_text"]["unexplained"] == facts["kernel_text"]["unjudged"] == []


def test_programs_trampolines_and_dispatchers_are_told_and_not_blamed(
    supported: LiveGuest, clock: SkippingClock
) -> None:
    with loaded_programs(supported.lab, reference_of(supported.lab.kernel)) as answers:
        assert min(result for name, result in answers.items() if name in NEEDED) >= 0, answers
        facts = look(supported, clock)
        assert_clean(facts)
        bpf = facts["executable_pages"]["owners"]["bpf"]
        # The kernel's own filter, four programs and more, one of them in two functions, a dispatcher, a
        # trampoline, and the socket's filter.
        assert bpf["pieces"] >= 9
        assert bpf["trust"] == ["exception tables"]
        hooks = {hook["via"]: hook for hook in facts["kernel_text"]["hooks"]}
        assert hooks["bpf"]["symbol"].startswith("vfs_open")
        assert hooks["bpf"]["owner"].startswith("bpf bpf_trampoline_")
    assert_clean(look(supported, clock))


def test_operations_of_the_kernel_that_programs_replace_are_told_and_not_blamed(
    supported: LiveGuest, clock: SkippingClock
) -> None:
    """Their functions lie one behind the other; Linux 6.1 keeps no symbols of them."""
    if "ksyms" not in _members(supported, "struct bpf_struct_ops_map"):
        pytest.skip("this kernel tells nobody whose code replaces its operations")
    with replaced_operations(supported.lab, supported.guest.program) as answers:
        assert min(answers.values()) >= 0, answers
        facts = look(supported, clock)
        assert_clean(facts)
        programs = collect(supported.refreshed(), ["bpf_programs"], now=clock.now())["bpf_programs"].to_json()
        uses = {each["name"]: {use["what"] for use in each["uses"]} for each in programs["programs"]}
        for name in ("lab_first", "lab_second", "lab_third"):
            assert "trampoline" in uses[name], uses
    assert_clean(look(supported, clock))


def _members(live: LiveGuest, kind: str) -> set[str | None]:
    return {member.name for member in live.guest.program.drgn.type(kind).members}


@pytest.mark.parametrize(
    ("code", "reason"),
    [("0f30", "does not use"), ("0f22c0", "does not use"), ("e800000080", "leads to")],
    ids=["a privileged instruction", "a control register", "a call elsewhere"],
)
def test_a_changed_program_is_found(
    supported: LiveGuest, clock: SkippingClock, code: str, reason: str
) -> None:
    with loaded_programs(supported.lab, reference_of(supported.lab.kernel)):
        # The one whose code is never run: nothing was sent to the socket.
        programs = read_bpf_lists(supported.guest.program).programs.values()
        program = max(programs, key=lambda program: program.size)
        code_of_now = supported.guest.program.read(program.start, program.size)
        place = next(each.ip for each in Decoder(64, code_of_now, ip=program.start) if each.is_call_near)
        with supported.changed(place, bytes.fromhex(code)):
            found = look(supported, clock)["executable_pages"]["findings"]
        assert any(reason in each["reason"] for each in found), found
        assert all(program.start <= int(each["address"], 16) < program.start + program.size for each in found)
    assert_clean(look(supported, clock))


def test_probes_and_tracing_are_told_and_not_blamed(supported: LiveGuest, clock: SkippingClock) -> None:
    run = supported.lab.console.run
    probes = f"p:one kernel_kexec+{behind_entry(supported, 'kernel_kexec')}", "r:two kernel_kexec"
    try:
        for probe in probes:
            run(f"cd {TRACING}; echo '{probe}' >> kprobe_events")
        run(f"cd {TRACING}; for f in events/kprobes/*/enable; do echo 1 > $f; done; sleep 1")
        run(
            f"cd {TRACING}; echo kernel_kexec > set_ftrace_filter; echo function > current_tracer",
            timeout=200,
        )
        facts = look(supported, clock)
        assert_clean(facts)
        owners = facts["executable_pages"]["owners"]
        assert owners["kprobe"]["pieces"] >= 1
        assert owners["ftrace"]["pieces"] >= 1
    finally:
        run(f"cd {TRACING}; echo nop > current_tracer; echo > set_ftrace_filter", timeout=200)
        run(f"cd {TRACING}; for f in events/kprobes/*/enable; do echo 0 > $f; done; echo > kprobe_events")
    assert_clean(look(supported, clock))
