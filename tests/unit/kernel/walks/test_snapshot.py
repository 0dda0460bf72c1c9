"""Memory of one moment: read page by page, however many pages a read is long."""

from __future__ import annotations

import pytest

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import UnavailableError
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, RAM_SIZE, SyntheticGuest

PLACE = 0x180_0000
MANY_PAGES = 1500  # more than Python calls into each other


def snapshot(guest: SyntheticGuest) -> Snapshot:
    return Snapshot(guest.open().program, Budget(seconds=60))


@pytest.mark.parametrize("offset", [0, 1, PAGE_SIZE - 1])
@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE + 7])
def test_a_read_is_what_stands_there(offset: int, size: int) -> None:
    guest = SyntheticGuest()
    content = bytes(index * 7 % 251 for index in range(6 * PAGE_SIZE))
    guest.poke(PLACE, content)
    read = snapshot(guest).read(DIRECT_MAP + PLACE + offset, size)
    assert read == content[offset : offset + size]


def test_a_read_of_many_pages_ends() -> None:
    read = snapshot(SyntheticGuest()).read(DIRECT_MAP + PLACE, MANY_PAGES * PAGE_SIZE)
    assert len(read) == MANY_PAGES * PAGE_SIZE


def test_a_read_that_leaves_memory_is_refused() -> None:
    with pytest.raises(MemoryFault):
        snapshot(SyntheticGuest()).read(DIRECT_MAP + RAM_SIZE - 8, 16)


def test_a_read_of_more_pages_than_may_be_is_refused() -> None:
    memory = snapshot(SyntheticGuest())
    with pytest.raises(UnavailableError, match="pages"):
        for _ in range(16):  # so many that none is kept until it is read again
            memory.read(DIRECT_MAP + (1 << 20), RAM_SIZE - (1 << 20))
