"""Tracepoints and perf events: what they call, and whose it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.bpf_programs.tracing import survey_tracepoints
from affiant.kernel.facts import trace_callbacks as trace_callbacks_fact
from affiant.kernel.facts.as_json import bounded
from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.modules.loaded import still_unformed
from affiant.kernel.page_content.bpf_lists import BpfLists
from affiant.kernel.walks.snapshot import Budget, Snapshot
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    DATA,
    LINK,
    MODULE_AREA,
    RODATA,
    SLIDE,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

TABLE = RODATA + 0x2800
FIRST, SECOND, RAW = DATA + 0x4000, DATA + 0x4040, DATA + 0x5000
ITERATOR, ENTERS = LINK + 0xC000, LINK + 0xD000
KEY, CONTEXT = DATA + 0x6000, DATA + 0x6100
SYMBOLS = {
    "__start___tracepoints_ptrs": TABLE,
    "__stop___tracepoints_ptrs": TABLE + 8,
    "__tracepoint_first": FIRST,
    "__tracepoint_second": SECOND,
    "__start__bpf_raw_tp": RAW,
    "__stop__bpf_raw_tp": RAW + 64,
    "__traceiter_first": ITERATOR,
    "__bpf_trace_first": ENTERS,
    "perf_sched_events": KEY,
    "perf_cpu_context": CONTEXT,
    "__cpu_possible_mask": DATA + 0x6200,
}


def types(btf: BtfBuilder) -> None:
    long, int_, pointer = btf.integer("trace_long", 8), btf.integer("trace_int", 4), btf.pointer(0)
    link = btf.struct("trace_list", 16, ("next", pointer, 0), ("prev", pointer, 8))
    btf.struct("tracepoint", 32, ("name", pointer, 0), ("iterator", pointer, 8), ("funcs", pointer, 16))
    btf.struct("tracepoint_func", 24, ("func", pointer, 0), ("data", pointer, 8), ("prio", int_, 16))
    btf.struct("bpf_raw_event_map", 16, ("tp", pointer, 0), ("bpf_func", pointer, 8))
    btf.struct("static_key", 8, ("enabled", int_, 0))
    btf.struct("cpumask", 8, ("bits", btf.array(long, 1), 0))
    context = btf.struct("perf_event_context", 16, ("event_list", link, 0))
    btf.struct("perf_cpu_context", 16, ("ctx", context, 0))
    handler = ("overflow_handler", pointer, 16), ("prog", pointer, 24), ("tp_event", pointer, 32)
    btf.struct("perf_event", 40, ("event_entry", link, 0), *handler)


class World:
    """Two tracepoints, of which the first has functions, and an event of the one processor."""

    def __init__(self) -> None:
        distances = [place - TABLE - 4 * index for index, place in enumerate((FIRST, SECOND))]
        stored = {
            TABLE: b"".join(distance.to_bytes(4, "little", signed=True) for distance in distances),
            FIRST + 8: ITERATOR.to_bytes(8, "little"),
            RAW: FIRST.to_bytes(8, "little") + ENTERS.to_bytes(8, "little"),
        }
        reference = make_reference(types=kernel_types(types), further_symbols=SYMBOLS, stored=stored)
        self.guest = guest = SyntheticGuest(reference=reference)
        for address in (FIRST + 8, RAW, RAW + 8):
            linked = int.from_bytes(stored.get(address, stored[RAW][8:])[:8], "little")
            self.word(address + SLIDE, linked + SLIDE)
        # Its functions lie in the heap, one behind the other, and end with none.
        _, self.functions = guest.allocate(24 * 4)
        self.word(FIRST + SLIDE + 16, self.functions)
        self.word(self.functions, guest.running("victim"))
        self.word(self.functions + 24, ENTERS + SLIDE)
        self.word(DATA + 0x6200 + SLIDE, 1)
        head = CONTEXT + SLIDE
        guest.poke(guest.resolve(head), 2 * head.to_bytes(8, "little"))
        _, self.event = guest.allocate(40)
        self.word(self.event + 16, guest.running("victim"))
        guest.link(head, self.event)

    def word(self, address: int, value: int) -> None:
        self.guest.word(self.guest.resolve(address), value)

    def look(self, seen: Guest | None = None, *, now: float = 0.0) -> Any:
        return collect(seen or self.guest.open(), ["trace_callbacks"], now=now)["trace_callbacks"].to_json()

    def give_module_a_tracepoint(self, distance: int, *, state: int) -> None:
        """The first module, in this state, has a tracepoint this far behind what names it."""
        module = self.guest.modules[0]
        physical, table = self.guest.allocate(64)
        self.guest.poke(physical, distance.to_bytes(4, "little", signed=True))
        self.guest.word(physical + 16, table + 8)  # its name is empty
        self.guest.word(physical + 32, self.functions)
        self.guest.poke(module, state.to_bytes(4, "little"))
        self.guest.word(module + 288, table)
        self.guest.word(module + 296, 1)

    def called(self) -> dict[tuple[str, str], tuple[str, str]]:
        fact = self.look()
        return {(each["via"], each["function"]): (each["kind"], each["owner"]) for each in fact["callbacks"]}


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_called_is_told_with_whose_it_is(world: World) -> None:
    fact = world.look()
    assert (fact["tracepoints"], fact["contexts"], fact["events"], fact["changed"]) == (2, 1, 1, [])
    told = {(each["via"], each["where"], each["symbol"], each["kind"]) for each in fact["callbacks"]}
    assert told == {
        ("tracepoint", "first", "victim", "function"),
        ("tracepoint", "first", "__bpf_trace_first", "function"),
        ("perf event", "of CPU 0", "victim", "function"),
    }
    # Two names, two iterators, and two pairs of the table of raw tracepoints.
    assert fact["pointers"] == 8


@pytest.mark.parametrize(
    ("function", "kind", "owner"),
    [
        (MODULE_AREA + 0x80, "module text", "first"),
        (MODULE_AREA + 0x90_0000, "none", ""),
        (LINK + SLIDE + 0x5003, "inside", ""),
        (DATA + SLIDE, "none", ""),
        (0x1234, "none", ""),
    ],
    ids=["a module", "code of nobody", "the middle of a function", "data", "user memory"],
)
def test_a_function_of_another_is_told_as_what_it_is(
    world: World, function: int, kind: str, owner: str
) -> None:
    world.word(world.functions + 48, function)
    world.word(world.event + 16, function)
    called = world.called()
    assert called["tracepoint", hex(function)] == (kind, owner)
    assert called["perf event", hex(function)] == (kind, owner)


def test_functions_of_modules_crowd_out_none_that_is_nobody_s(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_callbacks_fact, "bounded", partial(bounded, most=2))
    for place in (world.functions, world.functions + 24, world.event + 16):
        world.word(place, MODULE_AREA + 0x80 + place % 0x40)
    world.word(world.functions + 48, DATA + SLIDE)
    fact = world.look()
    assert [each["kind"] for each in fact["callbacks"]] == ["none", "module text"]
    assert fact["callbacks_left_out"] == 2


@pytest.mark.parametrize(
    ("address", "place"),
    [
        (FIRST + 8, "iterator of __tracepoint_first"),
        (SECOND + 8, "iterator of __tracepoint_second"),
        (RAW + 8, "bpf_func of __start__bpf_raw_tp"),
        (RAW, "tp of __start__bpf_raw_tp"),
    ],
)
def test_a_pointer_that_is_not_as_it_was_linked_is_told(world: World, address: int, place: str) -> None:
    world.word(address + SLIDE, DATA + SLIDE)
    (changed,) = world.look()["changed"]
    assert (changed["place"], changed["found"]) == (place, hex(DATA + SLIDE))


@pytest.mark.parametrize(
    "bend",
    [
        lambda world: (FIRST + SLIDE + 16, 0x10),
        lambda world: (world.event, world.event),
        lambda world: (CONTEXT + SLIDE, 8),
        lambda world: (DATA + 0x6200 + SLIDE, 0),
    ],
    ids=["wild functions", "a circle of events", "a wild list", "no processor"],
)
def test_what_cannot_be_followed_is_no_fact(world: World, bend: Any) -> None:
    address, value = bend(world)
    world.word(address, value)
    assert list(world.look()) == ["unavailable"]


def test_functions_without_an_end_are_no_fact(world: World) -> None:
    for place in range(0, 0x40_0000, 24):
        world.guest.word(0x180_0000 + place, world.guest.running("victim"))
    world.word(FIRST + SLIDE + 16, 0xFF11_0000_0180_0000)
    assert "end" in world.look()["unavailable"]


def test_tasks_are_asked_for_events_when_the_kernel_says_that_they_have_some(world: World) -> None:
    """The made-up kernel's tasks have no such member, which must be said and not be taken for none."""
    world.word(KEY + SLIDE, 1)
    assert "perf_event_ctxp" in world.look()["unavailable"]


