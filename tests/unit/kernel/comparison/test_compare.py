"""Live text against the reference: every byte that nothing explains is found, where it is."""

from __future__ import annotations

import struct
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.comparison.difference import Difference
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.reference.sites import SITE, SiteClass
from tests.unit.kernel.objects.test_slide import split_text, unmap
from tests.unit.kernel.synthetic_guest import (
    DATA,
    KERNEL_PHYSICAL,
    LINK,
    PROCESS_ROOT,
    RODATA,
    SITES,
    SLIDE,
    SYMBOLS,
    SYSCALL_TABLE,
    TEXT_SIZE,
    SyntheticGuest,
)

HOOK = bytes.fromhex("e9deadbeef")


def compare(seen: Guest, **options: object) -> RegionComparison:
    return compare_region(seen.memory, seen.kernel_space, seen.location, seen.text, **options)  # type: ignore[arg-type]  # options of the call under test


def test_healthy_text_differs_at_patch_sites_alone() -> None:
    seen = compare(SyntheticGuest().open())
    assert (seen.compared, seen.unread) == (TEXT_SIZE, 0)
    assert (seen.differing, seen.by_class) == (5, {"ftrace": 5})
    assert (seen.unexplained, seen.unexplained_bytes, seen.displaced, seen.writable) == ((), 0, (), 0)


def test_an_inline_hook_is_found_with_its_bytes() -> None:
    guest = SyntheticGuest()
    place = guest.physical(SYMBOLS["victim"]) + 0x10
    before = guest.poke(place, HOOK)
    seen = guest.open()
    found = compare(seen)
    assert found.unexplained == (Difference(guest.running("victim") + 0x10, 5, before, HOOK),)
    assert seen.program.describe(found.unexplained[0].address) == "victim+0x10"
    guest.poke(place, before)
    assert compare(seen).unexplained == ()


@pytest.mark.parametrize("offset", [0, 1, 7, TEXT_SIZE - 8, TEXT_SIZE - 1])
def test_a_single_changed_byte_is_found_wherever_it_is(offset: int) -> None:
    guest = SyntheticGuest()
    place = KERNEL_PHYSICAL + offset
    guest.poke(place, bytes([guest.ram[place] ^ 1]))
    assert [(run.address, run.length) for run in compare(guest.open()).unexplained] == [
        (LINK + SLIDE + offset, 1)
    ]


def test_a_region_that_does_not_end_before_the_last_address_is_not_read() -> None:
    seen = SyntheticGuest().open()
    nothing = np.zeros(8192, dtype=np.uint8)
    region = CodeRegion("module text", (1 << 64) - 4096, nothing, nothing, seen.text.sites[:0])
    with pytest.raises(MemoryFault):
        compare_region(seen.memory, seen.kernel_space, seen.location, region)


@pytest.mark.parametrize("step", [1, 12, 4096])
def test_a_text_that_is_changed_all_over_costs_little_and_is_counted_whole(step: int) -> None:
    """Whoever changes every twelfth byte has a finding made of each, were it for him."""
    size = 8 << 20
    ram = bytearray(size + (2 << 20))
    tables = {0x1000: {511: 0x2003}, 0x2000: {510: 0x3003}}
    tables[0x3000] = {number: (number + 1) << 21 | 0x81 for number in range(size >> 21)}
    for table, entries in tables.items():
        for slot, entry in entries.items():
            struct.pack_into("<Q", ram, table + 8 * slot, entry)
    memory = GuestMemory(ram, below_4g_bytes=len(ram))
    live = np.frombuffer(ram, dtype=np.uint8)[2 << 20 :]
    live[::step] = 1
    start = 0xFFFF_FFFF_8000_0000
    location = replace(SyntheticGuest().open().location, physical_base=2 << 20)
    nothing = np.zeros(size, dtype=np.uint8)
    sites: np.ndarray[tuple[int], np.dtype[np.void]] = np.empty(0, dtype=SITE)
    region = CodeRegion(".text", start, nothing, nothing, sites)
    tracemalloc.start()
    began = time.thread_time()
    try:
        found = compare_region(memory, AddressSpace(memory, 0x1000, 4), location, region)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    seconds = time.thread_time() - began
    wrong = len(range(0, size, step))
    assert (found.unexplained_bytes, found.differing) == (wrong, wrong)
    assert len(found.unexplained) + found.left_out == (1 if step == 1 else wrong)
    assert (found.unexplained[0].address, len(found.unexplained)) == (
        start,
        min(256, wrong if step > 1 else 1),
    )
    assert most < 24 * size
    assert seconds < 2.0


