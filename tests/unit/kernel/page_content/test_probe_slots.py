"""Slots of probes: copies of the kernel's instructions, and jumps behind the originals."""

from __future__ import annotations

import struct

import pytest

from affiant.kernel.site_content.probes import Probes
from tests.unit.kernel.site_world import AGGREGATE, KPROBES, OPTIMIZED, OTHER, PROBED, SiteWorld, near
from tests.unit.kernel.synthetic_guest import MODULE_AREA, SLIDE

SLOT = MODULE_AREA + 0x10_0000
AT = PROBED + 1 + SLIDE
# mov rbp, rsp; sub rsp, 16: what stands behind push rbp at `probed`.
FIRST, BOTH = bytes.fromhex("4889e5"), bytes.fromhex("4889e54883ec10")


@pytest.fixture
def world() -> SiteWorld:
    return SiteWorld()


def register(world: SiteWorld, address: int, *, slot: int = 0, detour: int = 0) -> tuple[Probes, int]:
    """Register a probe, and return the probes of now and where its structure is."""
    handler = AGGREGATE + SLIDE  # one of several probes: only these are optimised
    content = struct.pack("<QQQQQQQBxxxxxxxQ", 0, KPROBES + SLIDE, 0, 0, address, handler, 0, 0x48, slot)
    structure = world.heap(content + detour.to_bytes(8, "little"))
    # The list of the others is empty: it leads back to itself.
    world.guest.poke(world.guest.resolve(structure) + 16, 2 * (structure + 16).to_bytes(8, "little"))
    world.write(KPROBES + 8 * 5, structure.to_bytes(8, "little"))
    probes = world.seen.text_content.probes
    probes.refresh()
    return probes, structure


def back(code: bytes, place: int, to: int) -> bytes:
    return code + near(0xE9, place + len(code), to)


def test_a_copy_and_a_jump_behind_the_original_are_legal(world: SiteWorld) -> None:
    probes, _ = register(world, AT, slot=SLOT)
    copied = back(FIRST, SLOT, AT + 3)
    assert probes.slot_objection(SLOT, copied + bytes(7), in_use=True) == ("", bytes(7))
    assert probes.slot_objection(SLOT, FIRST + b"\xcc" + bytes(11), in_use=True) == ("", bytes(11))


def test_a_slot_keeps_its_form_when_its_probe_is_gone(world: SiteWorld) -> None:
    probes = world.seen.text_content.probes
    copied = back(FIRST, SLOT, AT + 3)
    assert probes.slot_objection(SLOT, copied, in_use=False) == ("", b"")
    assert probes.slot_objection(SLOT, copied, in_use=True)[0] == "is a slot in use by no registered probe"


@pytest.mark.parametrize(
    "content",
    [
        back(bytes.fromhex("4889e0"), SLOT, AT + 3),
        back(FIRST, SLOT, AT + 4),
        back(FIRST, SLOT, OTHER + SLIDE),
        FIRST + FIRST,
        bytes.fromhex("0f22c0cc"),
        bytes.fromhex("06"),
    ],
    ids=["another instruction", "a bit further", "another function", "no end", "its own", "no instruction"],
)
def test_a_slot_with_anything_else_is_found(world: SiteWorld, content: bytes) -> None:
    probes, _ = register(world, AT, slot=SLOT)
    assert probes.slot_objection(SLOT, content.ljust(15, b"\0"), in_use=True)[0]


def test_what_stands_behind_the_copy_is_told_as_not_judged(world: SiteWorld) -> None:
    probes, _ = register(world, AT, slot=SLOT)
    copied = back(FIRST, SLOT, AT + 3)
    reason, rest = probes.slot_objection(SLOT, copied + b"\x90\xc3", in_use=True)
    assert (reason, rest) == ("", b"\x90\xc3")


def test_a_copy_in_a_module_is_taken_on_trust(world: SiteWorld) -> None:
    probes, _ = register(world, MODULE_AREA + 0x40, slot=SLOT)
    assert probes.slot_objection(SLOT, FIRST + b"\xcc", in_use=True) == ("", FIRST + b"\xcc")


def detour(
    structure: int, *, code: bytes = BOTH, to: int = AT + len(BOTH), callback: int = OPTIMIZED
) -> bytes:
    head = bytes.fromhex("9c0f1f00") + b"\x48\xbf" + structure.to_bytes(8, "little")
    head += near(0xE8, SLOT + 14, callback + SLIDE) + b"\x9d"
    return back(head + code, SLOT, to)


def test_a_filled_template_and_the_replaced_instructions_are_legal(world: SiteWorld) -> None:
    probes, structure = register(world, AT, detour=SLOT)
    content = detour(structure)
    assert probes.detour_objection(SLOT, content + bytes(9), in_use=True) == ("", bytes(9))
    with_clac = content[:1] + bytes.fromhex("0f01ca") + content[4:]
    assert probes.detour_objection(SLOT, with_clac, in_use=True) == ("", b"")


def test_a_detour_that_is_not_what_the_kernel_makes_is_found(world: SiteWorld) -> None:
    probes, structure = register(world, AT, detour=SLOT)
    for content in (
        detour(structure, callback=OTHER),
        detour(structure + 64),
        detour(structure, code=bytes.fromhex("4889e04883ec10")),
        detour(structure, to=AT + 8),
        detour(structure, to=OTHER + SLIDE),
        b"\x90" + detour(structure)[1:],
        detour(structure)[:-5],
    ):
        assert probes.detour_objection(SLOT, content, in_use=True)[0], content.hex()
    assert probes.detour_objection(SLOT + 0x80, detour(structure), in_use=True)[0]
