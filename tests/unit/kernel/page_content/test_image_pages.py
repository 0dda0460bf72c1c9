"""Fixed code outside of text and module area: what starts other processors, and the vsyscall page."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from affiant.kernel.page_content.image_pages import RealModePages, VsyscallPage
from affiant.kernel.page_content.view import View
from affiant.kernel.page_tables.fixed_code import VSYSCALL
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.reference.linked import LinkedKernel
from affiant.kernel.reference.sites import Sites
from affiant.model.errors import AffiantError
from tests.unit.kernel.synthetic_guest import DATA, DATA_SIZE, DIRECT_MAP, SyntheticGuest, make_reference

BLOB, RELOCATIONS = DATA + 0x1000, DATA + 0x1100
HEADER, PAGE = DATA + 0x1200, DATA + 0x2000
PHYSICAL = 0x9_8000
START, END = 0x40, 0x60
SYMBOLS = {
    "real_mode_blob": BLOB,
    "real_mode_blob_end": RELOCATIONS,
    "real_mode_relocs": RELOCATIONS,
    "real_mode_header": HEADER,
    "__vsyscall_page": PAGE,
}


def image(*, relocated: int = START + 4) -> ReferenceImage:
    """Return a reference whose data holds the code for real mode; `relocated` is where a segment stands."""
    data = bytearray(DATA_SIZE)
    blob = bytearray(RELOCATIONS - BLOB)
    struct.pack_into("<II", blob, 0, START, END)
    blob[START:END] = bytes.fromhex("fa") * (END - START)
    struct.pack_into("<HxxI", blob, START + 4, 0, 0x50)
    data[BLOB - DATA : RELOCATIONS - DATA] = blob
    words = (1, relocated, 3, 0, 4, START + 8)
    struct.pack_into(f"<{len(words)}I", data, RELOCATIONS - DATA, *words)
    data[PAGE - DATA : PAGE - DATA + 4096] = bytes.fromhex("48c7c0600000000f05c3").ljust(4096, b"\xcc")
    plain = make_reference(further_symbols=SYMBOLS)
    sections = tuple(
        replace(section, data=memoryview(bytes(data))) if section.name == ".data" else section
        for section in plain.sections
    )
    return ReferenceImage(
        digest=bytes(32),
        metadata=plain.metadata,
        kernel=LinkedKernel(sections),
        symbols=plain.symbols,
        sites=Sites(plain.tables, plain.sites),
        relocations=plain.relocations,
        data={},
    )


@pytest.fixture
def guest() -> SyntheticGuest:
    guest = SyntheticGuest(reference=image())
    guest.word(guest.physical(HEADER), DIRECT_MAP + PHYSICAL)
    code = bytearray(bytes.fromhex("fa") * (END - START))
    struct.pack_into("<HxxI", code, 4, PHYSICAL >> 4, PHYSICAL + 0x50)
    guest.poke(PHYSICAL + START, bytes(code))
    # Header and data of the code change while the guest boots.
    guest.poke(PHYSICAL, b"\x11" * START)
    guest.poke(PHYSICAL + END, b"\x22" * 0x40)
    return guest


def test_code_for_real_mode_is_relocated_and_its_data_is_none(guest: SyntheticGuest) -> None:
    seen = guest.open()
    (claim,) = RealModePages(seen).claims(View(seen))
    assert (claim.start, claim.end, claim.faults) == (DIRECT_MAP + PHYSICAL, DIRECT_MAP + PHYSICAL + 4096, ())


@pytest.mark.parametrize("offset", [START, START + 4, START + 9, END - 1])
def test_a_changed_byte_of_it_is_found(guest: SyntheticGuest, offset: int) -> None:
    guest.poke(PHYSICAL + offset, b"\x90")
    seen = guest.open()
    (claim,) = RealModePages(seen).claims(View(seen))
    assert [fault.address for fault in claim.faults] == [DIRECT_MAP + PHYSICAL + offset]


def test_a_header_that_leads_nowhere_claims_nothing(guest: SyntheticGuest) -> None:
    """Executable pages there then have no place where they belong, which `page_rights` tells."""
    guest.word(guest.physical(HEADER), DIRECT_MAP + (1 << 40))
    seen = guest.open()
    assert list(RealModePages(seen).claims(View(seen))) == []


def test_relocations_outside_of_the_code_are_no_reference() -> None:
    guest = SyntheticGuest(reference=image(relocated=1 << 20))
    guest.word(guest.physical(HEADER), DIRECT_MAP + PHYSICAL)
    seen = guest.open()
    with pytest.raises(AffiantError):
        list(RealModePages(seen).claims(View(seen)))


def test_the_vsyscall_page_is_the_images_own_where_it_is_executable(guest: SyntheticGuest) -> None:
    seen = guest.open()
    assert list(VsyscallPage(seen).claims(View(seen))) == []
    guest.poke(guest.physical(PAGE), bytes(seen.reference.read(PAGE, 4096)))
    guest.map(VSYSCALL, guest.physical(PAGE), 4096, executable=True)
    (claim,) = VsyscallPage(seen).claims(View(seen))
    assert claim.faults == ()
    guest.poke(guest.physical(PAGE) + 9, b"\x90")
    (claim,) = VsyscallPage(seen).claims(View(seen))
    assert [fault.address for fault in claim.faults] == [VSYSCALL + 9]