def test_a_change_beside_a_patch_site_is_not_excused_by_it() -> None:
    guest = SyntheticGuest()
    site = guest.physical(SITES[SiteClass.FTRACE])
    guest.poke(site + 5, bytes([guest.ram[site + 5] ^ 0xFF]))
    found = compare(guest.open())
    assert found.by_class == {"ftrace": 5}
    assert [run.address for run in found.unexplained] == [guest.running("victim") + 5]


def test_a_change_inside_a_site_is_told_by_class_and_said_to_be_unchecked() -> None:
    guest = SyntheticGuest()
    guest.poke(guest.physical(SITES[SiteClass.JUMP_LABEL]), b"\xcc")
    found = compare(guest.open())
    assert found.by_class == {"ftrace": 5, "jump_label": 1}
    assert set(found.unchecked) == {"ftrace", "jump_label"}
    assert found.unexplained == ()


def test_many_differences_are_counted_and_cut() -> None:
    guest = SyntheticGuest()
    for index in range(300):
        place = KERNEL_PHYSICAL + 0x8000 + 64 * index
        guest.poke(place, bytes([guest.ram[place] ^ 1]))
    found = compare(guest.open())
    assert (len(found.unexplained), found.left_out, found.unexplained_bytes) == (256, 44, 300)


def test_a_long_difference_shows_its_first_64_bytes() -> None:
    guest = SyntheticGuest()
    place = KERNEL_PHYSICAL + 0x8000
    guest.poke(place, bytes(byte ^ 0xFF for byte in guest.ram[place : place + 1000]))
    (run,) = compare(guest.open()).unexplained
    assert (run.length, len(run.expected), len(run.found)) == (1000, 64, 64)


def test_text_mapped_to_other_pages_is_displaced_and_compared_there() -> None:
    """A copy of the text page, hooked, and mapped in its place: the original stays pristine in RAM."""
    guest = SyntheticGuest()
    split_text(guest)
    copy = bytearray(guest.ram[KERNEL_PHYSICAL + 0x4000 : KERNEL_PHYSICAL + 0x5000])
    copy[0x80:0x85] = HOOK
    guest.poke(0x180_0000, bytes(copy))
    guest.map(LINK + SLIDE + 0x4000, 0x180_0000, 4096, executable=True)
    found = compare(guest.open())
    assert [(run.start, run.physical, run.size) for run in found.displaced] == [
        (LINK + SLIDE + 0x4000, 0x180_0000, 4096)
    ]
    assert [run.address for run in found.unexplained] == [LINK + SLIDE + 0x4080]


def test_unmapped_text_is_unread_and_nothing_else() -> None:
    guest = SyntheticGuest()
    split_text(guest)
    unmap(guest, LINK + SLIDE + 0x5000)
    guest.map(LINK + SLIDE + 0x6000, 0x7FFF_F000, 4096, executable=True)
    found = compare(guest.open())
    assert (found.compared, found.unread) == (TEXT_SIZE - 0x2000, 0x2000)
    assert found.unexplained == ()


def test_writable_text_is_counted() -> None:
    guest = SyntheticGuest()
    split_text(guest)
    guest.map(LINK + SLIDE + 0x5000, KERNEL_PHYSICAL + 0x5000, 4096, writable=True, executable=True)
    assert compare(guest.open()).writable == 4096


def test_a_process_with_a_text_of_its_own_is_compared_through_its_own_tables() -> None:
    """The kernel's tables stay honest; the one that a vCPU runs on maps a hooked copy."""
    guest = SyntheticGuest()
    guest.poke(0x180_0000, bytes(guest.ram[KERNEL_PHYSICAL : KERNEL_PHYSICAL + (1 << 21)]))
    guest.poke(0x180_4100, HOOK)
    # The process gets upper tables of its own, with another 2 MiB of text and the kernel's own data.
    guest.word(PROCESS_ROOT + 8 * (LINK >> 48 & 511), 0)
    guest.map(LINK + SLIDE, 0x180_0000, 1 << 21, executable=True, root=PROCESS_ROOT)
    guest.map(DATA + SLIDE, guest.physical(DATA), 1 << 21, writable=True, root=PROCESS_ROOT)
    fact = collect(guest.open(), ["kernel_text"])["kernel_text"].to_json()
    assert fact["mappings"] == 2
    assert [run["symbol"] for run in fact["unexplained"]] == ["after_victim+0x0"]
    assert fact["displaced"][0]["physical"] == hex(0x180_0000)


