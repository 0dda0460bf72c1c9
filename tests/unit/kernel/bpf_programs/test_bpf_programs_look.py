"""BPF programs: told with what they call and what leads to them, on the kernel's lists or off them."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.bpf_programs import callees, look, trampolines
from affiant.kernel.bpf_programs import listed as listed_look
from affiant.kernel.bpf_programs.survey import Survey, Use
from affiant.kernel.facts.registry import collect
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.page_content.bpf_lists import BpfLists, BpfSymbol
from affiant.kernel.site_content.content import SiteContent
from tests.unit.kernel.bpf_world import (
    AUX,
    CODE,
    CODE_PHYSICAL,
    ENTRY,
    HEADS,
    PACK,
    PROGRAM,
    TRAMPOLINE,
    BpfWorld,
)
from tests.unit.kernel.synthetic_guest import MODULE_AREA, SLIDE

LASTING = 10


@pytest.fixture
def world() -> BpfWorld:
    return BpfWorld()


def first(world: BpfWorld) -> Any:
    return next(world.looks())


def lasting(world: BpfWorld) -> Any:
    return list(islice(world.looks(), LASTING))[-1]


def test_a_program_is_told_with_what_it_calls_and_what_leads_to_it(world: BpfWorld) -> None:
    fact = first(world)
    (program,) = fact["programs"]
    assert (program["id"], program["name"], program["type"], program["attach_type"]) == (
        *(7, "watcher", "xdp", "xdp"),
    )
    assert (program["attach_to"], program["uid"], program["tag"]) == ("victim", 1000, "8877665544332211")
    assert (program["calls"], program["effects"]) == (["bpf_probe_write_user"], ["writes user memory"])
    assert {(use["what"], use["where"], use["count"]) for use in program["uses"]} == {
        ("symbol", "bpf_prog", 1),
        ("xdp link", "link 3", 1),
        ("fentry", "victim", 1),
        ("cgroup device", "/sshd", 1),
        ("tail call", "map 0, place 1", 1),
        ("trace event", "sched", 1),
        ("descriptor", "process 2 (shell)", 1),
        ("descriptor of its link", "process 2 (shell)", 1),
    }
    assert (fact["count"], fact["links"], fact["effects"]) == (1, 1, {"writes user memory": 1})
    assert fact["unread"] == {}
    assert (fact["looked"]["control groups"], fact["looked"]["maps of programs"]) == (2, 2)


def test_what_everything_is_listed_for_is_no_stranger(world: BpfWorld) -> None:
    fact = lasting(world)
    assert fact["unlisted"] == fact["settling"] == []


def test_a_program_off_the_list_is_told_by_all_that_leads_to_it(world: BpfWorld) -> None:
    world.guest.word(world.slot, 0)
    fact = lasting(world)
    (stranger,) = fact["unlisted"]
    assert (stranger["what"], stranger["name"], stranger["address"]) == (
        *("program", "watcher", hex(world.program)),
    )
    assert {use["what"] for use in stranger["uses"]} == {
        *("symbol", "xdp link", "fentry", "cgroup device", "tail call", "trace event"),
        *("descriptor", "descriptor of its link"),
    }
    assert fact["count"] == 0


def test_what_is_off_the_list_for_a_moment_is_not_told_as_hidden(world: BpfWorld) -> None:
    world.guest.word(world.slot, 0)
    fact = first(world)
    assert fact["unlisted"] == []
    assert [entry["name"] for entry in fact["settling"]] == ["watcher"]


def test_programs_that_take_turns_at_hiding_are_told_after_a_minute(world: BpfWorld) -> None:
    world.guest.word(world.slot, 0)
    copies = [world.add(PROGRAM, {16: world.aux}) for _ in range(2)]
    for place in (world.link + 8, world.map + 24, world.files[0] + 16, world.aux + 176):
        world.word(place, 0)
    told = []
    for number, fact in enumerate(islice(world.looks(), LASTING)):
        told.append((len(fact["unlisted"]), len(fact["settling"])))
        world.word(world.array + 16, copies[number % 2])
    assert told == [(0, 1)] * 6 + [(1, 0)] * (LASTING - 6), "looks are ten seconds apart"


def test_a_symbol_alone_leads_to_the_code_of_a_hidden_program(world: BpfWorld) -> None:
    world.guest.word(world.slot, 0)
    for place in (world.link + 8, world.array + 16, world.map + 24, world.files[0] + 16):
        world.word(place, 0)
    (stranger,) = lasting(world)["unlisted"]
    assert (stranger["name"], stranger["address"]) == ("bpf_prog", hex(CODE))


def test_code_of_a_trampoline_leads_to_a_program_that_no_list_names(world: BpfWorld) -> None:
    hidden = PACK + 8 + 0x18
    world.generate(hidden)
    (stranger,) = lasting(world)["unlisted"]
    assert (stranger["address"], stranger["name"]) == (hex(hidden), "")
    assert stranger["uses"] == [{"what": "trampoline", "where": "bpf_trampoline_", "count": 1}]


def test_code_that_a_trampoline_had_before_leads_to_nobody(world: BpfWorld) -> None:
    world.generate(PACK + 8 + 0x18, current=False)
    fact = lasting(world)
    assert (fact["unlisted"], fact["settling"], fact["looked"]["trampolines' code"]) == ([], [], 0)


def test_a_trampoline_that_calls_the_listed_program_is_one_of_its_places(world: BpfWorld) -> None:
    world.generate(CODE)
    fact = lasting(world)
    assert fact["unlisted"] == []
    assert "trampoline" in {use["what"] for use in fact["programs"][0]["uses"]}


def test_arrays_of_a_control_group_that_was_removed_are_left_out(world: BpfWorld) -> None:
    world.word(world.group + 32, 0)
    world.word(world.array + 16, 0x5AFE)
    world.word(HEADS["event_sched"] + SLIDE + 16, 0)
    fact = lasting(world)
    assert (fact["unlisted"], fact["looked"]["control groups"]) == ([], 2)


@pytest.mark.parametrize(("number", "strangers"), [(0, 0), (9, 1)], ids=["without an id", "with an id"])
def test_what_runs_the_programs_of_a_group_s_lsm_hook_is_on_no_list_by_right(
    world: BpfWorld, number: int, strangers: int
) -> None:
    aux = world.add(AUX, {})
    stand_in = world.add(64, {8: HEADS["__cgroup_bpf_run_lsm_current"] + SLIDE, 16: aux})
    link = world.add(64, {0: number, 8: stand_in})
    world.word(world.trampoline + 32, link + 32)
    fact = lasting(world)
    assert len(fact["unlisted"]) == strangers
    assert all(stranger["what"] == "link" for stranger in fact["unlisted"])


def test_a_link_off_the_list_is_told(world: BpfWorld) -> None:
    world.guest.word(world.link_slot, 0)
    (stranger,) = lasting(world)["unlisted"]
    assert (stranger["what"], stranger["address"]) == ("link", hex(world.link))
    assert {use["what"] for use in stranger["uses"]} == {"fentry", "descriptor of its link"}


def test_who_holds_a_program_leads_to_it_when_nothing_else_does(world: BpfWorld) -> None:
    world.guest.word(world.slot, 0)
    for place in (world.link + 8, world.array + 16, world.map + 24, world.aux + 176):
        world.word(place, 0)
    (stranger,) = lasting(world)["unlisted"]
    assert stranger["uses"] == [{"what": "descriptor", "where": "process 2 (shell)", "count": 1}]


@pytest.mark.parametrize(
    "place", [lambda world: world.descriptors + 8, lambda world: world.files[0] + 16], ids=["table", "file"]
)
def test_a_process_that_ends_meanwhile_is_passed_over(world: BpfWorld, place: Any) -> None:
    world.word(place(world), 0x10)
    fact = first(world)
    assert (fact["count"], fact["unread"]) == (1, {})


@pytest.mark.parametrize(
    ("kind", "bend"),
    [
        ("control groups", lambda world: (world.group, world.group)),
        ("control groups", lambda world: (world.group + 56, 0x10)),
        ("trampolines", lambda world: (world.trampoline, world.trampoline)),
        ("maps of programs", lambda world: (world.map, 3 | 0xFFFF_FFFF << 32)),
        ("links", lambda world: (HEADS["link_idr"] + SLIDE, 0x1002)),
        ("descriptors", lambda world: (world.descriptors, 0xFFFF_FFFF)),
    ],
    ids=[
        *("a circle of groups", "a wild array", "a circle of trampolines", "a huge map", "a wild list"),
        "a huge table of descriptors",
    ],
)
def test_what_cannot_be_followed_is_not_taken_for_nothing(world: BpfWorld, kind: str, bend: Any) -> None:
    address, value = bend(world)
    world.word(address, value)
    fact = first(world)
    assert kind in fact.get("unread", {}) or "unavailable" in fact


def test_code_that_no_look_had_time_for_is_told_as_unread_and_read_later(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callees, "_MOST_DECODED", 0)
    seen = world.open()
    fact: Any = next(world.looks(seen))
    assert (fact["programs"][0]["calls"], fact["programs"][0]["effects"]) == (None, [])
    assert "calls" in fact["unread"]
    monkeypatch.undo()
    fact = next(world.looks(seen))
    assert fact["programs"][0]["calls"] == ["bpf_probe_write_user"]


def test_files_that_are_mapped_nowhere_were_not_looked_at(world: BpfWorld) -> None:
    assert first(world)["looked"]["descriptors"] == 3
    world.word(world.descriptors + 8, world.add(64, {0: 1 << 63, 8: world.files[0]}))
    assert first(world)["looked"]["descriptors"] == 1
    world.word(world.descriptors + 8, world.add(64, {0: 1 << 63, 8: 1 << 63}))
    fact = first(world)
    assert "descriptors" in fact["unread"]
    assert "descriptors" not in fact["looked"]


def test_where_the_direct_map_is_said_to_begin_hides_no_file(world: BpfWorld) -> None:
    world.word(HEADS["page_offset_base"] + SLIDE, 1 << 62)
    fact = first(world)
    assert (fact["looked"]["descriptors"], fact["unread"]) == (3, {})


def test_what_is_made_once_takes_no_time_from_a_look(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look of a monitor may be at BPF programs, before anybody needed the forms of patch sites."""
    seconds = [0.0]
    make = SiteContent.__init__

    def slowly(*arguments: Any, **named: Any) -> None:
        seconds[0] += 60.0
        make(*arguments, **named)

    monkeypatch.setattr(SiteContent, "__init__", slowly)
    monkeypatch.setattr(time, "thread_time", lambda: seconds[0])
    assert first(world)["unread"] == {}
    assert seconds == [60.0]


