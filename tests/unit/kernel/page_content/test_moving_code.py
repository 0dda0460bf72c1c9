"""Code of nobody that is at another place in each look, and text of modules that are on their way."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.modules import left_text
from affiant.kernel.modules.loaded import Module
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.look import PageContent, read_page_content
from affiant.kernel.transient.patience import Patience
from tests.unit.kernel.module_builder import ALLOC, EXECUTE, PLT32, ModuleBuilder, small_module
from tests.unit.kernel.modules.test_module_code import KERNEL, Loaded, distance
from tests.unit.kernel.synthetic_guest import MODULE_AREA, MODULE_PHYSICAL, MODULE_SIZE

NOBODYS = MODULE_AREA + 0x40_0000
CODE = 0x190_0000
"""Where foreign code lies in RAM; as many pages as are needed follow."""

FOREIGN = bytes.fromhex("0f20c025fffffeff0f22c0ffe7").ljust(PAGE_SIZE, b"\x90")
INIT = MODULE_AREA + 0x60_0000
MOVED = "is of no package and of nobody who stays"


def module_with_init() -> ModuleBuilder:
    """Return the small module with text of its init, which calls the kernel and the module."""
    module = small_module()
    module.section(".init.text", ALLOC | EXECUTE, bytes.fromhex("4883ec08e800000000e8000000004883c408c3"))
    module.symbol("init", ".init.text")
    module.relocate(".init.text", 5, PLT32, "victim", -4)
    module.relocate(".init.text", 10, PLT32, "entry", -4)
    return module


def init_text(start: int) -> bytes:
    """Return the text of that init as the loader leaves it at `start`."""
    code = bytearray(bytes.fromhex("4883ec08e800000000e8000000004883c408c3").ljust(PAGE_SIZE, b"\0"))
    code[5:9], code[10:14] = distance(KERNEL["victim"], start + 5), distance(MODULE_AREA, start + 10)
    return bytes(code)


class Looking:
    """Looks at a guest once a second, each time at its code as it is then."""

    def __init__(self, folder: Path, *, module: ModuleBuilder | None = None, named: bool = True) -> None:
        self.loaded = Loaded(folder, module=module, named=named)
        self.guest, self.seen = self.loaded.guest, self.loaded.seen
        self.mapped: set[int] = set()

    def only(self, *addresses: int, content: bytes = FOREIGN) -> None:
        """Have foreign code at these places, and nowhere else."""
        for address in self.mapped - set(addresses):
            self.unmap(address)
        for number, address in enumerate(addresses):
            self.guest.poke(CODE + number * PAGE_SIZE, content)
            self.guest.map(address, CODE + number * PAGE_SIZE, PAGE_SIZE, executable=True)
        self.mapped = set(addresses)

    def unmap(self, address: int) -> None:
        self.guest.map(address, 0, PAGE_SIZE)  # a page of zeros, of data

    def look(self, now: float, seen: Guest | None = None) -> PageContent:
        seen = seen or self.seen
        found = read_page_content(seen, seen.page_owners, now=now)
        assert not found.unread
        return found

    def told(self, looks: int, move: Callable[[int], object], *, at_rest: bool = False) -> list[int]:
        """Return in which looks moving code is told, `move` being called before each."""
        seen = self.seen.at_rest() if at_rest else self.seen
        found = []
        for number in range(looks):
            move(number)
            faults = self.look(float(number), seen).faults
            assert all(fault.reason.startswith(MOVED) for fault in faults)
            found += [number] * bool(faults)
        return found


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    return Looking(tmp_path)


@pytest.mark.parametrize(("at_rest", "first"), [(False, 15), (True, 7)])
def test_code_that_is_elsewhere_in_each_look_is_told(looking: Looking, at_rest: bool, first: int) -> None:
    places = [NOBODYS + PAGE_SIZE * number for number in range(64)]
    found = looking.told(20, lambda number: looking.only(places[number]), at_rest=at_rest)
    assert found == list(range(first, 20))
    (fault,) = looking.look(20.0, looking.seen.at_rest() if at_rest else looking.seen).faults
    assert (fault.address, fault.found[:13]) == (places[19], FOREIGN[:13])
    assert "21 of 21 looks" in fault.reason


def test_code_that_is_there_in_every_second_look_is_told(looking: Looking) -> None:
    def move(number: int) -> None:
        looking.only(*([NOBODYS + PAGE_SIZE * number] * (number % 2)))

    assert looking.told(40, move)[0] == 31


def test_code_that_goes_between_two_pages_is_told(looking: Looking) -> None:
    found = looking.told(20, lambda number: looking.only(NOBODYS + PAGE_SIZE * (number % 2)))
    assert found[0] == 15


def test_copies_of_itself_that_come_and_go_are_told(looking: Looking) -> None:
    """A new one is made before the last one goes: never fewer than one, and none for long."""
    first = [NOBODYS + PAGE_SIZE * number for number in range(21)]
    found = looking.told(20, lambda number: looking.only(first[number], first[number + 1]))
    assert found[0] == 15


def test_what_seemed_to_move_while_the_guest_ran_is_no_word_on_one_moment(looking: Looking) -> None:
    """A guest that loads modules all the time is stopped for that, and not accused."""
    places = [NOBODYS + PAGE_SIZE * number for number in range(64)]
    assert looking.told(18, lambda number: looking.only(places[number])) == [15, 16, 17]
    at_rest = looking.seen.at_rest()
    for number in range(18, 25):
        looking.only(places[number])
        assert looking.look(float(number)).faults
        for later in (0.1, 0.5):
            assert not looking.look(number + later, at_rest).faults
    looking.only(places[25])
    assert looking.look(25.0).faults
    assert looking.look(25.5, at_rest).faults


def test_many_tries_at_one_moment_are_one_look_and_the_last_one_counts(looking: Looking) -> None:
    """A slow host takes seconds for each; in the first ones memory may still move."""
    at_rest = looking.seen.at_rest()
    for number in range(0, 300, 10):
        looking.only(NOBODYS + PAGE_SIZE * number)
        looking.look(float(number))
        for later in range(2, 8, 2):
            looking.look(float(number + later), at_rest)
        looking.only()
        assert not looking.look(number + 9.0, at_rest).faults
    looking.only(NOBODYS)
    assert looking.look(400.0).faults
    assert not looking.look(402.0, at_rest).faults


def test_code_that_is_seldom_there_is_not_told(looking: Looking) -> None:
    """The bound: less than a quarter of the looks."""

    def move(number: int) -> None:
        looking.only(*([NOBODYS + PAGE_SIZE * (number // 5)] * (number % 5 == 0)))

    assert looking.told(200, move) == []


def test_looks_that_follow_at_once_count_as_one(looking: Looking) -> None:
    for number in range(30):
        looking.only(NOBODYS + PAGE_SIZE * number)
        assert not looking.look(number / 100).faults


def test_a_module_that_says_that_it_is_loaded_owns_no_code_that_moves(looking: Looking) -> None:
    """Forged for a moment each, with a name of the package and other text."""
    module = looking.guest.add_module("first", NOBODYS, CODE, state=1)
    found = []
    for number in range(20):
        place = NOBODYS + PAGE_SIZE * number
        looking.only(place)
        looking.guest.poke(module + 144, struct.pack("<QII", place, 8192, 4096))
        found.append(bool(looking.look(float(number)).faults))
    assert found.index(True) == 15


def leaving(looking: Looking, *, changed: bytes = b"") -> None:
    """Take the module off the list, its structure in data of the module area, its text where it was."""
    guest = looking.guest
    structure = bytes(guest.ram[guest.modules[0] : guest.modules[0] + MODULE_SIZE])
    data = MODULE_PHYSICAL + 3 * PAGE_SIZE
    guest.map(MODULE_AREA + 3 * PAGE_SIZE, data, PAGE_SIZE, writable=True)
    guest.poke(data + 0x80, structure)
    head = guest.running("modules")
    guest.poke(guest.resolve(head), 2 * head.to_bytes(8, "little"))
    guest.poke(MODULE_PHYSICAL, changed)


def test_text_of_a_module_that_is_unloaded_is_no_code_that_moves(looking: Looking) -> None:
    leaving(looking)
    for number in range(4):
        seen = looking.look(float(number))
        assert [fault.address for fault in seen.settling] == [MODULE_AREA]
        explained = looking.seen.outside.left_among({MODULE_AREA})
        assert explained == {MODULE_AREA}
    assert looking.seen.patience.often("moving code", True, 4.0, looks=1) == (1, 5)


def test_other_text_under_the_structure_of_a_module_that_left_is_nobody_s(looking: Looking) -> None:
    leaving(looking, changed=b"\xf4")
    assert looking.seen.outside.left_among({MODULE_AREA}) == frozenset()


def test_data_that_points_at_code_and_is_no_module_explains_nothing(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may fill all data of modules with such pointers: no more of them are followed than a few."""
    read: list[int] = []
    real = left_text.module_at

    def counted(program: KernelProgram, address: int) -> Module:
        read.append(address)
        return real(program, address)

    monkeypatch.setattr(left_text, "module_at", counted)
    guest = looking.guest
    guest.map(MODULE_AREA + 3 * PAGE_SIZE, MODULE_PHYSICAL + 3 * PAGE_SIZE, PAGE_SIZE, writable=True)
    guest.poke(MODULE_PHYSICAL + 3 * PAGE_SIZE, NOBODYS.to_bytes(8, "little") * 512)
    looking.only(NOBODYS)
    assert looking.seen.outside.left_among({NOBODYS}) == frozenset()
    assert len(read) == 256


