"""Physical memory: where RAM is, and where it must not be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from affiant.kernel.machine.memory import GuestMemory, MemoryFault, SegmentReader
from affiant.kernel.machine.page_set import PageSet
from affiant.model.errors import SetupError, UnavailableError

MIB = 1 << 20


def split_memory() -> GuestMemory:
    """8 MiB, of which 4 lie below 4 GiB; each page starts with its file offset."""
    ram = bytearray(8 * MIB)
    for offset in range(0, len(ram), 4096):
        ram[offset : offset + 8] = offset.to_bytes(8, "little")
    return GuestMemory(ram, below_4g_bytes=4 * MIB)


def test_memory_above_the_hole_is_found_at_its_file_offset() -> None:
    memory = split_memory()
    assert memory.read(3 * MIB, 8) == (3 * MIB).to_bytes(8, "little")
    assert memory.read((1 << 32) + MIB, 8) == (5 * MIB).to_bytes(8, "little")


@pytest.mark.parametrize(
    "address", [4 * MIB, (1 << 32) - 8, (1 << 32) + 4 * MIB, 0xA0000, 0xBFFF8, 1 << 63, (1 << 64) - 8]
)
def test_addresses_that_no_ram_answers_to_are_refused(address: int) -> None:
    memory = split_memory()
    assert not memory.contains(address, 8)
    with pytest.raises(MemoryFault):
        memory.read(address, 8)
    with pytest.raises(MemoryFault):
        memory.array(address, 8)


def test_a_read_across_the_end_of_a_segment_is_refused() -> None:
    memory = split_memory()
    for end in (4 * MIB, 0xA0000, (1 << 32) + 4 * MIB):
        assert len(memory.read(end - 8, 8)) == 8
        with pytest.raises(MemoryFault):
            memory.read(end - 4, 8)


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(MemoryFault):
        split_memory().read(0x1000, -1)


def test_a_read_is_bounded() -> None:
    with pytest.raises(ValueError, match="at most"):
        split_memory().read(0, 1 << 30)


def test_tables_outside_ram_are_marked_and_zero() -> None:
    memory = split_memory()
    frames = np.array(
        [0x100, 0x400, (1 << 20) + 0x100, 0xA0, (1 << 52) - 1, (1 << 20) + 0x400], dtype=np.uint64
    )
    pages, readable = memory.tables(frames)
    assert readable.tolist() == [True, False, True, False, False, False]
    assert pages[:, 0].tolist() == [MIB, 0, 5 * MIB, 0, 0, 0]


def test_kept_ranges_are_compared_with_what_they_hold_now() -> None:
    ram = bytearray(2 * MIB)
    memory = GuestMemory(ram, below_4g_bytes=MIB)
    kept = memory.keep([(0x3004, bytes(7)), ((1 << 32) + 0x7000, bytes(4096))])
    assert memory.still_holds(kept)
    for place, counts in ((0x3003, 0), (0x3004, 1), (0x300A, 1), (0x300B, 0), (MIB + 0x7FFF, 1)):
        ram[place] = 1
        assert memory.still_holds(kept) == (not counts)
        ram[place] = 0
        assert memory.still_holds(kept)
    with pytest.raises(MemoryFault):
        memory.keep([(MIB - 4, bytes(8))])


def test_views_cannot_write_to_the_guest() -> None:
    memory = split_memory()
    with pytest.raises(TypeError):
        memory.view(0x1000, 8)[0] = 1
    assert not memory.array(0x1000, 8).flags.writeable


@pytest.mark.parametrize(("size", "below"), [(0, 4096), (4095, 4095), (8192, 0), (8192, 12288), (8192, 100)])
def test_sizes_that_are_no_machine_are_misuse(size: int, below: int) -> None:
    with pytest.raises(ValueError, match="guest memory"):
        GuestMemory(bytearray(size), below_4g_bytes=below)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(2 * MIB))
    with pytest.raises(SetupError, match="the machine has"):
        GuestMemory.open(path, memory_bytes=4 * MIB)
    with pytest.raises(UnavailableError, match="cannot be opened"):
        GuestMemory.open(tmp_path / "nothing", memory_bytes=4 * MIB)


def test_what_the_guest_writes_is_seen_at_once_through_path_and_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(2 * MIB))
    with path.open("r+b") as file:
        with GuestMemory.open(file.fileno(), memory_bytes=2 * MIB) as memory:
            file.seek(0x1000)
            file.write(b"hello")
            file.flush()
            assert memory.read(0x1000, 5) == b"hello"
        assert not file.closed
        assert os.fstat(file.fileno())


def test_scans_skip_what_was_never_written(tmp_path: Path) -> None:
    """Reading a hole of a RAM file would allocate it on the host."""
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"needle")
        file.flush()
    with GuestMemory.open(path, memory_bytes=64 * MIB) as memory:
        assert sum(size for _, size in memory.populated()) < MIB
        assert memory.find(b"needle", maximum=4) == [32 * MIB]


def test_scans_are_bounded_and_give_physical_addresses() -> None:
    ram = bytearray(8 * MIB)
    for offset in (MIB, 2 * MIB, 6 * MIB):
        ram[offset : offset + 6] = b"needle"
    memory = GuestMemory(ram, below_4g_bytes=4 * MIB)
    assert memory.find(b"needle", maximum=8) == [MIB, 2 * MIB, (1 << 32) + 2 * MIB]
    assert memory.find(b"needle", maximum=2) == [MIB, 2 * MIB]


HIGH = (1 << 32) + MIB  # page 0x500 of the RAM file
READS: dict[str, tuple[Callable[[GuestMemory], bytes], set[int]]] = {
    "view": (lambda memory: bytes(memory.view(0x1FF8, 16)), {1, 2}),
    "read": (lambda memory: memory.read(HIGH, 8), {0x500}),
    "array": (lambda memory: memory.array(0x3000, 0x2001).tobytes(), {3, 4, 5}),
    "comparison": (lambda memory: bytes([memory.holds(0x6000, np.zeros(8, np.uint8))]), {6}),
    "comparison of a part": (
        lambda memory: bytes([memory.holds_part(0xB000, bytearray(24), 8, 16)]),
        {11},
    ),
    "integers": (
        lambda memory: memory.integers(np.array([0x7008, HIGH, 4 * MIB], np.uint64), 8)[0].tobytes(),
        {7, 0x500},
    ),
    "tables": (
        lambda memory: memory.tables(np.array([8, HIGH >> 12, 0xA0], np.uint64))[0].tobytes(),
        {8, 0x500},
    ),
    "kept ranges": (
        lambda memory: bytes([memory.still_holds(memory.keep([(0x9FF8, bytes(16)), (HIGH, bytes(8))]))]),
        {9, 10, 0x500},
    ),
    "drgn's": (lambda memory: bytes(SegmentReader(memory, memory.segments[2]).read(MIB, 8)), {0x500}),
}


def pages_in(pages: PageSet) -> set[int]:
    return {first + step for first, count in pages.runs() for step in range(count)}


@pytest.mark.parametrize("way", READS)
def test_each_way_to_read_is_noted_and_read_from_copies(way: str) -> None:
    """Copies that hold something else than RAM show where a look read: it must be there and nowhere else."""
    read, expected = READS[way]
    ram, copies = bytearray(8 * MIB), bytearray(b"\xee" * (8 * MIB))
    memory = GuestMemory(ram, below_4g_bytes=4 * MIB, copies=copies)
    live = read(memory)
    with memory.noted() as pages:
        assert read(memory) == live
    assert {page for page in expected if not pages.has(page << 12, 1)} == set()
    assert len(pages) == len(expected)
    with memory.copied(pages) as missed:
        assert read(memory) != live
    assert len(missed) == 0
    assert read(memory) == live


@pytest.mark.parametrize("way", READS)
def test_what_was_not_copied_is_read_live_and_noted(way: str) -> None:
    read, expected = READS[way]
    copies = bytearray(b"\xee" * (8 * MIB))
    memory = GuestMemory(bytearray(8 * MIB), below_4g_bytes=4 * MIB, copies=copies)
    some = PageSet(8 * MIB >> 12)
    some.add_runs([(page, 1) for page in sorted(expected)[1:]])
    with memory.copied(some) as missed:
        assert read(memory) == read(GuestMemory(bytearray(8 * MIB), below_4g_bytes=4 * MIB))
    assert missed.has(min(expected) << 12, 1)


def test_runs_hold_every_page_and_bridge_small_gaps() -> None:
    pages = PageSet(100)
    for offset, size in ((0x1000, 1), (0x1FFF, 2), (0x9000, 0x1000), (0x20000, 0x3000), (0x63000, 0)):
        pages.add(offset, size)
    assert pages.runs() == [(1, 9), (32, 3)]
    assert PageSet(100).runs() == []


def test_without_a_place_for_copies_there_are_none(tmp_path: Path) -> None:
    memory = split_memory()
    with pytest.raises(ValueError, match="no copies"), memory.copied(PageSet(2048)):
        pass
    with pytest.raises(ValueError, match="as much room"):
        GuestMemory(bytearray(MIB), below_4g_bytes=MIB, copies=bytearray(2 * MIB))
