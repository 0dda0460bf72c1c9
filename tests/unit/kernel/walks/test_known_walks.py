"""Walks that need not be done again, and all that has them done again."""

from __future__ import annotations

import pytest

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.snapshot import Budget, Snapshot
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, MODULE_AREA, SyntheticGuest

PLACE = 0x180_0000
ADDRESS = DIRECT_MAP + PLACE
PAIR = MODULE_AREA + 0x10_0000
walks = 0


def several(_: KernelProgram, memory: Snapshot, address: int) -> tuple[bytes, ...]:
    """Read a word, five bytes of two words, a name, and what crosses the end of a page."""
    global walks
    walks += 1
    return (
        memory.read(address, 8),
        memory.read(address + 13, 5),
        memory.text(address + 32, 16),
        memory.read(address + PAGE_SIZE - 12, 20),
    )


READ = {
    *range(8),
    *range(13, 18),
    *range(32, 37),  # the name, and the NUL behind it
    *range(PAGE_SIZE - 12, PAGE_SIZE + 8),
}


@pytest.fixture
def guest() -> SyntheticGuest:
    guest = SyntheticGuest()
    guest.poke(PLACE, b"\x01" * (2 * PAGE_SIZE))
    guest.poke(PLACE + 32, b"name\0other\0")
    return guest


def look(program: KernelProgram, address: int = ADDRESS) -> tuple[bytes, ...]:
    return looked_through(Snapshot(program, Budget(seconds=60)), several, address)


def test_each_byte_that_was_read_and_no_other_has_a_walk_done_again(guest: SyntheticGuest) -> None:
    program = guest.open().program
    first = look(program)
    assert look(program) is first
    for at in (*range(48), *range(PAGE_SIZE - 16, PAGE_SIZE + 16)):
        before = walks
        held = guest.ram[PLACE + at]
        guest.ram[PLACE + at] ^= 0xFF
        found = look(program)
        assert (found != first, walks - before) == ((True, 1) if at in READ else (False, 0)), at
        guest.ram[PLACE + at] = held
        assert look(program) == first


def test_a_walk_is_done_again_where_other_memory_is_mapped(guest: SyntheticGuest) -> None:
    for page in (0, PAGE_SIZE):
        guest.map(PAIR + page, PLACE + page, PAGE_SIZE)
        guest.poke(PLACE + 4 * PAGE_SIZE + page, b"\x02" * PAGE_SIZE)
    program = guest.open().program
    first = look(program, PAIR)
    assert look(program, PAIR) is first
    guest.map(PAIR + PAGE_SIZE, PLACE + 5 * PAGE_SIZE, PAGE_SIZE)
    assert look(program, PAIR)[3] == b"\x01" * 12 + b"\x02" * 8
    guest.map(PAIR, 1 << 40, PAGE_SIZE)  # no RAM is there
    with pytest.raises(MemoryFault):
        look(program, PAIR)


def missing(_: KernelProgram, memory: Snapshot) -> bool:
    try:
        memory.read(PAIR, 8)
    except MemoryFault:
        return False
    return True


def test_what_was_not_there_is_looked_for_again(guest: SyntheticGuest) -> None:
    program = guest.open().program
    memory = Snapshot(program, Budget(seconds=60))
    assert not looked_through(memory, missing)
    guest.map(PAIR, PLACE, PAGE_SIZE)
    assert looked_through(memory, missing)


def much(_: KernelProgram, memory: Snapshot, size: int) -> bytes:
    return memory.read(ADDRESS, size)


@pytest.mark.parametrize(("size", "kept"), [(1 << 20, True), ((1 << 20) + 8, False)])
def test_only_so_much_is_remembered(guest: SyntheticGuest, size: int, *, kept: bool) -> None:
    """More than 2^17 words are read each time."""
    program = guest.open().program
    first = looked_through(Snapshot(program, Budget(seconds=60)), much, size)
    again = looked_through(Snapshot(program, Budget(seconds=60)), much, size)
    assert again == first
    assert (again is first) == kept
