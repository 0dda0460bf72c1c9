"""Control registers: the protections that one instruction can switch off (Intel SDM vol. 3A, 2.5).

Which bits of CR4 must be set depends on the processor's model. A bit must be set if the kernel
found the feature or pinned the bit (its data says so), or if any vCPU has it set, or had it in an
earlier look. So a guest that forges its data *and* clears a bit on every vCPU is still found, unless
it did so before the first look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError

__all__ = ["ControlMemory", "control_deviations", "debug_deviations"]

_CR0: Final = {"PE": 1 << 0, "WP": 1 << 16, "PG": 1 << 31}
_EFER: Final = {"SCE": 1 << 0, "LMA": 1 << 10, "NXE": 1 << 11}
_CR4: Final = {
    "PAE": 1 << 5,
    "UMIP": 1 << 11,
    "FSGSBASE": 1 << 16,
    "SMEP": 1 << 20,
    "SMAP": 1 << 21,
    "CET": 1 << 23,
    "FRED": 1 << 32,
}
_ALWAYS: Final = _CR4["PAE"]
_PINNED: Final = sum(_CR4.values())
# X86_FEATURE_*, as word and bit of cpuinfo_x86.x86_capability (arch/x86/include/asm/cpufeatures.h).
_FEATURES: Final = {"UMIP": (16, 2), "FSGSBASE": (9, 0), "SMEP": (9, 7), "SMAP": (9, 20)}
_KERNEL_ADDRESS = 1 << 63
_GENERAL_DETECT = 1 << 13


class ControlMemory:
    """The bits of CR4 that any vCPU of this kernel has been seen with: they are never given up."""

    def __init__(self) -> None:
        self.seen = 0


def control_deviations(
    cpus: Sequence[CpuState], program: KernelProgram, memory: ControlMemory
) -> Iterator[Deviation]:
    """Yield each protection that a vCPU in 64-bit mode lacks; the union of all vCPUs is remembered."""
    running = [cpu for cpu in cpus if cpu.paging_levels]
    for cpu in running:
        memory.seen |= cpu.cr4 & _PINNED
    required = memory.seen | _ALWAYS | _offered(program)
    for cpu in running:
        for register, value, bits in (
            ("CR0", cpu.cr0, _CR0),
            ("EFER", cpu.efer, _EFER),
            ("CR4", cpu.cr4, {name: bit for name, bit in _CR4.items() if bit & required}),
        ):
            for name, bit in bits.items():
                if not value & bit:
                    yield Deviation(
                        cpu.index, "control", f"{register}.{name} of CPU {cpu.index}", "1", f"0 ({value:#x})"
                    )


def debug_deviations(cpus: Sequence[CpuState], program: KernelProgram) -> Iterator[Deviation]:
    """Yield each enabled breakpoint on a kernel address, and DR7.GD (SDM vol. 3B, 18.2)."""
    for cpu in cpus:
        for number, address in enumerate(cpu.debug):
            if cpu.dr7 >> 2 * number & 3 and address & _KERNEL_ADDRESS:
                place = program.describe(address) or "outside the kernel image"
                yield Deviation(
                    cpu.index,
                    "breakpoints",
                    f"DR{number} of CPU {cpu.index}",
                    "no breakpoint on a kernel address",
                    f"{address:#x} ({place}), DR7 {cpu.dr7:#x}",
                )
        if cpu.dr7 & _GENERAL_DETECT:
            yield Deviation(cpu.index, "breakpoints", f"DR7.GD of CPU {cpu.index}", "0", f"1 ({cpu.dr7:#x})")


def _offered(program: KernelProgram) -> int:
    """Return the bits of CR4 that the kernel pinned, or for which it found the feature: guest data."""
    offered = 0
    try:
        pinned = program.find("cr4_pinned_bits")
        offered = (program.word(pinned) if pinned is not None else 0) & _PINNED
        place = program.address("boot_cpu_data") + program.offset("struct cpuinfo_x86", "x86_capability")
        for name, (word, bit) in _FEATURES.items():
            value = int.from_bytes(program.read(place + 4 * word, 4), "little")
            offered |= _CR4[name] if value >> bit & 1 else 0
    except AffiantError:
        pass  # what other vCPUs and earlier looks show still counts
    return offered
