"""Looks at patch sites of the synthetic kernel, and what code may be put there by whom."""

from __future__ import annotations

import struct
from collections.abc import Set
from dataclasses import dataclass, field

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.site_content.image import KernelImage
from tests.unit.kernel.site_world import (
    FTRACE_CALLER,
    KPROBES,
    LIST_END,
    OPS_LIST,
    PLACES,
    SLIDE,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import LINK, MODULE_AREA

NOP5 = bytes.fromhex("0f1f440000")
RETURN = bytes.fromhex("c3cccccccc")
FOREIGN = MODULE_AREA + 0x10_0000


def wrong(world: SiteWorld) -> list[tuple[str, int]]:
    return [(run.site, run.address - SLIDE) for run in world.look().unexplained]


def passing(world: SiteWorld) -> list[tuple[str, int]]:
    return [(run.site, run.address - SLIDE) for run in world.look().passing]


def assert_found(world: SiteWorld, site: str, *places: str) -> None:
    assert wrong(world) == [(site, PLACES[place]) for place in places]
    assert all(run.reason for run in world.look().unexplained)


def trampoline_of(world: SiteWorld, function: int, *, ops_function: int | None = None) -> tuple[int, int]:
    """Register an ops as ftrace does, with a trampoline made for it; return (trampoline, ops)."""
    code = bytearray(world.reference.section(".text")[1][FTRACE_CALLER - LINK :][:20])
    size = len(code)
    ops = world.heap(bytes(56))
    code[4:11] = bytes.fromhex("488b15") + struct.pack("<i", size + 5 - 11)
    code[11:16] = near(0xE8, FOREIGN + 11, function)
    whole = bytes(code) + RETURN + ops.to_bytes(8, "little")
    world.heap(whole, executable_at=FOREIGN)
    register(world, ops, function if ops_function is None else ops_function)
    return FOREIGN, ops


def register(world: SiteWorld, ops: int, function: int, trampoline: int = FOREIGN) -> None:
    content = struct.pack("<QQQQ", function, LIST_END + SLIDE, 0, trampoline)
    world.guest.poke(world.guest.resolve(ops), content)
    world.write(OPS_LIST, ops.to_bytes(8, "little"))


def trace(world: SiteWorld, target: int) -> None:
    world.write(PLACES["traced"], near(0xE8, PLACES["traced"] + SLIDE, target))


@dataclass
class Vouching:
    """Says of addresses outside of the kernel image what a look at their content would say."""

    functions: set[int] = field(default_factory=set)
    generated: set[int] = field(default_factory=set)

    def functions_among(self, addresses: Set[int]) -> frozenset[int]:
        return frozenset(addresses & self.functions)

    def generated_among(self, addresses: Set[int]) -> frozenset[int]:
        return frozenset(addresses & self.generated)

    def left_among(self, pages: Set[int]) -> frozenset[int]:
        return frozenset()


def content_with(world: SiteWorld, outside: Vouching) -> SiteContent:
    """Make sites whose judge has somebody who vouches for code outside of the image."""
    seen = world.seen
    image = KernelImage(seen.memory, seen.kernel_space, seen.program, seen.text, outside=outside)
    return SiteContent(seen.memory, seen.kernel_space, seen.program, seen.text, image=image)


def look_with(world: SiteWorld, outside: Vouching | SiteContent) -> RegionComparison:
    """Look with somebody who vouches for code outside of the image."""
    seen = world.seen
    content = outside if isinstance(outside, SiteContent) else content_with(world, outside)
    return compare_region(seen.memory, seen.kernel_space, seen.location, seen.text, content)


def probe(world: SiteWorld, address: int, handler: int, *, saved: int) -> int:
    content = struct.pack("<QQQQQQQB", 0, KPROBES + SLIDE, 0, 0, address, handler, 0, saved).ljust(72, b"\0")
    structure = world.heap(content)
    world.write(KPROBES + 8 * 5, structure.to_bytes(8, "little"))
    return structure