def test_read_only_data_is_compared_but_for_what_boot_fills() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    (region,) = seen.rodata
    found = compare_region(seen.memory, seen.kernel_space, seen.location, region)
    assert (found.compared, found.differing) == (0x4000 - 0x800, 0)
    guest.poke(guest.physical(SYMBOLS["__end_ro_after_init"]), b"\x00\x01\x02")
    found = compare_region(seen.memory, seen.kernel_space, seen.location, region)
    assert [run.address for run in found.unexplained] == [guest.running("__end_ro_after_init")]


def test_read_only_data_is_compared_in_each_look_however_often_it_was_right() -> None:
    """Each byte counts, the first and the last beside what boot fills too, and so does where it is mapped."""
    guest = SyntheticGuest()
    seen = guest.open()
    (region,) = seen.rodata

    def look() -> RegionComparison:
        return compare_region(seen.memory, seen.kernel_space, seen.location, region)

    healthy = look()
    assert look() == healthy
    assert region.skipped is not None
    first, last = np.flatnonzero(region.skipped)[[0, -1]].tolist()
    for at, differs in ((0, 1), (first - 1, 1), (first, 0), (last, 0), (last + 1, 1), (0x3FFF, 1)):
        place = guest.physical(RODATA) + at
        held = bytes(guest.ram[place : place + 1])
        guest.poke(place, bytes([held[0] ^ 1]))
        assert look().differing == differs, hex(at)
        guest.poke(place, held)
        assert look() == healthy
    guest.poke(0x180_0000, bytes(guest.ram[guest.physical(RODATA) : guest.physical(RODATA) + (1 << 21)]))
    guest.map(RODATA + SLIDE, 0x180_0000, 1 << 21)
    assert [run.physical for run in look().displaced] == [0x180_0000]


def test_raw_bytes_are_those_that_are_expected() -> None:
    raw = bytearray(64)
    nothing = np.zeros(64, dtype=np.uint8)
    with pytest.raises(ValueError, match="raw"):
        CodeRegion("text", LINK, nothing, nothing, np.empty(0, SITE), raw=raw)


def test_a_flipped_system_call_is_named() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    assert collect(seen, ["syscall_table"])["syscall_table"].to_json()["wrong"] == []
    guest.word(guest.physical(SYSCALL_TABLE) + 8 * 4, guest.running("victim"))
    guest.word(guest.physical(SYSCALL_TABLE) + 8 * 5, 0xFFFF_C900_0000_1000)
    fact = collect(seen, ["syscall_table"])["syscall_table"].to_json()
    assert fact["entries"] == 6
    assert [(e["index"], e["symbol"], e["found_symbol"]) for e in fact["wrong"]] == [
        (4, "__x64_sys_execve", "victim+0x0"),
        (5, "__x64_sys_exit", ""),
    ]
    assert fact["wrong"][0]["expected"] == hex(guest.running("__x64_sys_execve"))
    rodata = collect(seen, ["kernel_rodata"])["kernel_rodata"].to_json()
    assert rodata["unexplained"][0]["symbol"].startswith("sys_call_table+")


def test_an_unreadable_system_call_table_is_unread_not_right() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    place = guest.root
    for level in range(5, 2, -1):
        entry = place + 8 * (RODATA + SLIDE >> 12 + 9 * (level - 1) & 511)
        (place,) = struct.unpack_from("<Q", guest.ram, entry)
        place &= 0x000F_FFFF_FFFF_F000
    guest.word(place + 8 * (RODATA + SLIDE >> 21 & 511), 0)
    fact = collect(seen, ["syscall_table", "kernel_rodata"])
    assert fact["syscall_table"].to_json()["tables"] == [
        {"name": "sys_call_table", "dispatch": "table", "entries": 0, "unread": 6}
    ]
    assert "unavailable" in fact["kernel_rodata"].to_json()