_LIVE, _UNFORMED = 0, 3


def test_what_a_module_calls_is_told(world: World) -> None:
    world.give_module_a_tracepoint(16, state=_LIVE)
    fact = world.look()
    assert fact["tracepoints"] == 3
    assert {each["where"] for each in fact["callbacks"] if each["via"] == "tracepoint"} == {"first", ""}


def test_a_module_that_is_not_linked_yet_has_no_tracepoints_for_a_minute(world: World) -> None:
    """Its distances lead anywhere before relocation; who says for ever that he is not linked is looked at."""
    world.give_module_a_tracepoint(0, state=_UNFORMED)
    seen = world.guest.open()
    for now in range(0, 60, 5):
        fact = world.look(seen, now=float(now))
        assert (fact["tracepoints"], fact["changed"]) == (2, [])
    assert world.look(seen, now=61.0)["tracepoints"] == 3


def test_programs_that_tracepoints_enter_are_seen_while_a_module_is_not_linked_yet(world: World) -> None:
    world.give_module_a_tracepoint(0x7000_0000, state=_UNFORMED)
    seen = world.guest.open()

    def looked(unformed: Callable[[], frozenset[int]]) -> int:
        memory = Snapshot(seen.program, Budget(seconds=60.0))
        survey = Survey(seen, memory, BpfLists((), {}, {}), unformed)
        survey_tracepoints(survey)
        return survey.looked

    assert looked(partial(still_unformed, seen, 0.0)) == 2
    with pytest.raises(MemoryFault):
        looked(frozenset)
