"""Where the guest's kernel runs: its KASLR slide and physical base.

Both are anchored on vCPU registers and confirmed against the reference's text. Hints that the guest
writes (vmcoreinfo, kallsyms, boot parameters) are never read. Two anchors propose a slide:

* the IDT that IDTR points to: its exception gates must be the reference's handlers, all moved by one
  slide; most votes win, so a few hooked gates change nothing;
* the executable pages that CR3 maps in the kernel's 1 GiB: the first one is `_text`.

Confirmation reads the text that the *vCPU's own page tables* map at the proposed place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["KERNEL_MAP", "KernelLocation", "address_spaces", "locate_kernel", "still_there"]

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Start of the kernel image's mapping (Documentation/arch/x86/x86_64/mm.rst, `__START_KERNEL_map`)."""

_LARGEST_SLIDE = 1 << 30  # KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE
_SLIDE_STEP = 0x20_0000  # CONFIG_PHYSICAL_ALIGN of x86-64
_PTI_USER_TABLE = 1 << 12  # with page table isolation, the user half's table is the page after the kernel's
_MOST_CANDIDATES = 16
_SAMPLES = 64
# Patching and relocation change a tenth of the text; two unrelated places agree on far less than half.
_ENOUGH_EQUAL = 0.6

_HANDLERS: Final = {
    0: "asm_exc_divide_error",
    1: "asm_exc_debug",
    3: "asm_exc_int3",
    4: "asm_exc_overflow",
    5: "asm_exc_bounds",
    6: "asm_exc_invalid_op",
    7: "asm_exc_device_not_available",
    8: "asm_exc_double_fault",
    10: "asm_exc_invalid_tss",
    11: "asm_exc_segment_not_present",
    12: "asm_exc_stack_segment",
    13: "asm_exc_general_protection",
    14: "asm_exc_page_fault",
    16: "asm_exc_coprocessor_error",
    17: "asm_exc_alignment_check",
    18: "asm_exc_machine_check",
    19: "asm_exc_simd_coprocessor_error",
}


@dataclass(frozen=True, slots=True)
class KernelLocation:
    """Where the reference's kernel runs in this guest; made by `locate_kernel` alone.

    Guaranteed when it returns: a vCPU's page tables map, at link address plus `slide`, text that
    agrees with the reference in most sampled bytes, and lead from `init_top_pgt` to the physical
    address `root`. The kernel image is physically contiguous, so `root` also tells `physical_base`:
    text that the tables map elsewhere stands out against it.

    `anchor` is `idt` or `page tables`; `levels` is 4 or 5.
    """

    slide: int
    physical_base: int
    root: int
    levels: int
    anchor: str

    def physical(self, address: int) -> int:
        """Return the physical address of a running kernel-image address, by the linear rule."""
        return address - KERNEL_MAP + self.physical_base


def locate_kernel(memory: GuestMemory, cpus: Sequence[CpuState], reference: ReferenceImage) -> KernelLocation:
    """Find the reference's kernel in a running guest.

    Raises UnavailableError, with the reason in one sentence, while no vCPU runs that kernel:
    firmware, boot loader, real mode, or another kernel.
    """
    if not any(cpu.paging_levels for cpu in cpus):
        raise UnavailableError("no vCPU runs in 64-bit mode: the guest is still in firmware, or off")
    mapped = False
    for cpu in cpus:
        for space in address_spaces(memory, cpu):
            tried: set[int] = set()
            for anchor, slide in _proposals(space, cpu, reference):
                mapped = True
                if slide in tried:
                    continue
                tried.add(slide)
                root = _confirm(space, slide, reference)
                if root is not None:
                    return KernelLocation(slide, *root, space.levels, anchor)
    if mapped:
        raise UnavailableError(f"the kernel that runs is not the reference's ({reference.release})")
    raise UnavailableError("no vCPU maps a kernel: the guest is still in firmware or in its boot loader")