@pytest.mark.parametrize("unloaded", [False, True])
def test_text_of_init_that_waits_to_be_freed_is_no_code_that_moves(tmp_path: Path, unloaded: bool) -> None:
    """Whose it is, looks before tell. Where the module is gone, what refers to it is not compared."""
    looking = Looking(tmp_path, module=module_with_init())
    left_among = looking.seen.outside.left_among
    looking.only(INIT, content=init_text(INIT))
    assert left_among({INIT}) == {INIT}
    if unloaded:
        head = looking.guest.running("modules")
        looking.guest.poke(looking.guest.resolve(head), 2 * head.to_bytes(8, "little"))
    assert left_among({INIT}) == {INIT}
    for offset in (0, 5, 14, 18, 4095):
        changed = bytearray(init_text(INIT))
        changed[offset] ^= 1
        looking.only(INIT, content=bytes(changed))
        assert left_among({INIT}) == frozenset(), offset
    looking.only(INIT, content=init_text(INIT)[:9] + b"\xe8\1\2\3\4" + init_text(INIT)[14:])
    assert left_among({INIT}) == ({INIT} if unloaded else frozenset())


def test_text_of_init_is_as_packaged_for_its_own_place_alone(tmp_path: Path) -> None:
    looking = Looking(tmp_path, module=module_with_init())
    looking.only(INIT, content=init_text(INIT + PAGE_SIZE))
    assert looking.seen.outside.left_among({INIT}) == frozenset()


