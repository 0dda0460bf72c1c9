"""Segment descriptors, task state and the stacks that exceptions switch to (SDM vol. 3A, 3.5, 8.2, 6.14.5).

GDTR must lead to the read-only view of the per-CPU `gdt_page`; its constant descriptors are those that
the reference has in its per-CPU section. No descriptor is a call gate, and none gives user mode more
than a code or data segment. The task state names the stacks of this CPU's entry area and no others.

Which CPU a vCPU is, the kernel's `__per_cpu_offset` tells: guest data, believed only if GDT and task
state both lie in the per-CPU area of one and the same CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["DESCRIPTORS", "ExpectedSegments", "expected_segments", "per_cpu_offset", "segment_deviations"]

DESCRIPTORS: Final = 16
"""Entries of the GDT of a 64-bit kernel (GDT_ENTRIES)."""

_AREA: Final = "struct cpu_entry_area"
_STACKS: Final = "struct cea_exception_stacks"
_IST: Final = ("DF_stack", "NMI_stack", "DB_stack", "MCE_stack", "VC_stack")
_MOST_CPUS: Final = 8192
_ACCESSED: Final = 1 << 40
_CONSTANT: Final = range(8)
_TSS, _LDT, _TLS, _CPU_NUMBER = 8, 10, range(12, 15), 15
_PRESENT, _NOT_SYSTEM, _LONG_CODE, _CODE = 1 << 47, 1 << 44, 1 << 53, 1 << 43
_TSS_TYPES: Final = (0x9, 0xB)
_SP0, _IST_FIRST, _TSS_BYTES = 4, 36, 104


@dataclass(frozen=True, slots=True)
class ExpectedSegments:
    """What a CPU's descriptors and stacks must be, offsets counted from its entry area."""

    constants: tuple[int, ...]
    tss: int
    entry_stack_top: int
    stacks: tuple[int, ...]
    gdt_page: int
    tss_page: int


def expected_segments(program: KernelProgram) -> ExpectedSegments:
    """Return what this kernel's per-CPU tables hold; raises UnavailableError if the reference is silent."""
    for name in ("gdt_page", "cpu_tss_rw", "__per_cpu_offset"):
        program.address(name)
    section = next((part for part in program.reference.sections if part.name == ".data..percpu"), None)
    symbol = program.reference.symbols.unique("gdt_page")
    if section is None or symbol is None:
        raise UnavailableError("the reference has no per-CPU data")
    start = symbol.address - section.address
    table = bytes(section.data[start : start + 8 * DESCRIPTORS])
    if start < 0 or len(table) != 8 * DESCRIPTORS:
        raise UnavailableError("the reference's gdt_page lies outside its per-CPU data")
    words = tuple(int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8))
    stacks = program.offset(_AREA, "estacks")
    entry = program.member(_AREA, "entry_stack_page")
    return ExpectedSegments(
        constants=tuple(words[index] & ~_ACCESSED for index in _CONSTANT),
        tss=program.offset(_AREA, "tss"),
        entry_stack_top=entry.offset + entry.size,
        stacks=tuple(
            stacks + program.offset(_STACKS, name) + program.member(_STACKS, name).size for name in _IST
        ),
        gdt_page=program.address("gdt_page"),
        tss_page=program.address("cpu_tss_rw"),
    )