def still_there(
    space: AddressSpace, location: KernelLocation, cpus: Sequence[CpuState], reference: ReferenceImage
) -> bool:
    """Tell whether a kernel that was located before still runs there, by its own page tables.

    True only if some vCPU has the reference's IDT, read through `space` (the kernel's own tables), and
    the text there still agrees. Firmware after a reset has an IDT of its own, whatever RAM still holds.
    """
    for cpu in cpus:
        if cpu.paging_levels == location.levels and (location.slide in _slides_by_idt(space, cpu, reference)):
            return _confirm(space, location.slide, reference) == (location.physical_base, location.root)
    return False


def address_spaces(memory: GuestMemory, cpu: CpuState) -> Iterator[AddressSpace]:
    """Yield the address spaces that the vCPU may run kernel code in.

    With page table isolation, a vCPU in user mode has the user half loaded; the kernel's own
    table is then the page before it.
    """
    if not cpu.paging_levels:
        return
    yield AddressSpace(memory, cpu.page_table, cpu.paging_levels)
    if cpu.page_table & _PTI_USER_TABLE:
        yield AddressSpace(memory, cpu.page_table & ~_PTI_USER_TABLE, cpu.paging_levels)


def _slides_by_idt(space: AddressSpace, cpu: CpuState, reference: ReferenceImage) -> list[int]:
    votes: Counter[int] = Counter()
    for vector, handler in _gates(space, cpu):
        symbol = reference.symbols.unique(_HANDLERS[vector])
        if symbol is not None:
            votes[handler - symbol.address] += 1
    return [slide for slide, count in votes.most_common(4) if count > 1 and _possible(slide)]


def _proposals(space: AddressSpace, cpu: CpuState, reference: ReferenceImage) -> Iterator[tuple[str, int]]:
    for slide in _slides_by_idt(space, cpu, reference):
        yield "idt", slide
    text = reference.symbols.unique("_text")
    if text is None:
        return
    try:
        extents = space.extents(KERNEL_MAP, KERNEL_MAP + _LARGEST_SLIDE)
    except MalformedError:
        return
    for extent in [extent for extent in extents if extent.executable][:_MOST_CANDIDATES]:
        if _possible(extent.start - text.address):
            yield "page tables", extent.start - text.address


def _possible(slide: int) -> bool:
    return 0 <= slide < _LARGEST_SLIDE and slide % _SLIDE_STEP == 0


def _gates(space: AddressSpace, cpu: CpuState) -> Iterator[tuple[int, int]]:
    """Yield (vector, handler) of the exception gates that can be read (SDM vol. 3A, 6.14.1)."""
    for vector in _HANDLERS:
        if 16 * vector + 15 > cpu.idt.limit:
            return
        try:
            gate = int.from_bytes(space.read((cpu.idt.base + 16 * vector) & (1 << 64) - 1, 16), "little")
        except MemoryFault:
            continue
        yield vector, (gate & 0xFFFF) | (gate >> 32 & 0xFFFF_0000) | (gate >> 64 & 0xFFFF_FFFF) << 32


def _confirm(space: AddressSpace, slide: int, reference: ReferenceImage) -> tuple[int, int] | None:
    """Return (physical base, root) if the text mapped at this slide is the reference's, else None."""
    address, linked = reference.section(".text")
    root = reference.symbols.unique("init_top_pgt")
    pages = len(linked) // PAGE_SIZE
    if not pages or root is None:
        return None
    equal = sampled = 0
    for page in range(0, pages, max(1, pages // _SAMPLES)):
        sampled += PAGE_SIZE
        try:
            live = np.frombuffer(space.read(address + slide + page * PAGE_SIZE, PAGE_SIZE), dtype=np.uint8)
        except MemoryFault:
            continue
        expected = np.frombuffer(linked[page * PAGE_SIZE : (page + 1) * PAGE_SIZE], dtype=np.uint8)
        equal += int(np.count_nonzero(live == expected))
    if equal < _ENOUGH_EQUAL * sampled:
        return None
    try:
        physical = space.translate(root.address + slide).physical
    except MemoryFault:
        return None
    return physical - (root.address + slide - KERNEL_MAP), physical
