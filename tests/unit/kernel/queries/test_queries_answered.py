"""Queries on a live kernel: every structure, every form, and what a kernel does not have."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from affiant.assertions.query import parse_queries
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.queries.answers import answer_queries
from tests.unit.kernel.queries.things import CALL, LABEL, LIST, OWNER, TEXT, ThingGuest, ask, numbers, walk
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, LINK, MODULE_AREA

LISTED = {"walk": "list", "at": "things", "type": "struct list_head", "of": "struct thing", "by": "list"}
INLINE = {"type": "struct thing [2]"}


@pytest.fixture(scope="module")
def guest() -> ThingGuest:
    return ThingGuest()


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ({"path": "thing_inline[1].number"} | INLINE, 81),
        ({"path": "thing_inline[1].negative"} | INLINE, -81),
        ({"path": "thing_inline[0].flag"} | INLINE, 1),
        ({"path": "thing_inline[0].state"} | INLINE, 7),
        ({"path": "thing_inline[0].whole"} | INLINE, 0x1234_5678),
        ({"path": "thing_inline[0].half"} | INLINE, 0x5678),
        ({"path": "thing_inline[0].bits.low"} | INLINE, 5),
        ({"path": "thing_inline[0].bits.middle"} | INLINE, -2),
        ({"path": "thing_inline[0].bits.high"} | INLINE, 9),
        ({"path": "thing_inline[0].array[3]"} | INLINE, 4),
        ({"path": "thing_inline[0].matrix[1][2]"} | INLINE, 5),
        ({"path": "thing_inline[0].owner.uid"} | INLINE, 1000),
        ({"path": "thing_inline[0].owner[0].uid"} | INLINE, 1000),
        ({"path": "thing_behind.owner.uid", "type": "struct thing *"}, 1000),
        (
            {"path": "thing_behind.owner.name", "type": "struct thing *", "as": "text", "bytes": 64},
            "the owner",
        ),
        ({"path": "thing_behind.owner.name", "type": "struct thing *", "as": "text", "bytes": 3}, "the"),
        ({"path": "thing_inline[1].text", "as": "text", "bytes": 64} | INLINE, "thing 81"),
        ({"path": "thing_inline[1].text", "as": "bytes", "bytes": 9} | INLINE, b"thing 81\0".hex()),
        ({"path": "thing_text", "as": "text", "bytes": 128}, "/sbin/modprobe"),
        ({"path": "thing_text", "as": "bytes", "bytes": 4}, b"/sbi".hex()),
        ({"path": "counter[1]"}, 701),
        ({"path": "null_thing.owner.uid", "type": "struct thing *"}, None),
        ({"path": "null_thing", "type": "struct thing *", "as": "address"}, "0x0"),
    ],
    ids=lambda value: value["path"] if isinstance(value, dict) else "",
)
def test_a_value_is_told_in_its_form(guest: ThingGuest, declared: dict[str, Any], value: object) -> None:
    assert ask(guest, declared) == {"value": value}


@pytest.mark.parametrize(
    ("structure", "at", "found", "indices"),
    [
        ("list", "things", [10, 11, 12], None),
        ("hlist", "thing_table", [20, 21, 22], None),
        ("chain", "thing_chain", [30, 31, 32], None),
        ("rbtree", "thing_tree", [40, 41, 42], None),
        ("xarray", "thing_array", [50, 51], [3, 129]),
        ("xarray", "thing_ids", [60, 61], [8, 134]),
        ("array", "thing_inline", [80, 81], [0, 1]),
        ("pointers", "thing_pointers", [70], [1]),
        ("per_cpu", "counter", [700, 701], [0, 1]),
    ],
)
def test_a_walk_visits_every_element_in_the_kernels_order(
    guest: ThingGuest, structure: str, at: str, found: list[int], indices: list[int] | None
) -> None:
    answer = ask(guest, walk(structure, at))
    assert numbers(answer) == found
    assert [element.get("index") for element in answer["elements"]] == (indices or [None] * len(found))
    assert json.loads(json.dumps(answer)) == answer


def test_elements_have_the_addresses_that_they_lie_at(guest: ThingGuest) -> None:
    (first, *_) = ask(guest, walk("list", "things"))["elements"]
    assert first["address"] == hex(DIRECT_MAP + guest.made[10])


def test_arrays_and_per_cpu_memory_behind_pointers_are_walked(guest: ThingGuest) -> None:
    behind = walk("array", "thing_behind", type="struct thing *", most=1)
    assert numbers(ask(guest, behind)) == [90]
    pointed = walk("per_cpu", "percpu_pointer", type="unsigned int *")
    assert numbers(ask(guest, pointed)) == [800, 801]
    pointers = walk("pointers", "thing_pointers[1].owner", type="struct thing * [4]")
    assert "absent" not in ask(guest, pointers)


def test_one_head_of_a_hash_table_is_walked(guest: ThingGuest) -> None:
    assert numbers(ask(guest, walk("hlist", "thing_table[3]"))) == [22]


@pytest.mark.parametrize(
    ("address", "kind", "owner", "symbol"),
    [
        (lambda guest: guest.running("victim") + 4, "text", "", "victim+0x4"),
        (lambda guest: guest.running("sys_call_table"), "rodata", "", "sys_call_table+0x0"),
        (lambda guest: guest.address("things"), "data", "", "things+0x0"),
        (lambda guest: MODULE_AREA + 8, "module text", "first", ""),
        (lambda guest: MODULE_AREA + 4096 + 8, "module data", "first", ""),
        (lambda guest: MODULE_AREA + 8192, "none", "", ""),
        (lambda guest: MODULE_AREA - 1, "none", "", ""),
        (lambda guest: DIRECT_MAP, "none", "", ""),
        (lambda guest: 0, "none", "", ""),
        (lambda guest: (1 << 64) - 1, "none", "", ""),
        (lambda guest: LINK, "none", "", ""),
    ],
)
def test_a_place_says_whose_it_is(address: Any, kind: str, owner: str, symbol: str) -> None:
    guest = ThingGuest()
    guest.word(guest.place("thing_inline") + CALL, address(guest))
    assert ask(guest, {"path": "thing_inline[0].call", "as": "place"} | INLINE) == {
        "value": {"address": hex(address(guest)), "kind": kind, "owner": owner, "symbol": symbol}
    }


def test_a_forged_module_owns_nothing_outside_the_module_area() -> None:
    guest = ThingGuest()
    guest.word(guest.modules[0] + 144, DIRECT_MAP)
    guest.word(guest.place("thing_inline") + CALL, DIRECT_MAP + 8)
    answer = ask(guest, {"path": "thing_inline[0].call", "as": "place"} | INLINE)
    assert answer["value"]["kind"] == "none"


def test_the_address_and_place_of_an_element_are_its_own(guest: ThingGuest) -> None:
    fields = {"itself": {"path": ".", "as": "place"}, "text": {"path": "text", "as": "address"}}
    (element, _) = ask(guest, walk("array", "thing_inline", each=fields))["elements"]
    assert element["itself"]["symbol"] == "thing_inline+0x0"
    assert element["text"] == hex(guest.address("thing_inline") + TEXT)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"path": "nowhere"}, "this kernel has no single symbol nowhere"),
        ({"path": "thing_inline[0].nothing"} | INLINE, "struct thing has no member nothing in this kernel"),
        ({"path": "thing_inline[2].number"} | INLINE, "thing_inline has 2 elements in this kernel"),
        ({"path": "thing_inline[0].number.x"} | INLINE, "thing_inline[0].number is of type unsigned int"),
        ({"path": "thing_inline[0].number[1]"} | INLINE, "which has no elements"),
        ({"path": "thing_inline[0].call.x"} | INLINE, "thing_inline[0].call is of type void"),
        ({"path": "thing_inline[0].text"} | INLINE, "is no number"),
        ({"path": "thing_inline[0].bits.low", "as": "address"} | INLINE, "a bit field has no address"),
        ({"path": "thing_inline", "type": "struct nothing"}, "this kernel has no type struct nothing"),
        (
            {"path": "counter"},
            "counter is a per-CPU variable here: walk per_cpu, or pick one as in counter[0]",
        ),
        ({"path": "freed", "as": "bytes", "bytes": 8}, "this kernel frees freed when it has booted"),
        (walk("list", "thing_tree"), ""),
        (walk("list", "thing_tree", type="struct rb_root_cached"), "not to struct list_head"),
        (walk("list", "things", by="node"), "struct thing hangs by no struct list_head of that name"),
        (walk("list", "things", by="owner.uid"), "lies behind a pointer"),
        (walk("chain", "thing_chain", by="number"), "does not point to the next"),
        (walk("chain", "thing_chain", type="struct thing"), "to no pointer"),
        (walk("rbtree", "thing_tree", type="struct list_head"), "to no tree"),
        (walk("xarray", "thing_array", type="struct list_head"), "to no xarray"),
        (walk("array", "thing_inline", type="unsigned int [4]"), "to no array of struct thing"),
        (walk("per_cpu", "counter[1]"), "walked over all processors"),
        (walk("per_cpu", "counter", of="struct thing"), "counter is no struct thing"),
        (walk("per_cpu", "things", type="struct list_head"), "neither to a per-CPU variable"),
        (walk("list", "things", of="struct nothing"), "this kernel has no type struct nothing"),
        (walk("list", "things", each={"x": {"path": "nothing"}}), "struct thing has no member nothing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_this_kernel_does_not_have_is_absent(
    guest: ThingGuest, declared: dict[str, Any], reason: str
) -> None:
    answer = ask(guest, declared)
    if reason:
        assert answer.keys() == {"absent"}
        assert reason in answer["absent"]
    else:  # a stated type is taken at its word: the memory then says whether it is one
        assert answer.keys() in ({"unavailable"}, {"elements"})


def test_an_optional_value_of_an_element_is_null_where_it_is_absent(guest: ThingGuest) -> None:
    fields = {"number": {"path": "number"}, "newer": {"path": "nothing", "optional": True}}
    answer = ask(guest, walk("array", "thing_inline", each=fields))
    assert [(element["number"], element["newer"]) for element in answer["elements"]] == [
        (80, None),
        (81, None),
    ]


def test_a_symbol_of_unknown_type_asks_for_it(guest: ThingGuest) -> None:
    for declared in (
        {"path": "thing_inline[0].number"},
        {"path": "thing_inline"},
        {key: value for key, value in LISTED.items() if key != "type"}
        | {"most": 9, "each": {"number": {"path": "number"}}},
    ):
        answer = ask(guest, declared)
        assert "nobody tells the type of" in answer["unavailable"]
        assert "'type'" in answer["unavailable"]


def test_queries_that_differ_in_name_alone_are_answered_once() -> None:
    guest = ThingGuest()
    queries = parse_queries({name: walk("list", "things") for name in ("one", "two")})
    answers = answer_queries(guest.open(), dict(zip("ab", queries, strict=True)))
    assert answers["a"] is answers["b"]
    assert list(answers) == ["a", "b"]


def test_no_queries_need_no_look() -> None:
    assert answer_queries(ThingGuest().open(), {}) == {}


def test_the_same_memory_gives_the_same_answer() -> None:
    declared = walk("rbtree", "thing_tree", each={"call": {"path": "call", "as": "place"}})
    first, second = (json.dumps(ask(ThingGuest(), declared)) for _ in range(2))
    assert first == second


# What a guest can do about it.


def test_wild_pointers_are_unavailable_not_absent_and_not_partial() -> None:
    guest = ThingGuest()
    guest.word(guest.made[11] + LIST, 0xDEAD_0000_0000_0100)
    assert ask(guest, walk("list", "things")).keys() == {"unavailable"}
    guest = ThingGuest()
    guest.word(guest.made[12] + OWNER, 0xDEAD_0000_0000_0100)
    answer = ask(guest, walk("list", "things", each={"uid": {"path": "owner.uid"}}))
    assert answer.keys() == {"unavailable"}


@pytest.mark.parametrize(
    ("structure", "at", "place"),
    [
        ("list", "things", lambda guest: (guest.made[12] + LIST, DIRECT_MAP + guest.made[11] + LIST)),
        ("hlist", "thing_table", lambda guest: (guest.made[22] + 0x10, DIRECT_MAP + guest.made[20] + 0x10)),
        ("chain", "thing_chain", lambda guest: (guest.made[32] + 0x40, DIRECT_MAP + guest.made[30])),
        ("rbtree", "thing_tree", lambda guest: (guest.made[40] + 0x30, DIRECT_MAP + guest.made[41] + 0x20)),
        (
            "xarray",
            "thing_array",
            lambda guest: (
                guest.made[-guest.place("thing_array")] + 40,
                DIRECT_MAP + guest.made[-guest.place("thing_array")] + 2,
            ),
        ),
    ],
)
def test_a_cycle_is_unavailable(structure: str, at: str, place: Any) -> None:
    guest = ThingGuest()
    where, target = place(guest)
    guest.word(where, target)
    answer = ask(guest, walk(structure, at))
    assert answer.keys() == {"unavailable"}
    assert "twice" in answer["unavailable"] or "is no" in answer["unavailable"]


@pytest.mark.parametrize(
    ("structure", "at", "most"),
    [
        ("list", "things", 2),
        ("hlist", "thing_table", 2),
        ("chain", "thing_chain", 2),
        ("rbtree", "thing_tree", 2),
        ("xarray", "thing_array", 1),
        ("array", "thing_inline", 1),
        ("pointers", "thing_pointers", 3),
        ("per_cpu", "counter", 1),
    ],
)
def test_an_element_too_many_is_unavailable(guest: ThingGuest, structure: str, at: str, most: int) -> None:
    answer = ask(guest, walk(structure, at, most=most))
    assert answer == {"unavailable": f"{at} has more than {most} elements"}


def test_a_mask_that_hides_processors_is_not_believed() -> None:
    guest = ThingGuest()
    guest.cpus = [guest.cpus[0]] * 2
    assert numbers(ask(guest, walk("per_cpu", "counter"))) == [700, 701]
    guest.poke(guest.place("__cpu_possible_mask"), b"\1")
    assert "the kernel knows 1 processors, the machine has 2" in str(ask(guest, walk("per_cpu", "counter")))
    assert ask(guest, {"path": "counter[5]"}).keys() == {"unavailable"}


def test_text_without_an_end_stops_at_its_bound_and_needs_no_page_beyond_its_end() -> None:
    guest = ThingGuest()
    guest.poke(guest.made[10] + TEXT, b"A" * 64)
    answer = ask(guest, walk("list", "things", each={"text": {"path": "text", "as": "text", "bytes": 64}}))
    assert answer["elements"][0]["text"] == "A" * 16
    last = DIRECT_MAP + len(guest.ram) - 4
    guest.poke(len(guest.ram) - 4, b"end\0")
    guest.word(guest.made[10] + LABEL, last)
    label = walk("list", "things", each={"label": {"path": "label", "as": "text", "bytes": 4096}})
    assert ask(guest, label)["elements"][0]["label"] == "end"
    guest.poke(len(guest.ram) - 4, b"endX")
    assert ask(guest, label).keys() == {"unavailable"}


def test_text_of_a_guest_is_never_undecodable() -> None:
    guest = ThingGuest()
    guest.poke(guest.place("thing_text"), b"\xff\x1b[2J\0")
    assert ask(guest, {"path": "thing_text", "as": "text", "bytes": 16}) == {"value": "\\xff\x1b[2J"}


def test_what_an_element_points_to_is_never_older_than_the_link_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the owners' page is copied, a thing of another owner is made in the same page, and linked."""
    guest = ThingGuest()
    head = guest.address("things")
    guest.poke(guest.place("things"), 2 * head.to_bytes(8, "little"))
    free, address = guest.allocate(3 * PAGE_SIZE)
    gap = -address % PAGE_SIZE
    slab, owners = free + gap, address + gap

    def make(number: int, slot: int, uid: int) -> None:
        guest.allocate(PAGE_SIZE)  # each thing has a page of its own
        thing = guest.thing(number)
        guest.poke(slab + 16 * slot, uid.to_bytes(4, "little"))
        guest.word(guest.made[number] + OWNER, owners + 16 * slot)
        guest.link(head, thing + LIST)

    make(10, 0, 1000)
    make(11, 0, 1000)
    seen = guest.open()
    real = seen.program.read

    def read(address: int, size: int) -> bytes:
        content = real(address, size)
        if address == owners and 12 not in guest.made:
            make(12, 1, 2000)
        return content

    del guest.made[12]
    monkeypatch.setattr(seen.program, "read", read)
    fields = {"number": {"path": "number"}, "uid": {"path": "owner.uid"}}
    query = walk("list", "things", each=fields)
    first = ask(seen, query)["elements"]
    assert [(each["number"], each["uid"]) for each in first] == [(10, 1000), (11, 1000)]
    assert 12 in guest.made
    second = ask(seen, query)["elements"]
    assert [(each["number"], each["uid"]) for each in second] == [(10, 1000), (11, 1000), (12, 2000)]


