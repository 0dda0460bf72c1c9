"""Sites where somebody registered to be called: told, and blamed where nobody vouches for him."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

import pytest

from affiant.kernel.comparison import compare
from affiant.kernel.facts.registry import collect
from affiant.kernel.site_content import content, ftrace_hooks, probes
from affiant.kernel.site_content.ftrace_hooks import FtraceHooks, FtraceOps
from affiant.kernel.transient.code_changes import is_changing_code
from affiant.kernel.walks.lists import Words, list_entries
from tests.unit.kernel.site_content.site_looks import (
    FOREIGN,
    NOP5,
    RETURN,
    Vouching,
    assert_found,
    content_with,
    look_with,
    passing,
    probe,
    register,
    trace,
    trampoline_of,
    wrong,
)
from tests.unit.kernel.site_world import (
    CALL_KEY,
    FTRACE_CALLER,
    FTRACE_STUB,
    JUMP_LABEL_MUTEX,
    KPROBES,
    LIST_END,
    OPS_LIST,
    OTHER,
    PLACES,
    PROBED,
    REMOVED_OPS,
    SLIDE,
    STATIC_CALL_MUTEX,
    TEXT_MUTEX,
    TRACER,
    TRAMPOLINES,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import MODULE_AREA


def test_functions_that_are_not_traced_hold_nothing(world: SiteWorld) -> None:
    world.write(PLACES["traced"], NOP5)
    world.write(PLACES["traced_2"], NOP5)
    assert wrong(world) == []


def test_a_tracer_of_the_kernel_is_told_and_not_blamed(world: SiteWorld) -> None:
    target, _ = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    seen = world.look()
    assert (seen.unexplained, seen.passing) == ((), ())
    assert [(hook.via, hook.handler, hook.count) for hook in seen.hooks] == [("ftrace", TRACER + SLIDE, 1)]


def test_a_tracer_outside_of_the_kernel_is_found_and_named(world: SiteWorld) -> None:
    hooker = MODULE_AREA + 0x40
    target, _ = trampoline_of(world, hooker)
    trace(world, target)
    fact = collect(world.seen, ["kernel_text"])["kernel_text"].to_json()
    (found,) = fact["unexplained"]
    assert (found["site"], found["owner"]) == ("ftrace", "module first")
    assert "outside of the kernel image" in found["reason"]


def test_a_tracer_of_a_module_whose_code_is_known_is_told_and_not_blamed(world: SiteWorld) -> None:
    tracer = MODULE_AREA + 0x80
    target, _ = trampoline_of(world, tracer)
    trace(world, target)
    assert wrong(world) == [("ftrace", PLACES["traced"])]
    seen = look_with(world, Vouching(functions={tracer}))
    assert seen.unexplained == ()
    assert [(hook.via, hook.handler) for hook in seen.hooks] == [("ftrace", tracer)]


def test_a_probe_of_a_module_whose_code_is_known_is_told_and_not_blamed(world: SiteWorld) -> None:
    probe(world, PROBED + 1 + SLIDE, MODULE_AREA + 0x80, saved=0x48)
    world.write(PROBED + 1, b"\xcc")
    seen = look_with(world, Vouching(functions={MODULE_AREA + 0x80}))
    assert seen.unexplained == ()
    assert [(hook.via, hook.handler) for hook in seen.hooks] == [("kprobe", MODULE_AREA + 0x80)]


def test_a_trampoline_of_bpf_is_told_and_not_blamed(world: SiteWorld) -> None:
    trace(world, FOREIGN)
    assert wrong(world) == [("ftrace", PLACES["traced"])]
    assert world.look().hooks == ()
    judge = content_with(world, Vouching(generated={FOREIGN}))
    assert judge.wrapping() == frozenset()
    seen = look_with(world, judge)
    assert seen.unexplained == ()
    assert judge.wrapping() == {FOREIGN}
    (hook,) = seen.hooks
    assert (hook.via, hook.address, hook.handler) == ("bpf", PLACES["traced"] + SLIDE, FOREIGN)
    assert look_with(world, Vouching(functions={FOREIGN})).unexplained


def test_a_key_may_hold_a_function_of_a_module_whose_code_is_known(world: SiteWorld) -> None:
    world.write(CALL_KEY, FOREIGN.to_bytes(8, "little"))
    for name, opcode in (("static_call", 0xE8), ("static_tail", 0xE9), ("tramp_pad", 0xE9)):
        world.write(PLACES[name], near(opcode, PLACES[name] + SLIDE, FOREIGN))
    assert look_with(world, Vouching(functions={FOREIGN})).unexplained == ()
    assert look_with(world, Vouching(generated={FOREIGN})).unexplained, "the key is no dispatcher's"


def test_a_traced_function_that_calls_another_function_is_found(world: SiteWorld) -> None:
    trace(world, OTHER + SLIDE)
    assert_found(world, "ftrace", "traced")


def test_a_trampoline_that_nobody_registered_is_found(world: SiteWorld) -> None:
    target, ops = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    register(world, ops, TRACER + SLIDE, trampoline=FOREIGN + 0x100)
    assert_found(world, "ftrace", "traced")


def test_a_tracer_that_is_being_unregistered_is_called_until_every_site_is_changed(world: SiteWorld) -> None:
    target, ops = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    world.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
    assert wrong(world) == [("ftrace", PLACES["traced"])]
    world.write(REMOVED_OPS, ops.to_bytes(8, "little"))
    seen = world.look()
    assert (seen.unexplained, seen.passing) == ((), ())
    world.guest.poke(world.guest.resolve(ops), (MODULE_AREA + 0x40).to_bytes(8, "little"))
    assert_found(world, "ftrace", "traced")


def test_a_tracer_on_no_list_any_more_passes_and_does_not_last(world: SiteWorld) -> None:
    """Its trampoline is still on the kernel's list of those, and in order."""
    target, ops = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    world.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
    world.guest.link(TRAMPOLINES + SLIDE, ops + 40)
    seen = world.look()
    assert seen.unexplained == ()
    assert [run.reason for run in seen.passing] == ["calls a trampoline that its ftrace_ops has left"]
    facts = [collect(world.seen, ["kernel_text"], now=float(now)) for now in range(8)]
    found = [fact["kernel_text"].to_json()["unexplained"] for fact in facts]
    assert (found[0], [each["site"] for each in found[-1]]) == ([], ["ftrace"])


