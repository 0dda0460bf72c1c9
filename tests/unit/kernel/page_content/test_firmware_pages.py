"""Code of EFI services: no reference tells what it is, so the first look does."""

from __future__ import annotations

import pytest

from affiant.kernel.guest import Guest
from affiant.kernel.page_content.claim import Claim
from affiant.kernel.page_content.firmware_pages import FirmwarePages
from affiant.kernel.page_content.look import PageContent, read_page_content
from affiant.kernel.page_content.view import View
from affiant.model.errors import UnavailableError
from tests.unit.kernel.synthetic_guest import (
    DIRECT_MAP,
    MODULE_AREA,
    PROCESS_ROOT,
    SYMBOLS,
    SyntheticGuest,
    make_reference,
)

SERVICES, PHYSICAL, TABLE = 0xFFFF_FFFE_FE00_0000, 0x180_0000, PROCESS_ROOT + 0x1_0000
WRITABLE = SERVICES + 0x1_0000
EFI_MM = SYMBOLS["efi"] + 0x60


@pytest.fixture
def guest() -> SyntheticGuest:
    """A guest whose firmware has two pages of code, and one of code and data."""
    guest = SyntheticGuest(reference=make_reference(further_symbols={"efi_mm": EFI_MM}))
    guest.ram[TABLE : TABLE + 4096] = guest.ram[guest.root : guest.root + 4096]
    guest.word(TABLE + 8 * (SERVICES >> 48 & 511), 0)
    for page in range(2):
        put_code(guest, page)
    guest.map(WRITABLE, PHYSICAL + 0x8000, 4096, writable=True, executable=True, root=TABLE)
    guest.word(guest.physical(EFI_MM) + 8, DIRECT_MAP + TABLE)
    return guest


def put_code(guest: SyntheticGuest, page: int, *, writable: bool = False) -> None:
    place = 4096 * page
    guest.map(SERVICES + place, PHYSICAL + place, 4096, executable=True, writable=writable, root=TABLE)
    guest.poke(PHYSICAL + place, b"\x55\x48\x89\xe5\xc3".ljust(4096, b"\0"))


def claims(seen: Guest, owner: FirmwarePages) -> list[Claim]:
    return list(owner.claims(View(seen)))


def faults(seen: Guest, owner: FirmwarePages) -> list[tuple[int, str]]:
    return [(fault.address, fault.reason) for claim in claims(seen, owner) for fault in claim.faults]


def test_what_the_first_look_finds_is_trusted_and_told_as_such(guest: SyntheticGuest) -> None:
    found = claims(guest.open(), FirmwarePages())
    assert [(claim.start, claim.trusted, claim.faults) for claim in found] == [
        (SERVICES, 1, ()),
        (SERVICES + 4096, 1, ()),
        (WRITABLE, 1, ()),
    ]
    assert len({claim.trust for claim in found}) == 2


def test_code_that_is_changed_later_is_found_until_it_is_restored(guest: SyntheticGuest) -> None:
    seen, owner = guest.open(), FirmwarePages()
    assert faults(seen, owner) == []
    before = guest.poke(PHYSICAL + 4096 + 2, b"\xcc")
    assert faults(seen, owner) == [(SERVICES + 4096 + 2, "is not what the first look found")]
    guest.poke(PHYSICAL + 4096 + 2, before)
    assert faults(seen, owner) == []


def test_code_that_comes_later_is_found(guest: SyntheticGuest) -> None:
    seen, owner = guest.open(), FirmwarePages()
    assert faults(seen, owner) == []
    put_code(guest, 3)
    assert faults(seen, owner) == [(SERVICES + 3 * 4096, "was not there in the first look")]


def test_code_that_becomes_writable_is_found(guest: SyntheticGuest) -> None:
    seen, owner = guest.open(), FirmwarePages()
    assert faults(seen, owner) == []
    put_code(guest, 1, writable=True)
    assert faults(seen, owner) == [(SERVICES + 4096, "was not writable in the first look")]


def test_data_beside_code_may_change(guest: SyntheticGuest) -> None:
    seen, owner = guest.open(), FirmwarePages()
    assert faults(seen, owner) == []
    guest.poke(PHYSICAL + 0x8000, b"anything")
    assert faults(seen, owner) == []


