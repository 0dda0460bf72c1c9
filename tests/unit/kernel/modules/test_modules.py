"""Modules: every executable page has an owner, and strangers are named once they have lasted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.modules.loaded import listed_modules
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.transient.grace_periods import GracePeriods
from affiant.kernel.transient.patience import Patience
from affiant.kernel.walks.known_walks import walked
from affiant.kernel.walks.lists import Words
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, MODULE_AREA, SyntheticGuest

SECOND = MODULE_AREA + 0x10_0000


def look(seen: Guest, now: float = 0.0) -> dict[str, Any]:
    return collect(seen, ["modules"], now=now)["modules"].to_json()


def looks(seen: Guest, *, seconds: int) -> dict[str, Any]:
    """Look once a second, and return the last look."""
    fact: dict[str, Any] = {}
    for now in range(seconds + 1):
        fact = look(seen, float(now))
    return fact


def unlink(guest: SyntheticGuest, module: int) -> None:
    """list_del of the module at a physical address, as a rootkit does it."""
    following, before = (int.from_bytes(guest.ram[module + at : module + at + 8], "little") for at in (8, 16))
    guest.word(guest.resolve(before), following)
    guest.word(guest.resolve(following) + 8, before)


def test_a_healthy_guest_has_an_owner_for_every_page() -> None:
    fact = look(SyntheticGuest().open())
    assert [(m["name"], m["state"], m["sig_ok"], m["size"]) for m in fact["listed"]] == [
        ("first", "live", True, 8192)
    ]
    assert (fact["executable_pages"], fact["owners"]) == (1, {"module": 1})
    assert fact["views"] == {"list": 1, "kset": 1, "tree": 0}
    assert fact["unowned"] == fact["settling"] == fact["unlisted"] == []


def test_code_without_owner_is_reported_once_it_has_lasted() -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, random.Random(1).randbytes(8192))
    for page in (0, 4096):
        guest.map(SECOND + page, 0x180_0000 + page, 4096, executable=True)
    seen = guest.open()
    first = look(seen, 0.0)
    assert (first["unowned"], first["settling"]) == ([], [{"address": hex(SECOND), "pages": 2}])
    last = looks(seen, seconds=6)
    assert (last["unowned"], last["settling"]) == ([{"address": hex(SECOND), "pages": 2}], [])
    assert last["owners"]["none"] == 2


def test_a_module_off_the_list_is_seen_by_its_code_and_by_the_other_view() -> None:
    guest = SyntheticGuest()
    hidden = guest.add_module("hidden", SECOND, 0x180_0000)
    seen = guest.open()
    assert len(look(seen)["listed"]) == 2
    unlink(guest, hidden)
    fact = looks(seen, seconds=6)
    assert [m["name"] for m in fact["listed"]] == ["first"]
    assert fact["unowned"] == [{"address": hex(SECOND), "pages": 1}]
    assert fact["unlisted"] == [{"name": "hidden", "seen_in": "kset", "address": hex(DIRECT_MAP + hidden)}]


def test_a_hidden_module_cannot_evade_by_another_name_in_each_look() -> None:
    guest = SyntheticGuest()
    hidden = guest.add_module("hidden", SECOND, 0x180_0000)
    seen = guest.open()
    unlink(guest, hidden)
    for second in range(7):
        guest.poke(hidden + 24, f"name{second}".encode() + b"\0")
        fact = look(seen, float(second))
    assert [each["name"] for each in fact["unlisted"]] == ["name6"]


def test_a_list_is_walked_again_when_it_does_not_lead_where_it_led() -> None:
    """As long as each element leads to the next, what was found of the list stands."""
    guest = SyntheticGuest()
    seen = guest.open()
    assert [module["name"] for module in look(seen)["listed"]] == ["first"]
    second = guest.add_module("second", SECOND, 0x180_0000)
    assert [module["name"] for module in look(seen)["listed"]] == ["first", "second"]
    unlink(guest, guest.modules[0])
    assert [module["name"] for module in look(seen)["listed"]] == ["second"]
    guest.poke(second + 24, b"other\0")
    assert [module["name"] for module in look(seen)["listed"]] == ["other"]
    guest.word(second + 8, DIRECT_MAP + second + 8)  # to itself
    assert "circle" in look(seen)["unavailable"]


@pytest.mark.parametrize("straddling", [False, True])
def test_each_byte_of_a_module_has_the_list_read_again(straddling: bool) -> None:
    """One that lies in two pages is compared in both of them, where these are mapped."""
    guest = SyntheticGuest()
    if straddling:
        guest.allocate((4096 - 128 - guest.allocate(8)[0]) % 4096)
    second = guest.add_module("second", SECOND, 0x180_0000)
    program = guest.open().program
    first = listed_modules(program)
    assert [module.name for module in first] == ["first", "second"]
    assert all(again is before for again, before in zip(listed_modules(program), first, strict=True))
    size = program.size("struct module")
    assert (second % 4096 + size > 4096) == straddling
    for at in (0, 24, size - 1):  # state, name, and its last byte
        held = guest.ram[second + at]
        guest.ram[second + at] ^= 1
        changed = listed_modules(program)[1]
        assert changed is not first[1]
        assert (changed != first[1]) == (at < size - 1)
        guest.ram[second + at] = held
    assert listed_modules(program) == first


def test_a_view_that_was_walked_is_walked_again_when_any_word_of_it_changes() -> None:
    guest = SyntheticGuest()
    hidden = guest.add_module("hidden", SECOND, 0x180_0000)
    seen = guest.open()
    assert [look(seen)["views"]["kset"] for _ in range(2)] == [2, 2]
    guest.word(hidden + 112, 0)  # mkobj.mod
    assert look(seen)["views"]["kset"] == 1
    guest.word(hidden + 112, DIRECT_MAP + hidden)
    assert look(seen)["views"]["kset"] == 2
    guest.word(hidden + 88, DIRECT_MAP + hidden + 88)  # to itself
    assert look(seen)["views"]["kset"] is None


def test_what_a_walk_found_follows_from_the_words_that_are_compared() -> None:
    """A word that changes while it is walked is one word of the walk, wherever the walk meets it."""
    guest = SyntheticGuest()
    program = guest.open().program
    place, address = guest.allocate(8)

    def twice(_: KernelProgram, words: Words) -> tuple[int, int]:
        first = words.word(address)
        guest.word(place, 2)
        return first, words.word(address)

    guest.word(place, 1)
    assert [walked(program, twice) for _ in range(3)] == [(1, 1), (2, 2), (2, 2)]


def test_a_module_off_every_list_is_still_seen_by_its_code() -> None:
    guest = SyntheticGuest()
    hidden = guest.add_module("hidden", SECOND, 0x180_0000)
    unlink(guest, hidden)
    guest.word(hidden + 112, 0)
    fact = looks(guest.open(), seconds=6)
    assert fact["unlisted"] == []
    assert fact["unowned"] == [{"address": hex(SECOND), "pages": 1}]


def test_a_module_that_says_it_is_unformed_is_excused_for_a_while_only() -> None:
    guest = SyntheticGuest()
    hidden = guest.add_module("hidden", SECOND, 0x180_0000, state=3)
    unlink(guest, hidden)
    seen = guest.open()
    assert look(seen)["unowned"] == []
    assert looks(seen, seconds=6)["unowned"] == [{"address": hex(SECOND), "pages": 1}]


def test_loading_and_unloading_never_counts_as_hidden() -> None:
    """In each look other pages are without owner, as while modules come and go."""
    guest = SyntheticGuest()
    seen = guest.open()
    for now in range(40):
        module = guest.add_module(f"m{now}", SECOND, 0x180_0000 + 4096 * (now % 3), state=1)
        unlink(guest, module)
        fact = look(seen, float(now))
        assert fact["unowned"] == fact["unlisted"] == []
        assert fact["settling"]
        guest.word(module + 112, 0)


def test_pages_are_swept_again_when_one_comes_to_hold_code_or_holds_none_any_more() -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, b"\xcc" * 4096 + random.Random(1).randbytes(4096) + b"\xcc" * 8 + bytes(4088))
    for page in range(0, 3 * 4096, 4096):
        guest.map(SECOND + page, 0x180_0000 + page, 4096, executable=True)
    seen = guest.open()

    def traps() -> tuple[int, int]:
        owners = look(seen)["owners"]
        return owners.get("traps", 0), owners.get("none", 0)

    assert [traps() for _ in range(2)] == [(1, 2)] * 2, "one only begins as if it held no code"
    guest.poke(0x180_2000, b"\xc3")
    for at in (0, 7, 8, 4095):
        assert [traps() for _ in range(2)] == [(1, 2)] * 2
        guest.poke(0x180_0000 + at, b"\xc3")
        assert traps() == (0, 3), at
        guest.poke(0x180_0000 + at, b"\xcc")
    before = guest.poke(0x180_1000, b"\xcc" * 4096)
    assert [traps() for _ in range(2)] == [(2, 1)] * 2
    guest.poke(0x180_1000, before)
    guest.map(SECOND, 0x180_1000, 4096, executable=True)
    assert [traps() for _ in range(2)] == [(0, 3)] * 2


def test_pages_of_nothing_but_int3_need_no_owner() -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, b"\xcc" * 4096)
    guest.map(SECOND, 0x180_0000, 4096, executable=True)
    assert look(guest.open())["owners"] == {"module": 1, "traps": 1}
    guest.poke(0x180_0FFF, b"\xc3")
    assert look(guest.open())["owners"] == {"module": 1, "none": 1}


def test_code_beyond_a_modules_text_is_not_its_own() -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, random.Random(1).randbytes(4096))
    guest.map(MODULE_AREA + 4096, 0x180_0000, 4096, executable=True)
    assert look(guest.open())["owners"] == {"module": 1, "none": 1}


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 1 << 31])
def test_a_module_cannot_claim_the_whole_area(size: int) -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, random.Random(1).randbytes(4096))
    guest.map(SECOND, 0x180_0000, 4096, executable=True)
    guest.poke(guest.modules[0] + 144 + 12, size.to_bytes(4, "little"))
    assert look(guest.open())["owners"]["none"] == 2


def test_modules_in_transition_are_told() -> None:
    guest = SyntheticGuest()
    guest.add_module("coming", SECOND, 0x180_0000, state=1)
    fact = look(guest.open())
    assert fact["in_transition"] == ["coming"]
    assert fact["owners"] == {"module": 2}


def test_a_list_in_a_circle_is_unavailable_not_empty() -> None:
    guest = SyntheticGuest()
    guest.word(guest.modules[0] + 8, DIRECT_MAP + guest.modules[0] + 8)
    assert "circle" in look(guest.open())["unavailable"]


def test_a_table_of_the_module_area_outside_ram_is_unavailable_not_clean() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    table = guest.root
    for level in range(5, 2, -1):
        place = table + 8 * (MODULE_AREA >> 12 + 9 * (level - 1) & 511)
        table = int.from_bytes(guest.ram[place : place + 8], "little") & 0x000F_FFFF_FFFF_F000
    guest.word(table + 8 * (SECOND + 0x20_0000 >> 21 & 511), 0x7FFF_F003)
    assert "outside RAM" in look(seen)["unavailable"]


def test_a_physical_page_that_changes_is_another_page() -> None:
    """A stranger is an address and the frame behind it: reuse of the address starts anew."""
    guest = SyntheticGuest()
    seen = guest.open()
    for now in range(12):
        physical = 0x180_0000 + 4096 * (now // 4)
        guest.poke(physical, random.Random(1).randbytes(4096))
        guest.map(SECOND, physical, 4096, executable=True)
        assert look(seen, float(now))["unowned"] == []


class TestPatience:
    def test_what_lasts_settles_after_five_seconds_and_four_looks(self) -> None:
        patience = Patience()
        settled = [bool(patience.settled("pages", {1}, now)) for now in (0.0, 1.5, 3.0, 4.9, 5.0)]
        assert settled == [False, False, False, False, True]

    def test_seconds_count_once_two_grace_periods_have_ended(self) -> None:
        """A guest short of processor time frees late: what waits for it is not hidden."""
        said = [GracePeriods(7, True)] * 8 + [GracePeriods(8, True)] * 2 + [GracePeriods(9, True)] * 6
        moments = iter(said)
        patience = Patience(lambda: next(moments))
        settled = [bool(patience.settled("pages", {1}, 1.0 * now)) for now in range(len(said))]
        assert settled == [False] * 14 + [True] * 2

    def test_a_kernel_without_work_for_rcu_waits_for_nothing(self) -> None:
        patience = Patience(lambda: GracePeriods(7, False))
        settled = [bool(patience.settled("pages", {1}, now)) for now in (0.0, 1.5, 3.0, 4.9, 5.0)]
        assert settled == [False, False, False, False, True]

    def test_a_grace_period_without_end_is_an_excuse_for_a_minute(self) -> None:
        patience = Patience(lambda: GracePeriods(7, True))
        settled = [bool(patience.settled("pages", {1}, 1.0 * now)) for now in range(70)]
        assert settled.index(True) == 64
        assert all(settled[64:])

    def test_what_has_settled_is_not_excused_by_a_grace_period_that_begins_later(self) -> None:
        said = [GracePeriods(7, False)] * 6 + [GracePeriods(7, True)] * 3
        moments = iter(said)
        patience = Patience(lambda: next(moments))
        settled = [bool(patience.settled("pages", {1}, 1.0 * now)) for now in range(len(said))]
        assert settled == [False] * 5 + [True] * 4

    def test_seconds_do_not_count_while_the_kernel_is_at_work(self) -> None:
        patience = Patience()
        excused = [True] * 8 + [False] * 6
        settled = [
            bool(patience.settled("sites", {1}, 1.0 * now, excused=excuse))
            for now, excuse in enumerate(excused)
        ]
        assert settled == [False] * 12 + [True] * 2

    def test_work_without_end_is_an_excuse_for_a_minute(self) -> None:
        patience = Patience()
        settled = [bool(patience.settled("sites", {1}, 1.0 * now, excused=True)) for now in range(70)]
        assert settled.index(True) == 64
        assert all(settled[64:])

    def test_many_quick_looks_do_not_count_as_many(self) -> None:
        patience = Patience()
        assert not any(patience.settled("pages", {1}, now / 1000) for now in range(100))
        assert not patience.settled("pages", {1}, 6.0)

    def test_rare_looks_need_four(self) -> None:
        patience = Patience()
        assert [bool(patience.settled("pages", {1}, now)) for now in (0.0, 60.0, 120.0, 180.0)] == [
            False
        ] * 3 + [True]

    def test_what_was_gone_in_between_starts_anew(self) -> None:
        patience = Patience()
        for now in (0.0, 2.0, 4.0):
            patience.settled("pages", {1}, now)
        patience.settled("pages", set[int](), 5.0)
        assert not patience.settled("pages", {1}, 6.0)

    def test_what_could_not_be_seen_in_between_goes_on_where_it_was(self) -> None:
        patience = Patience()
        settled = []
        for now in range(9):
            seen = {1} if now % 2 == 0 else set[int]()
            settled.append(bool(patience.settled("pages", seen, 1.5 * now, unseen=lambda _: True)))
        assert settled == [False] * 8 + [True]
        assert not patience.settled("pages", set(), 20.0)
        assert not patience.settled("pages", {1}, 21.0)

    def test_only_so_much_is_remembered_of_what_cannot_be_seen(self) -> None:
        patience = Patience()
        for now in range(4):
            things = set(range(3000 * now, 3000 * now + 3000))
            patience.settled("pages", things, 1.5 * now, unseen=lambda _: True)
        assert len(patience._seen["pages"]) <= 3000 + 4096

    def test_topics_do_not_mix(self) -> None:
        patience = Patience()
        for now in (0.0, 2.0, 4.0):
            patience.settled("pages", {1}, now)
        assert not patience.settled("modules", {1}, 6.0)


def test_what_one_look_saw_the_next_remembers_across_refresh() -> None:
    guest = SyntheticGuest()
    guest.poke(0x180_0000, random.Random(1).randbytes(4096))
    guest.map(SECOND, 0x180_0000, 4096, executable=True)
    seen = guest.open()
    fact: dict[str, Any] = {}
    for now in range(7):
        seen = seen.refresh(guest.cpus)
        fact = look(seen, float(now))
    assert fact["unowned"] == [{"address": hex(SECOND), "pages": 1}]