def test_what_is_half_done_may_last_while_the_kernel_changes_its_code(world: SiteWorld) -> None:
    """Whoever changes code has to wait for others that do."""
    target, ops = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    world.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
    world.guest.link(TRAMPOLINES + SLIDE, ops + 40)
    world.write(TEXT_MUTEX, (ops | 1).to_bytes(8, "little"))
    facts = [collect(world.seen, ["kernel_text"], now=float(now)) for now in range(70)]
    found = [bool(fact["kernel_text"].to_json()["unexplained"]) for fact in facts]
    assert found.index(True) == 64
    for lock in (TEXT_MUTEX, STATIC_CALL_MUTEX, JUMP_LABEL_MUTEX):
        for owner, changing in ((1, True), (0, False)):  # nobody has it, and somebody waits; or nobody
            world.write(lock, owner.to_bytes(8, "little"))
            assert is_changing_code(world.seen.program) is changing


def left(world: SiteWorld, site: str, *, half_done: bool) -> None:
    """Let a function call the trampoline of a tracer that is on no list any more, or nothing."""
    call = near(0xE8, PLACES[site] + SLIDE, FOREIGN)
    world.write(PLACES[site], call if half_done else NOP5)


def half_done_world(world: SiteWorld) -> None:
    _, ops = trampoline_of(world, TRACER + SLIDE)
    world.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
    world.guest.link(TRAMPOLINES + SLIDE, ops + 40)