def booting(guest: SyntheticGuest, state: int) -> None:
    guest.poke(guest.physical(SYMBOLS["system_state"]), state.to_bytes(4, "little"))


def look(seen: Guest, now: float) -> PageContent:
    return read_page_content(seen, seen.page_owners, now=now)


def test_nothing_is_taken_while_the_kernel_boots(guest: SyntheticGuest) -> None:
    """Firmware is moved meanwhile; nobody says that it is in order."""
    seen = guest.open()
    booting(guest, 0)
    first = look(seen, 0.0)
    assert (list(first.unread), "efi services" in first.owners) == (["efi services"], False)
    booting(guest, 3)
    guest.poke(PHYSICAL, b"\xe9")
    second = look(seen, 1.0)
    assert (second.unread, second.owners["efi services"].pieces, second.settling) == ({}, 3, ())


def test_a_kernel_that_says_for_ever_that_it_boots_is_not_believed_for_ever(guest: SyntheticGuest) -> None:
    seen = guest.open()
    booting(guest, 0)
    told = [bool(look(seen, 10.0 * number).unread) for number in range(20)]
    assert told == [number < 12 for number in range(20)]
    guest.poke(PHYSICAL, b"\xe9")
    found = [look(seen, 200.0 + number).faults for number in range(6)][-1]
    assert [fault.reason for fault in found] == ["is not what the first look found"]


def test_what_is_not_known_of_firmware_hides_no_page_of_nobody(guest: SyntheticGuest) -> None:
    seen = guest.open()
    booting(guest, 0)
    guest.map(MODULE_AREA + 0x30_0000, 0x140_0000, 4096, executable=True)
    guest.poke(0x140_0000, b"\x0f\x20\xc0\xc3")
    found = [look(seen, float(number)) for number in range(6)][-1]
    assert ([fault.reason for fault in found.faults], list(found.unread)) == (
        ["belongs to nobody (1 pages)"],
        ["efi services"],
    )


def test_what_the_kernel_says_after_the_first_look_hides_nothing(guest: SyntheticGuest) -> None:
    seen = guest.open()
    assert look(seen, 0.0).settling == ()
    guest.poke(PHYSICAL, b"\xe9")
    booting(guest, 0)
    assert [fault.reason for fault in look(seen, 1.0).settling] == ["is not what the first look found"]


def test_firmware_whose_tables_are_said_to_be_gone_is_not_known_any_more(guest: SyntheticGuest) -> None:
    """Which tables are the firmware's is the guest's word: none of them is no word on what was changed."""
    seen = guest.open()
    assert look(seen, 0.0).unread == {}
    guest.poke(PHYSICAL, b"\xe9")
    guest.word(guest.physical(EFI_MM) + 8, 0)
    found = look(seen, 1.0)
    assert (list(found.unread), found.settling) == (["efi services"], ())


def test_firmware_that_is_mapped_no_more_is_not_known_any_more(guest: SyntheticGuest) -> None:
    seen, owner = guest.open(), FirmwarePages()
    assert faults(seen, owner) == []
    guest.map(SERVICES + 4096, PHYSICAL + 4096, 4096, root=TABLE)
    with pytest.raises(UnavailableError, match="1 pages"):
        claims(seen, owner)


def test_firmware_that_comes_where_there_was_none_is_found(guest: SyntheticGuest) -> None:
    """A guest that was started without EFI has no services, whatever it says later."""
    guest.word(guest.physical(EFI_MM) + 8, 0)
    seen, owner = guest.open(), FirmwarePages()
    assert claims(seen, owner) == []
    guest.word(guest.physical(EFI_MM) + 8, DIRECT_MAP + TABLE)
    assert {reason for _, reason in faults(seen, owner)} == {"was not there in the first look"}


def test_more_code_than_any_firmware_has_is_no_look(guest: SyntheticGuest) -> None:
    for part in range(33):
        guest.map(0xFFFF_FFF0_0000_0000 + (part << 21), 0, 2 << 20, executable=True, root=TABLE)
    with pytest.raises(UnavailableError, match="more code"):
        claims(guest.open(), FirmwarePages())
