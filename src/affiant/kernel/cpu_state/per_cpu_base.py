"""The GS base by which the kernel finds its per-CPU data: that of the CPU, and no other.

On its way in, the kernel swaps the user's GS base for its own (SWAPGS): while user code runs, the
kernel's waits in KERNEL_GS_BASE; while the kernel runs, it is the GS base. Code that swaps the two may
be found before or after it did: the entry code, and code that must not be traced or probed
(`noinstr`), where the scheduler swaps to look at the user's. Whoever changes the kernel's base gives
it another `current`, other stacks, other counters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.segments import ExpectedSegments, per_cpu_offset
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.machine.saved_cpu import SavedCpu
from affiant.kernel.objects.program import KernelProgram

__all__ = ["per_cpu_base_deviations"]

_USER = 3
_SWAPPING: Final = (
    ("__entry_text_start", "__entry_text_end"),
    ("__noinstr_text_start", "__noinstr_text_end"),
)


def per_cpu_base_deviations(
    cpu: SavedCpu, space: AddressSpace, program: KernelProgram, expected: ExpectedSegments
) -> Iterator[Deviation]:
    """Yield a deviation if the CPU's own per-CPU area is not where the kernel will look for it.

    Raises MemoryFault if the CPU's descriptor table is not mapped.
    """
    own = per_cpu_offset(program, space, expected, space.translate(cpu.gdt.base).physical)
    if own is None:
        return  # a descriptor table of nobody is told by the fact `cpu_state`
    active, waiting = cpu.segments["GS"].base, cpu.kernel_gs_base
    user = cpu.privilege == _USER
    if own == (waiting if user else active) or (own == waiting and _may_swap(cpu, program)):
        return
    yield Deviation(
        cpu.index,
        "per-CPU data",
        f"{'KERNEL_GS_BASE' if user else 'GS base'} of CPU {cpu.index}",
        f"{own:#x}",
        f"{waiting if user else active:#x}, at {program.describe(cpu.instruction_pointer) or 'user code'}",
    )


def _may_swap(cpu: SavedCpu, program: KernelProgram) -> bool:
    for start, end in _SWAPPING:
        first, last = program.find(start), program.find(end)
        if first is not None and last is not None and first <= cpu.instruction_pointer < last:
            return True
    return False