def test_a_site_that_stays_half_done_is_not_hidden_by_others_before_it(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those may be as many as are told, and be others in each look."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 1)
    half_done_world(world)
    left(world, "traced_2", half_done=True)
    for now in range(6):
        left(world, "traced", half_done=now % 2 == 0)
        fact = collect(world.seen, ["kernel_text"], now=float(now))["kernel_text"].to_json()
    assert [run["address"] for run in fact["unexplained"]] == [hex(PLACES["traced_2"] + SLIDE)]


def test_a_site_that_cannot_be_judged_now_and_then_stays_half_done(world: SiteWorld) -> None:
    half_done_world(world)
    left(world, "traced", half_done=True)
    found = []
    for now in range(14):
        world.write(OPS_LIST, (0x1000 if now % 2 else LIST_END + SLIDE).to_bytes(8, "little"))
        fact = collect(world.seen, ["kernel_text"], now=float(now))["kernel_text"].to_json()
        assert bool(fact["unjudged"]) == bool(now % 2)
        found.append(bool(fact["unexplained"]))
    assert found.index(True) == 10


@pytest.mark.parametrize("function", [MODULE_AREA + 0x40, OTHER + SLIDE + 1])
def test_a_trampoline_of_a_stranger_on_no_list_is_found(world: SiteWorld, function: int) -> None:
    target, ops = trampoline_of(world, function)
    trace(world, target)
    world.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
    world.guest.link(TRAMPOLINES + SLIDE, ops + 40)
    assert_found(world, "ftrace", "traced")


def test_a_trampoline_that_calls_another_than_its_ops_names_is_found(world: SiteWorld) -> None:
    target, _ = trampoline_of(world, MODULE_AREA + 0x40, ops_function=TRACER + SLIDE)
    trace(world, target)
    assert_found(world, "ftrace", "traced")


@pytest.mark.parametrize("offset", [0, 3, 8, 17, 20, 25])
def test_a_trampoline_that_is_no_copy_of_the_kernels_code_is_found(world: SiteWorld, offset: int) -> None:
    target, _ = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    assert wrong(world) == []
    physical = world.seen.kernel_space.translate(FOREIGN + offset).physical
    world.guest.poke(physical, bytes([world.guest.ram[physical] ^ 0x11]))
    assert_found(world, "ftrace", "traced")


def test_a_list_of_tracers_without_end_leaves_tracing_unjudged(world: SiteWorld) -> None:
    target, ops = trampoline_of(world, TRACER + SLIDE)
    trace(world, target)
    world.guest.word(world.guest.resolve(ops) + 8, ops)
    assert [text.partition(":")[0] for text in world.look().unjudged] == ["ftrace"]


def test_the_entry_code_may_call_registered_tracers_alone(world: SiteWorld) -> None:
    place = FTRACE_CALLER + 11
    trampoline_of(world, TRACER + SLIDE)
    world.write(place, near(0xE8, place, TRACER))
    assert wrong(world) == []
    world.write(place, near(0xE8, place + SLIDE, FOREIGN))
    assert wrong(world) == [("ftrace_caller", place)]
    world.write(place, near(0xE8, place, FTRACE_STUB))
    assert wrong(world) == []


def test_a_registered_probe_explains_its_breakpoint(world: SiteWorld) -> None:
    world.write(PROBED + 1, b"\xcc")
    assert wrong(world) == [("", PROBED + 1)]
    probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=0x48)
    seen = world.look()
    assert seen.unexplained == ()
    assert [(hook.via, hook.address) for hook in seen.hooks] == [("kprobe", PROBED + 1 + SLIDE)]


def test_a_probe_explains_a_breakpoint_at_a_patch_site(world: SiteWorld) -> None:
    for name in ("return_1", "return_2", "return_3"):
        world.write(PLACES[name], RETURN)
    probe(world, PLACES["return_2"] + SLIDE, TRACER + SLIDE, saved=0xC3)
    world.look()
    world.write(PLACES["return_2"], b"\xcc")
    assert (wrong(world), passing(world)) == ([], [])


def test_a_probe_explains_no_more_than_its_byte(world: SiteWorld) -> None:
    probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=0x48)
    world.write(PROBED + 1, b"\xcc\x90")
    assert wrong(world) == [("", PROBED + 2)]


@pytest.mark.parametrize("saved", [0x90, 0xCC])
def test_a_probe_that_saved_another_byte_explains_nothing(world: SiteWorld, saved: int) -> None:
    probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=saved)
    world.write(PROBED + 1, b"\xcc")
    assert wrong(world) == [("", PROBED + 1)]


def test_a_probe_whose_handler_is_foreign_is_found_and_named(world: SiteWorld) -> None:
    probe(world, PROBED + 1 + SLIDE, MODULE_AREA + 0x80, saved=0x48)
    world.write(PROBED + 1, b"\xcc")
    fact = collect(world.seen, ["kernel_text"])["kernel_text"].to_json()
    (found,) = fact["unexplained"]
    assert (found["symbol"], found["site"], found["owner"]) == ("probed+0x1", "kprobe", "module first")


def test_an_optimised_jump_without_a_slot_is_found(world: SiteWorld) -> None:
    probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=0x48)
    world.write(PROBED + 1, near(0xE9, PROBED + 1 + SLIDE, FOREIGN))
    assert wrong(world) == [("", PROBED + 1)]


def test_a_table_of_probes_in_a_circle_is_unjudged_and_explains_nothing(world: SiteWorld) -> None:
    structure = probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=0x48)
    world.guest.word(world.guest.resolve(structure), structure)
    world.write(PROBED + 1, b"\xcc")
    seen = world.look()
    assert [text.partition(":")[0] for text in seen.unjudged] == ["kprobes"]
    assert [run.address for run in seen.unexplained] == [PROBED + 1 + SLIDE]


