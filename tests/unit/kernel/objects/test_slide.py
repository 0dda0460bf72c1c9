"""Locating the kernel: anchored on vCPUs, confirmed by text, and honest where it is not there."""

from __future__ import annotations

import pytest

from affiant.kernel.objects.slide import KERNEL_MAP, locate_kernel
from affiant.model.errors import UnavailableError
from tests.unit.kernel.synthetic_guest import (
    IDT_PHYSICAL,
    KERNEL_PHYSICAL,
    LINK,
    PROCESS_ROOT,
    SLIDE,
    SyntheticGuest,
    other_kernel,
)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("slide", [0, 0x20_0000, 0x340_0000, 0x3E00_0000 - 0x200_0000])
def test_the_kernel_is_found_at_every_slide(levels: int, slide: int) -> None:
    guest = SyntheticGuest(levels=levels, slide=slide)
    location = locate_kernel(guest.memory, guest.cpus, guest.reference)
    assert (location.slide, location.levels, location.anchor) == (slide, levels, "idt")
    assert location.physical(LINK + slide) == KERNEL_PHYSICAL


def test_a_hooked_gate_does_not_move_the_kernel() -> None:
    guest = SyntheticGuest()
    guest.poke(IDT_PHYSICAL + 16 * 14, bytes.fromhex("0000100000 8e0000 ffffffff00000000"))
    assert locate_kernel(guest.memory, guest.cpus, guest.reference).slide == SLIDE


def test_without_an_idt_the_page_tables_tell() -> None:
    guest = SyntheticGuest()
    guest.poke(IDT_PHYSICAL, bytes(4096))
    location = locate_kernel(guest.memory, guest.cpus, guest.reference)
    assert (location.slide, location.anchor) == (SLIDE, "page tables")


def test_gates_of_a_forged_slide_are_not_believed() -> None:
    """A guest that writes an IDT for another slide is found where its text is."""
    guest, forged = SyntheticGuest(), SyntheticGuest(slide=SLIDE + 0x80_0000)
    guest.poke(IDT_PHYSICAL, bytes(forged.ram[IDT_PHYSICAL : IDT_PHYSICAL + 4096]))
    location = locate_kernel(guest.memory, guest.cpus, guest.reference)
    assert (location.slide, location.anchor) == (SLIDE, "page tables")


def test_a_displaced_first_page_does_not_move_the_physical_base() -> None:
    guest = SyntheticGuest()
    base = locate_kernel(guest.memory, guest.cpus, guest.reference).physical_base
    split_text(guest)
    guest.map(LINK + SLIDE, 0x180_0000, 4096, executable=True)
    assert locate_kernel(guest.memory, guest.cpus, guest.reference).physical_base == base


def split_text(guest: SyntheticGuest) -> None:
    """Replace the 2 MiB page of text by 4 KiB pages."""
    place, table = 0, guest.root
    for level in range(guest.levels, 1, -1):
        place = table + 8 * (LINK + SLIDE >> 12 + 9 * (level - 1) & 511)
        table = int.from_bytes(guest.ram[place : place + 8], "little") & 0x000F_FFFF_FFFF_F000
    guest.word(place, 0)
    for offset in range(0, 1 << 21, 4096):
        guest.map(LINK + SLIDE + offset, KERNEL_PHYSICAL + offset, 4096, executable=True)


def test_under_page_table_isolation_the_kernel_half_is_found() -> None:
    guest = SyntheticGuest()
    user_root = PROCESS_ROOT + 0x1000
    guest.poke(user_root, bytes(4096))
    location = locate_kernel(guest.memory, [guest.cpu(user_root)], guest.reference)
    assert location.slide == SLIDE


def test_one_vcpu_in_the_kernel_is_enough() -> None:
    guest = SyntheticGuest()
    offline = guest.cpu(0, cr0=0x6000_0010, efer=0)
    assert locate_kernel(guest.memory, [offline, *guest.cpus], guest.reference).slide == SLIDE


def test_a_guest_in_real_mode_is_not_yet_there() -> None:
    guest = SyntheticGuest()
    with pytest.raises(UnavailableError, match="firmware, or off"):
        locate_kernel(guest.memory, [guest.cpu(0, cr0=0x6000_0010, efer=0)], guest.reference)
    with pytest.raises(UnavailableError, match="firmware, or off"):
        locate_kernel(guest.memory, [], guest.reference)


def test_firmware_that_maps_no_kernel_is_not_yet_there() -> None:
    guest = SyntheticGuest()
    with pytest.raises(UnavailableError, match="boot loader"):
        locate_kernel(guest.memory, [guest.cpu(0x150_0000, idt=0x1000)], guest.reference)


def test_another_kernel_is_told_apart() -> None:
    guest = SyntheticGuest()
    with pytest.raises(UnavailableError, match=r"not the reference's \(6.1.0-other\)"):
        locate_kernel(guest.memory, guest.cpus, other_kernel())


def test_a_kernel_that_is_mostly_unmapped_is_not_confirmed() -> None:
    guest = SyntheticGuest()
    split_text(guest)
    for offset in range(4096, 1 << 21, 4096):
        unmap(guest, LINK + SLIDE + offset)
    with pytest.raises(UnavailableError, match="not the reference's"):
        locate_kernel(guest.memory, guest.cpus, guest.reference)


def unmap(guest: SyntheticGuest, address: int) -> None:
    place, table = 0, guest.root
    for level in range(guest.levels, 0, -1):
        place = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
        table = int.from_bytes(guest.ram[place : place + 8], "little") & 0x000F_FFFF_FFFF_F000
    guest.word(place, 0)


def test_refresh_survives_processes_that_are_gone() -> None:
    """Between reading CR3 and looking, every process on a vCPU may have exited."""
    guest = SyntheticGuest()
    seen = guest.open()
    guest.poke(PROCESS_ROOT, bytes(4096))
    again = seen.refresh(guest.cpus)
    assert again.location == seen.location
    assert again.program is seen.program


def test_refresh_sees_that_a_guest_was_reset_though_its_ram_still_holds_the_kernel() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    firmware = guest.cpu(0x150_0000, idt=0x1000)
    with pytest.raises(UnavailableError):
        seen.refresh([firmware])


def test_refresh_finds_a_kernel_that_came_back_elsewhere() -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    reborn = SyntheticGuest(slide=SLIDE + 0x20_0000)
    guest.ram[:] = reborn.ram
    again = seen.refresh(guest.cpus)
    assert again.location.slide == SLIDE + 0x20_0000
    assert again.program is not seen.program
    assert (
        again.location.physical(LINK + SLIDE) - KERNEL_MAP
        != seen.location.physical(LINK + SLIDE) - KERNEL_MAP
    )