def test_no_more_pages_of_nobody_are_compared_than_a_few_modules_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may have as many as it likes; none of them costs more than the last."""
    looking = Looking(tmp_path, module=module_with_init())
    pages = [NOBODYS + PAGE_SIZE * number for number in range(200)]
    looking.only(*pages, content=init_text(INIT))
    asked: list[int] = []
    real = left_text._init_text_at

    def counted(kernel: Guest, judge: object, start: int, modules: object) -> set[int]:
        asked.append(start)
        return real(kernel, judge, start, modules)  # type: ignore[arg-type]

    monkeypatch.setattr(left_text, "_init_text_at", counted)
    assert not looking.seen.outside.left_among(set(pages))
    assert len(asked) == 64


def test_where_nobody_knows_the_packages_time_alone_tells(looking: Looking) -> None:
    looking.seen.reference.path = None
    assert looking.told(20, lambda number: looking.only(NOBODYS + PAGE_SIZE * number)) == []


def test_what_was_seen_long_ago_does_not_count() -> None:
    patience = Patience()
    for second in range(7):
        assert patience.often("thing", True, float(second), looks=8) is None
    for second in range(7, 71):
        assert patience.often("thing", False, float(second), looks=1) is None
    assert patience.often("thing", True, 71.0, looks=2) is None