def test_probes_of_one_place_are_counted_one_by_one(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain through all of the guest's memory has an end, though no two of its probes differ in place."""
    monkeypatch.setattr(probes, "_MOST_PROBES", 8)
    following = 0
    for count in range(1, 10):
        structure = probe(world, OTHER + SLIDE, TRACER + SLIDE, saved=0x90)
        world.guest.word(world.guest.resolve(structure), following)
        following = structure
        told = world.look().unjudged
        assert told == (("kprobes: there are more than 8 kprobes",) if count > 8 else ())


def test_who_keeps_trampolines_is_read_once_however_many_places_are_called(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each function of the kernel may be made to call a place of its own."""
    reads: list[str] = []

    def counted(self: FtraceHooks) -> None:
        reads.append("refreshed")
        refresh(self)

    def walked(program: Words, head: int, *, offset: int, maximum: int) -> Iterator[int]:
        reads.append("walked")
        return list_entries(program, head, offset=offset, maximum=maximum)

    refresh = FtraceHooks.refresh
    monkeypatch.setattr(FtraceHooks, "refresh", counted)
    monkeypatch.setattr(ftrace_hooks, "list_entries", walked)
    for name, target in (("traced", FOREIGN), ("traced_2", FOREIGN + 0x1000)):
        world.write(PLACES[name], near(0xE8, PLACES[name] + SLIDE, target))
    assert wrong(world) == [("ftrace", PLACES["traced"]), ("ftrace", PLACES["traced_2"])]
    assert reads.count("walked") == reads.count("refreshed") > 0


@dataclass
class Counting(Vouching):
    """Counts how often it is asked."""

    asked: list[int] = field(default_factory=list)

    def functions_among(self, addresses: Set[int]) -> frozenset[int]:
        self.asked.append(len(addresses))
        return super().functions_among(addresses)

    def generated_among(self, addresses: Set[int]) -> frozenset[int]:
        self.asked.append(len(addresses))
        return super().generated_among(addresses)


@pytest.mark.parametrize("readings", [0, 3])
def test_all_places_that_are_called_are_asked_about_at_once(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch, readings: int
) -> None:
    """To answer for one takes the list of all modules, or of all of BPF's code."""
    monkeypatch.setattr(content, "_READINGS", readings)
    outside = Counting()
    for name, target in (("traced", FOREIGN), ("traced_2", FOREIGN + 0x1000)):
        world.write(PLACES[name], near(0xE8, PLACES[name] + SLIDE, target))
    seen = look_with(world, outside)
    assert [run.address - SLIDE for run in seen.unexplained] == [PLACES["traced"], PLACES["traced_2"]]
    assert outside.asked.count(2) == readings + 1
    assert outside.asked.count(1) == 0


def test_handlers_of_all_probes_are_asked_about_at_once(world: SiteWorld) -> None:
    outside = Counting()
    for number in range(2):
        structure = probe(world, PROBED + SLIDE + number, MODULE_AREA + number, saved=0x90)
        world.write(KPROBES + 8 * (10 + number), structure.to_bytes(8, "little"))
    world.write(KPROBES + 8 * 5, bytes(8))
    look_with(world, outside)
    assert 2 in outside.asked and 1 not in outside.asked


def test_fifty_thousand_places_and_thousands_of_tracers_take_no_time(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place is looked up among those who registered, and not compared with each of them."""
    hooks = world.seen.text_content.hooks
    many = [FtraceOps(number, 0, FOREIGN - 64 * number) for number in range(4096)]
    structures = [world.heap(bytes(56)) for _ in range(2)]
    register(world, structures[0], TRACER + SLIDE)
    addresses = iter(many)
    monkeypatch.setattr(FtraceHooks, "_ops_at", lambda _self, _address: next(addresses))
    monkeypatch.setattr(ftrace_hooks, "list_entries", lambda *_args, **_kwargs: range(4095))
    monkeypatch.setattr(world.seen.program, "find", Names(world.seen.program.find))
    hooks.refresh()
    began = time.thread_time()
    for target in range(50_000):
        assert hooks.objection_to(FOREIGN + 64 * target + 8)[0]
    assert time.thread_time() - began < 2.0


@dataclass
class Names:
    """Finds symbols, and one for the list of those who keep trampolines."""

    find: Callable[[str], int | None]

    def __call__(self, name: str) -> int | None:
        return 8 if name == "ftrace_ops_trampoline_list" else self.find(name)