def segment_deviations(
    cpu: CpuState, space: AddressSpace, program: KernelProgram, expected: ExpectedSegments
) -> Iterator[Deviation]:
    """Yield what is wrong with one vCPU's GDT and task state.

    Raises MemoryFault if they cannot be read.
    """
    where = f"CPU {cpu.index}"
    area = cpu.gdt.base
    if cpu.gdt.limit != 8 * DESCRIPTORS - 1:
        yield _deviation(cpu, f"GDTR limit of {where}", f"{8 * DESCRIPTORS - 1:#x}", f"{cpu.gdt.limit:#x}")
    page = space.translate(area)
    owner = per_cpu_offset(program, space, expected, page.physical)
    if owner is None:
        yield _deviation(cpu, f"GDTR of {where}", "gdt_page of a CPU", f"{page.physical:#x}")
    if page.writable:
        yield _deviation(cpu, f"GDT mapping of {where}", "read-only", f"writable at {area:#x}")
    table = space.read(area, 8 * DESCRIPTORS)
    words = [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8)]
    task = cpu.segments["TR"]
    for index, wrong in _wrong_descriptors(words, task.base, expected):
        yield _deviation(cpu, f"GDT entry {index} of {where}", wrong, f"{words[index]:#018x}")
    if task.base != area + expected.tss:
        yield _deviation(cpu, f"TR of {where}", f"{area + expected.tss:#x}", f"{task.base:#x}")
    if owner is not None:
        right = space.translate(owner + expected.tss_page & (1 << 64) - 1).physical
        found = space.translate(task.base).physical
        if found != right:
            yield _deviation(cpu, f"task state of {where}", f"cpu_tss_rw at {right:#x}", f"{found:#x}")
    yield from _stacks(cpu, area, space.read(task.base, _TSS_BYTES), expected)


def _stacks(cpu: CpuState, area: int, state: bytes, expected: ExpectedSegments) -> Iterator[Deviation]:
    places = [("sp0", _SP0, area + expected.entry_stack_top)]
    for index in range(7):
        top = area + expected.stacks[index] if index < len(expected.stacks) else 0
        places.append((f"exception stack {index + 1}", _IST_FIRST + 8 * index, top))
    for name, at, right in places:
        found = int.from_bytes(state[at : at + 8], "little")
        if found != right:
            yield _deviation(cpu, f"{name} of CPU {cpu.index}", f"{right:#x}", f"{found:#x}")


def _wrong_descriptors(
    words: list[int], task_state: int, expected: ExpectedSegments
) -> Iterator[tuple[int, str]]:
    for index in _CONSTANT:
        if words[index] & ~_ACCESSED != expected.constants[index]:
            yield index, f"{expected.constants[index]:#018x}"
    low, high = words[_TSS], words[_TSS + 1]
    base = (low >> 16 & 0xFF_FFFF) | (low >> 56) << 24 | (high & 0xFFFF_FFFF) << 32
    if base != task_state or low & _NOT_SYSTEM or low >> 40 & 0xF not in _TSS_TYPES:
        yield _TSS, f"a task state segment at {task_state:#x}"
    table = words[_LDT]
    if table and (table & _NOT_SYSTEM or table >> 40 & 0xF != 0x2):
        yield _LDT, "a local descriptor table or none"
    for index in (*_TLS, _CPU_NUMBER):
        word = words[index]
        # User segments: privilege 3, and no 64-bit code (SDM vol. 3A, 3.4.5).
        plain = word & _NOT_SYSTEM and word >> 45 & 3 == 3 and not (word & _CODE and word & _LONG_CODE)
        if word & _PRESENT and not plain:
            yield index, "a user segment or none"


def per_cpu_offset(
    program: KernelProgram, space: AddressSpace, expected: ExpectedSegments, physical: int
) -> int | None:
    """Return the per-CPU offset of the CPU whose `gdt_page` lies at a physical address, if any's does."""
    offsets = program.address("__per_cpu_offset")
    seen: set[int] = set()
    for number in range(_MOST_CPUS):
        try:
            offset = program.word(offsets + 8 * number)
            # CPUs that are not possible all have the same offset, that of the template.
            if offset in seen:
                return None
            seen.add(offset)
            if space.translate(offset + expected.gdt_page & (1 << 64) - 1).physical == physical:
                return offset
        except AffiantError:
            return None
    return None


def _deviation(cpu: CpuState, subject: str, expected: str, found: str) -> Deviation:
    return Deviation(cpu.index, "segments", subject, expected, found)