def test_walks_of_many_elements_are_whole_and_in_order() -> None:
    """More elements than are read together."""
    guest = ThingGuest()
    head = guest.address("things")
    guest.poke(guest.place("things"), 2 * head.to_bytes(8, "little"))
    for number in range(100, 700):
        guest.link(head, guest.thing(number) + LIST)
    fields = {"number": {"path": "number"}, "owner": {"path": "owner.uid"}}
    found = ask(guest, walk("list", "things", most=1000, each=fields))["elements"]
    assert [(each["number"], each["owner"]) for each in found] == [(n, 1000) for n in range(100, 700)]


def test_time_runs_out_and_the_others_have_their_share() -> None:
    """A clock that runs a second at each look: the long walk ends, the short value behind it is told."""
    guest = ThingGuest()
    queries = parse_queries({"long": walk("list", "things"), "short": {"path": "counter[1]"}})
    ticks = itertools.count()
    answers = answer_queries(
        guest.open(),
        {query.name: query for query in queries},
        seconds=10.0,
        clock=lambda: float(next(ticks)),
    )
    assert answers["long"].to_json() == {"unavailable": "no time was left for the query"}
    assert answers["short"].to_json() == {"value": 701}


def test_what_others_do_not_use_goes_to_the_one_that_needs_more() -> None:
    """A long walk among many short values is more than its share, and less than all of them leave."""
    guest = ThingGuest()
    shorts = {f"short{index}": {"path": "thing_text", "as": "text", "bytes": 8 + index} for index in range(9)}
    queries = parse_queries({"long": walk("list", "things")} | shorts)

    def answered(seconds: float) -> dict[str, Any]:
        ticks = itertools.count()
        found = answer_queries(
            guest.open(),
            {query.name: query for query in queries},
            seconds=seconds,
            clock=lambda: float(next(ticks)),
        )
        return {name: answer.to_json() for name, answer in found.items()}

    answers = answered(50.0)
    assert [each["number"] for each in answers["long"]["elements"]] == [10, 11, 12]
    assert all(answers[name] == {"value": "/sbin/modprobe"[: 8 + int(name[5:])]} for name in shorts)
    # A tenth is not enough for it alone: the first of the two rounds ends without it.
    alone = {query.name: query for query in queries if query.name == "long"}
    ticks = itertools.count()
    hasty = answer_queries(guest.open(), alone, seconds=5.0, clock=lambda: float(next(ticks)))
    assert hasty["long"].to_json() == {"unavailable": "no time was left for the query"}


def test_an_answer_does_not_grow_past_its_bound() -> None:
    guest = ThingGuest()
    head = guest.address("things")
    guest.poke(guest.place("things"), 2 * head.to_bytes(8, "little"))
    for number in range(100, 700):
        guest.link(head, guest.thing(number) + LIST)
    fields = {f"part{index}": {"path": ".", "as": "bytes", "bytes": 4096} for index in range(8)}
    answer = ask(guest, walk("list", "things", most=1000, each=fields), seconds=30.0)
    assert answer == {"unavailable": "the answer to the query exceeds 4194304 bytes"}