def test_code_of_a_trampoline_that_is_not_read_to_its_end_is_not_taken_for_nothing(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.generate(PACK + 8 + 0x18)
    assert lasting(world)["unread"] == {}
    world.guest.poke(CODE_PHYSICAL + TRAMPOLINE - PACK + 4, bytes.fromhex("0f22c09090"))
    assert first(world)["unread"] == {}, "it may be patched just now"
    assert list(lasting(world)["unread"]) == ["trampolines' code"]
    monkeypatch.setattr(trampolines, "read_bpf_symbols", lambda *_: {})
    assert lasting(world)["unread"] == {}, "it was freed meanwhile"


def test_a_look_that_was_overtaken_begins_anew_with_the_lists_of_now(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they named may be freed and unmapped since."""
    seen: list[BpfLists] = []

    def moved(survey: Survey) -> None:
        seen.append(survey.lists)
        if len(seen) == 1:
            world.guest.word(world.slot, 0)
            raise MemoryFault("it is gone")

    monkeypatch.setattr(look, "PLACES", {"moved": moved})
    assert first(world)["looked"] == {"moved": 0}
    assert [CODE in lists.programs for lists in seen] == [True, False]


def test_lists_are_read_within_the_time_of_a_look(world: BpfWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_SECONDS", -1.0)
    monkeypatch.setattr(look, "listed_links", lambda _survey: {})
    monkeypatch.setattr(look, "PLACES", {})
    assert "no time" in first(world)["unavailable"]


def test_more_code_than_a_look_reads_is_told_as_unread(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that all claim the same two megabytes cost no minutes."""
    monkeypatch.setattr(callees, "_MOST_READ", 64 - 8 - 1)
    fact = first(world)
    assert fact["programs"][0]["calls"] is None
    assert "calls" in fact["unread"]


def test_code_that_is_remembered_is_bounded_in_bytes(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callees, "_MOST_BYTES_KEPT", len(world.code))
    seen = world.open()
    for size in range(len(world.code), len(world.code) + 8):
        world.word(world.program, 1 | size << 32)
        assert next(world.looks(seen))["unread"] == {}
    assert sum(size for _, size in seen.bpf_callees._known) <= 2 * len(world.code)


def test_symbols_are_not_all_searched_for_each_that_is_nobody_s(world: BpfWorld) -> None:
    class Counted(dict[int, BpfSymbol]):
        walks = 0

        def values(self) -> Any:
            self.walks += 1
            return super().values()

    symbols = Counted({start: BpfSymbol(start, start + 8, "one", True, 0) for start in range(0, 8000, 16)})
    known = look._Known(set(), look._Functions(()), set())
    uses = [Use("trampoline", "somewhere", code=start + 4) for start in symbols]
    found = look._unlisted(world.open(), known, uses, BpfLists((), symbols, {}))
    assert {address for _, address in found} == set(symbols)
    assert symbols.walks == 1


def test_code_that_is_none_of_the_compiler_s_is_told_as_not_whole(world: BpfWorld) -> None:
    world.guest.poke(CODE_PHYSICAL + 8 + len(ENTRY), bytes.fromhex("0f22c09090"))
    (program,) = first(world)["programs"]
    assert (program["calls"], program["calls_whole"]) == ([], False)


def test_a_program_that_is_freed_while_it_is_read_is_passed_over(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the list first, and its code becomes INT3; one that is listed on is told all the same."""
    read, listed = listed_look.program_details, True

    def freed(*arguments: Any) -> Any:
        details = read(*arguments)
        world.guest.poke(CODE_PHYSICAL + 8, b"\xcc" * len(world.code))
        if not listed:
            world.guest.word(world.slot, 0)
        return details

    monkeypatch.setattr(listed_look, "program_details", freed)
    (program,) = first(world)["programs"]
    assert not program["calls_whole"]
    listed = False
    fact = first(world)
    assert (fact["programs"], fact["unread"]) == ([], {})


def test_a_program_whose_code_is_gone_is_listed_and_its_calls_are_unread(world: BpfWorld) -> None:
    world.word(world.program + 8, PACK + 0x1000)
    fact = first(world)
    assert (fact["count"], fact["programs"][0]["calls"], fact["programs"][0]["settling"]) == (1, None, True)
    assert "calls" not in fact["unread"]
    fact = lasting(world)
    assert (fact["count"], fact["programs"][0]["calls"], fact["programs"][0]["settling"]) == (1, None, False)
    assert "calls" in fact["unread"]


PATCHED = CODE_PHYSICAL + 8 + len(ENTRY) + 5
"""Behind the call of the helper."""


def test_a_program_that_is_being_patched_has_some_seconds(world: BpfWorld) -> None:
    """INT3 stands for a moment where a tail call is patched; what stays so is told."""
    world.guest.poke(PATCHED, b"\xcc")
    told = [fact["programs"][0] for fact in islice(world.looks(), LASTING)]
    assert [program["calls_whole"] for program in told] == [False] * LASTING
    assert [program["settling"] for program in told] == [number < 3 for number in range(LASTING)]
    assert told[0]["effects"] == ["writes user memory"], "what stands before it is known"


def test_a_program_that_is_patched_while_it_is_read_is_read_again(
    world: BpfWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.guest.poke(PATCHED, b"\xcc")
    read, readings = listed_look.program_details, 0

    def finished(*arguments: Any) -> Any:
        nonlocal readings
        readings += 1
        if readings == 2:
            world.guest.poke(PATCHED, before)
        return read(*arguments)

    monkeypatch.setattr(listed_look, "program_details", finished)
    (program,) = first(world)["programs"]
    assert (program["calls_whole"], program["settling"], readings) == (True, False, 2)


def test_programs_that_take_turns_at_not_being_read_are_told_after_a_minute(world: BpfWorld) -> None:
    world.guest.poke(PATCHED, b"\xcc")
    told = []
    for number, fact in enumerate(islice(world.looks(), LASTING)):
        (program,) = fact["programs"]
        told.append(program["settling"])
        world.word(world.aux + 64, 8 + number)  # another program, by its number
    assert told == [number < 6 for number in range(LASTING)], "looks are ten seconds apart"


def test_a_program_whose_length_was_cut_short_hides_no_call(world: BpfWorld) -> None:
    """What a program may do is read up to the end of its memory, whatever its structure says."""
    world.word(world.program, 1 | len(ENTRY) << 32)
    (program,) = first(world)["programs"]
    assert (program["effects"], program["calls_whole"]) == (["writes user memory"], False)


def test_a_short_function_where_a_listed_one_starts_hides_none_of_it(world: BpfWorld) -> None:
    """A forged program on the list claims the beginning of another's code."""
    aux = world.add(AUX, {64: 9})
    forged = world.add(PROGRAM, {0: 1 | len(ENTRY) << 32, 8: CODE, 16: aux, 24: 6 | 37 << 32})
    world.guest.word(world.slot + 8, forged)
    world.generate(CODE + len(ENTRY))
    fact = first(world)
    program = next(program for program in fact["programs"] if program["name"] == "watcher")
    assert (program["effects"], program["functions"]) == (["writes user memory"], 1)
    assert "trampoline" in {use["what"] for use in program["uses"]}
    assert fact["count"] == 2


def test_an_exception_table_behind_a_program_is_no_code_of_it(world: BpfWorld) -> None:
    place = CODE + len(world.code) + 1
    world.guest.poke(CODE_PHYSICAL + 8 + len(world.code) + 1, bytes.fromhex("0f22c0") + bytes(9))
    assert not first(world)["programs"][0]["calls_whole"]
    world.word(world.aux + 32, 1)
    world.word(world.aux + 40, place)
    assert first(world)["programs"][0]["calls_whole"]


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=30),
            st.integers(min_value=0, max_value=AUX // 8),
            st.one_of(
                st.integers(min_value=0, max_value=(1 << 64) - 1),
                st.sampled_from([0, 1, 2, (1 << 64) - 1, MODULE_AREA, PACK, CODE, 1 << 63]),
                st.integers(min_value=0, max_value=30).map(lambda number: -1 - number),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_stands_there_a_look_ends_in_a_value(changes: list[tuple[int, int, int]]) -> None:
    """Any words in any of the structures, pointers to each other among them."""
    world = BpfWorld()
    for number, word, value in changes:
        physical, size = world.objects[number % len(world.objects)]
        if value < 0:
            value = world.objects[(-1 - value) % len(world.objects)][0] + 0xFF11_0000_0000_0000
        if 8 * word + 8 <= size:
            world.guest.word(physical + 8 * word, value)
    fact = collect(world.open(), ["bpf_programs"], now=0)["bpf_programs"].to_json()
    assert "unavailable" in fact or fact["count"] >= 0
