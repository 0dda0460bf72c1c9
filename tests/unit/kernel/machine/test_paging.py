"""Page tables: what the CPU would see, and tables made to mislead or to hang a reader."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.machine.memory import GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.model.errors import MalformedError
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, KERNEL_PHYSICAL, LINK, RODATA, SLIDE, SyntheticGuest

RAM = 1 << 20
NX = 1 << 63
KERNEL = 0xFFFF_FFFF_8000_0000


def space(tables: dict[int, dict[int, int]], *, levels: int = 4) -> AddressSpace:
    """Return a space with its root at 0x1000; `tables` maps a table's address to its entries."""
    ram = bytearray(RAM)
    for table, entries in tables.items():
        for slot, entry in entries.items():
            struct.pack_into("<Q", ram, table + 8 * slot, entry)
    return AddressSpace(GuestMemory(ram, below_4g_bytes=RAM), 0x1000, levels)


def kernel_space(entries: dict[int, int], *, upper: int = 0x3) -> AddressSpace:
    """Map 4 KiB pages at the start of the kernel's 1 GiB."""
    return space({0x1000: {511: 0x2000 | upper}, 0x2000: {510: 0x3003}, 0x3000: {0: 0x4003}, 0x4000: entries})


@pytest.mark.parametrize("levels", [4, 5])
def test_pages_of_each_size_are_translated(levels: int) -> None:
    guest = SyntheticGuest(levels=levels)
    tables = AddressSpace(guest.memory, guest.root, levels)
    text = tables.translate(LINK + SLIDE + 0x1234)
    assert (text.physical, text.page_size) == (KERNEL_PHYSICAL + 0x1234, 1 << 21)
    assert (text.writable, text.executable, text.user) == (False, True, False)
    assert not tables.translate(RODATA + SLIDE).executable
    assert tables.translate(DIRECT_MAP + 0x555).physical == 0x555 if levels == 5 else True
    assert tables.translate(0xFFFF_FFFF_C000_0010).page_size == 4096


def test_a_gigabyte_page_is_translated() -> None:
    tables = space({0x1000: {511: 0x2003}, 0x2000: {510: 0x4000_0083}})
    found = tables.translate(KERNEL + 0x1234_5678)
    assert (found.physical, found.page_size) == (0x4000_0000 + 0x1234_5678, 1 << 30)
    assert tables.leaves(KERNEL).size.tolist() == [1 << 30]


def test_rights_are_those_of_the_strictest_level() -> None:
    assert kernel_space({0: 0x8003}).translate(KERNEL).writable
    assert not kernel_space({0: 0x8003}, upper=0x1).translate(KERNEL).writable
    assert not kernel_space({0: 0x8003}, upper=0x3 | NX).translate(KERNEL).executable
    for upper in (0x1, 0x3, 0x7, 0x3 | NX, 0x1 | NX):
        for entry in (0x8001, 0x8003, 0x8007, 0x8003 | NX):
            tables = kernel_space({0: entry}, upper=upper)
            one, leaves = tables.translate(KERNEL), tables.leaves(KERNEL)
            assert (one.writable, one.executable, one.user) == (
                bool(leaves.writable[0]),
                bool(leaves.executable[0]),
                bool(leaves.user[0]),
            )


def test_a_walk_is_done_again_when_any_of_its_tables_has_changed() -> None:
    ram = bytearray(RAM)
    tables = {0x1000: {511: 0x2003}, 0x2000: {510: 0x3003}, 0x3000: {0: 0x4003}, 0x4000: {0: 0x8003}}
    for table, entries in tables.items():
        for slot, entry in entries.items():
            struct.pack_into("<Q", ram, table + 8 * slot, entry)
    walked = AddressSpace(GuestMemory(ram, below_4g_bytes=RAM), 0x1000, 4)
    first = walked.leaves(KERNEL)
    assert walked.leaves(KERNEL) is first, "the same tables gave another walk"
    changes = ((0x4000, 0x8003, 0x9003), (0x3000, 0x4003, 0x4001), (0x2000, 0x3003, 0), (0x1000, 0x2003, 0))
    for table, before, after in changes:
        slot = next(slot for slot in tables[table])
        struct.pack_into("<Q", ram, table + 8 * slot, after)
        changed = walked.leaves(KERNEL)
        assert (changed.physical.tolist(), changed.writable.tolist()) != ([0x8000], [True])
        struct.pack_into("<Q", ram, table + 8 * slot, before)
        assert walked.leaves(KERNEL).physical.tolist() == [0x8000]


