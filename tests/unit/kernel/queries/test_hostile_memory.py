"""Whatever guest memory holds, an answer comes: bounded, in time, and never an exception."""

from __future__ import annotations

import json
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.assertions.query import parse_queries
from affiant.kernel.queries.answers import answer_queries
from tests.unit.kernel.queries.things import THING_SIZE, THINGS, ThingGuest, walk
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, HEAP_PHYSICAL

MOST = 40
FIELDS = {
    "number": {"path": "number"},
    "uid": {"path": "owner.uid"},
    "label": {"path": "owner.name", "as": "text", "bytes": 32},
    "call": {"path": "call", "as": "place"},
    "raw": {"path": ".", "as": "bytes", "bytes": 300},
}
WALKS = [
    ("list", "things"),
    ("hlist", "thing_table"),
    ("chain", "thing_chain"),
    ("rbtree", "thing_tree"),
    ("xarray", "thing_array"),
    ("xarray", "thing_ids"),
    ("array", "thing_inline"),
    ("pointers", "thing_pointers"),
    ("per_cpu", "counter"),
]
DECLARED: dict[str, Any] = {
    f"q{number}": walk(structure, at, most=MOST)
    if structure == "per_cpu"
    else walk(structure, at, most=MOST, each=FIELDS)
    for number, (structure, at) in enumerate(WALKS)
}
QUERIES = {query.name: query for query in parse_queries(DECLARED)}
ANSWERS = ({"elements"}, {"unavailable"})


def targets(guest: ThingGuest) -> st.SearchStrategy[int]:
    """Where a hostile pointer goes: to things and heads that there are, a little off, or anywhere."""
    known = [DIRECT_MAP + place for place in guest.made.values()]
    known += [guest.address(symbol) for symbol in ("things", "thing_table", "thing_tree", "thing_array")]
    near = st.builds(lambda base, offset: base + offset, st.sampled_from(known), st.integers(-3, 0x60))
    wild = st.sampled_from([0, 1, 2, (1 << 64) - 8, (1 << 64) - 1, DIRECT_MAP + (32 << 20) - 4])
    return st.one_of(near, near, wild, st.integers(0, (1 << 64) - 1))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_memory_is_answered_within_bounds(data: st.DataObject) -> None:
    guest = ThingGuest()
    seen = guest.open()
    things = st.sampled_from(list(guest.made.values()))
    places = st.one_of(
        st.builds(lambda base, slot: base + 8 * slot, things, st.integers(0, THING_SIZE // 8)),
        st.sampled_from([guest.place(name) for name in THINGS if name.startswith("thing_")]),
        st.integers(0, 64).map(lambda slot: guest.place("__cpu_possible_mask") + 8 * slot),
        st.integers(0, 2000).map(lambda slot: HEAP_PHYSICAL + 8 * slot),
    )
    for _ in range(data.draw(st.integers(1, 6))):
        guest.word(data.draw(places), data.draw(targets(guest)))
    started = time.monotonic()
    answers = answer_queries(seen, QUERIES, seconds=2.0)
    assert time.monotonic() - started < 10  # the limit, with room for a busy host
    for name, answer in answers.items():
        document = answer.to_json()
        assert document.keys() in ANSWERS, (name, document)  # what the reference has is never absent
        assert json.loads(json.dumps(document)) == document
        assert len(document.get("elements", ())) <= MOST
        addresses = [(element.get("index"), element["address"]) for element in document.get("elements", ())]
        assert len(set(addresses)) == len(addresses)


def guest_with_a_long_list() -> ThingGuest:
    guest = ThingGuest()
    first, count = HEAP_PHYSICAL + (4 << 20), 40_000
    for index in range(count):
        guest.word(first + 64 * index, DIRECT_MAP + first + 64 * (index + 1))
    guest.word(guest.place("things"), DIRECT_MAP + first)
    return guest


def test_a_list_that_is_as_long_as_memory_ends_with_its_bound() -> None:
    guest = guest_with_a_long_list()
    (query,) = parse_queries({"q": walk("list", "things", most=20000)})
    answer = answer_queries(guest.open(), {"q": query}, seconds=60.0)["q"].to_json()
    assert answer == {"unavailable": "things has more than 20000 elements"}


def test_a_long_walk_ends_in_time() -> None:
    guest = guest_with_a_long_list()
    (query,) = parse_queries({"q": walk("list", "things", most=20000)})
    seen = guest.open()
    started = time.monotonic()
    answer = answer_queries(seen, {"q": query}, seconds=0.02)["q"].to_json()
    assert answer == {"unavailable": "no time was left for the query"}
    assert time.monotonic() - started < 5  # 0.02 s, with room for a busy host