@pytest.mark.parametrize(
    ("levels", "address"),
    [(4, 0x8000_0000_0000), (4, 0xFFFF_7FFF_FFFF_FFFF), (5, 1 << 56), (4, 1 << 64), (4, -1)],
)
def test_addresses_that_are_not_canonical_are_refused(levels: int, address: int) -> None:
    with pytest.raises(MemoryFault, match="canonical"):
        space({}, levels=levels).translate(address)


def test_an_unmapped_page_and_a_table_outside_ram_are_faults() -> None:
    with pytest.raises(MemoryFault, match="not mapped"):
        kernel_space({}).translate(KERNEL)
    with pytest.raises(MemoryFault, match="no RAM"):
        space({0x1000: {511: 0x7FFF_F003}}).translate(KERNEL)


def test_a_table_outside_ram_is_counted_and_not_passed_over() -> None:
    """Code could hide behind a table in device memory, which a reader of RAM can't see."""
    leaves = space({0x1000: {511: 0x7FFF_F003}}).leaves()
    assert len(leaves) == 0
    assert leaves.unreadable_tables == 1


def test_a_large_page_above_its_level_maps_nothing() -> None:
    tables = space({0x1000: {511: 0x2083}})
    assert len(tables.leaves()) == 0
    with pytest.raises(MemoryFault, match="reserved"):
        tables.translate(KERNEL)


def test_tables_that_point_to_themselves_are_refused() -> None:
    tables = space({0x1000: dict.fromkeys(range(512), 0x1003)}, levels=5)
    with pytest.raises(MalformedError, match="more than"):
        tables.leaves(maximum_tables=1 << 12)


def hostile_space(shape: dict[int, tuple[int, int]], levels: int) -> AddressSpace:
    """Return a space whose tables, page 1 of RAM first, hold so many entries each, all alike."""
    ram = bytearray(RAM)
    words = np.frombuffer(ram, dtype="<u8").reshape(-1, 512)
    for table, (entries, entry) in shape.items():
        words[table, :entries] = entry
    return AddressSpace(GuestMemory(ram, below_4g_bytes=RAM), 0x1000, levels)


@pytest.mark.parametrize(
    ("levels", "shape"),
    [
        (5, {1: (512, 0x1003)}),
        (4, {1: (512, 0x1003)}),
        (4, {1: (512, 0x2003), 2: (20, 0x3003), 3: (6, 0x4003), 4: (512, 0x8003)}),
        (4, {1: (1, 0x2003), 2: (16, 0x3003), 3: (512, 0x4003), 4: (512, 0x8003)}),
        (4, {1: (1, 0x2003), 2: (15, 0x3003), 3: (512, 0x4003), 4: (512, 0x8003)}),
        (4, {1: (1, 0x2003), 2: (127, 0x3003), 3: (512, 0x4003), 4: (1, 0x8003)}),
        (5, {1: (127, 0x2003), 2: (1, 0x3003), 3: (1, 0x4003), 4: (512, 0x8083)}),
        (5, {1: (250, 0x2003), 2: (30, 0x3003), 3: (512, 0x8083)}),
    ],
    ids=["self", "self, 4 levels", "wide", "all pages", "nearly all", "all tables", "large", "gigabytes"],
)
def test_no_tables_cost_more_memory_than_a_walk_may(levels: int, shape: dict[int, tuple[int, int]]) -> None:
    """Few tables, shared by many, stand for more pages than there is memory in which to hold them."""
    tables = hostile_space(shape, levels)
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedError):
            tables.leaves(0, (1 << 64) - 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 300 << 20


def test_tables_that_map_more_pages_than_are_told_are_refused() -> None:
    tables = hostile_space({1: (512, 0x2003), 2: (4, 0x3003), 3: (1, 0x4003), 4: (512, 0x8003)}, 4)
    assert len(tables.leaves(0, (1 << 47) - 1, maximum_leaves=1 << 19)) == 1 << 19
    with pytest.raises(MalformedError, match="map more than"):
        tables.leaves(0, (1 << 47) - 1, maximum_leaves=(1 << 19) - 1)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (2**64 - 8, 2**64 + 4088), (2**64, 2**64 + 4096), (-4096, 0)]
)
def test_extents_of_what_are_no_addresses_are_faults(start: int, end: int) -> None:
    with pytest.raises(MemoryFault):
        kernel_space({}).extents(start, end)


def test_extents_join_neighbours_and_break_where_rights_or_frames_change() -> None:
    tables = kernel_space({0: 0x8001, 1: 0x9001, 2: 0xB001, 3: 0xC003, 5: 0xE003})
    runs = tables.extents(KERNEL + 0x800, KERNEL + 0x5800)
    assert [(run.start - KERNEL, run.physical, run.size, run.writable) for run in runs] == [
        (0x800, 0x8800, 0x1800, False),
        (0x2000, 0xB000, 0x1000, False),
        (0x3000, 0xC000, 0x1000, True),
        (0x5000, 0xE000, 0x800, True),
    ]


def test_reads_cross_pages_that_lie_apart() -> None:
    tables = kernel_space({0: 0x8001, 1: 0x6001})
    ram = bytearray(tables.memory.read(0, RAM >> 4)) + bytearray(RAM - (RAM >> 4))
    ram[0x8FFC:0x9000], ram[0x6000:0x6004] = b"left", b"over"
    moved = AddressSpace(GuestMemory(ram, below_4g_bytes=RAM), 0x1000, 4)
    assert moved.read(KERNEL + 0xFFC, 8) == b"leftover"
    with pytest.raises(MemoryFault):
        moved.read(KERNEL + 0x1FFC, 8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([4, 5]), st.integers(1, 40))
def test_random_tables_never_hang_and_both_walks_agree(seed: int, levels: int, density: int) -> None:
    """Tables full of entries into a small RAM: every leaf of the sweep is what a single walk finds."""
    noise = random.Random(seed)
    ram = bytearray(1 << 17)
    for table in range(1, 16):
        for _ in range(density):
            entry = noise.randrange(32) << 12 | noise.getrandbits(12) & 0xFFF | noise.getrandbits(1) << 63
            struct.pack_into("<Q", ram, table << 12 | 8 * noise.randrange(512), entry)
    tables = AddressSpace(GuestMemory(ram, below_4g_bytes=len(ram)), 0x1000, levels)
    try:
        leaves = tables.leaves(maximum_tables=4096)
    except MalformedError:
        return
    assert all(
        before <= after
        for before, after in zip(leaves.address.tolist(), leaves.address.tolist()[1:], strict=False)
    )
    for index in range(min(len(leaves), 50)):
        found = tables.translate(int(leaves.address[index]))
        assert (found.physical, found.page_size) == (int(leaves.physical[index]), int(leaves.size[index]))
        assert (found.writable, found.executable) == (
            bool(leaves.writable[index]),
            bool(leaves.executable[index]),
        )


def test_only_real_roots_make_a_space() -> None:
    memory = GuestMemory(bytearray(RAM), below_4g_bytes=RAM)
    for root, levels in ((0x1001, 4), (0x1000, 3)):
        with pytest.raises(ValueError, match="levels"):
            AddressSpace(memory, root, levels)
