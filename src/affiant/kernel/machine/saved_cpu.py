"""The state of one vCPU as QEMU saves it: system registers that no listing shows among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from affiant.kernel.machine.cpu import CpuState, DescriptorTable, SegmentRegister

__all__ = ["SavedCpu", "SavedCpus", "disagreement"]

_CR0_PG, _CR4_FRED, _EFER_LMA = 1 << 31, 1 << 32, 1 << 10
_ADDRESS_BITS = 0x000F_FFFF_FFFF_F000
_LISTED = (1 << 32) - 1  # QEMU lists the lower halves of CR0 and CR4,
_LISTED_FLAGS = 0x00FF_FF00  # and of a descriptor's word no bits of its base


@dataclass(frozen=True, slots=True)
class SavedCpu:
    """Registers of one vCPU at one moment, all of the guest's choice; names are those of Intel's manual.

    `segments` maps ES, CS, SS, DS, FS, GS, LDT and TR. `spec_ctrl` is None where QEMU left it out with
    what follows something that we cannot read; a register that it leaves out because it is 0 is 0.
    `flags` (RFLAGS) and `halted` are those of the register listing of the same moment.
    """

    index: int
    instruction_pointer: int
    flags: int
    halted: bool
    cr0: int
    cr3: int
    cr4: int
    efer: int
    gdt: DescriptorTable
    idt: DescriptorTable
    segments: Mapping[str, SegmentRegister]
    debug: tuple[int, ...]
    star: int
    lstar: int
    cstar: int
    syscall_mask: int
    kernel_gs_base: int
    sysenter_cs: int
    sysenter_esp: int
    sysenter_eip: int
    pat: int
    spec_ctrl: int | None

    @property
    def in_64_bit_mode(self) -> bool:
        """Whether IA-32e mode is active, and the kernel may run (SDM vol. 3A, 4.1.1)."""
        return bool(self.cr0 & _CR0_PG and self.efer & _EFER_LMA)

    @property
    def page_table(self) -> int:
        """Physical address of the top-level table: CR3 without PCID and cache bits."""
        return self.cr3 & _ADDRESS_BITS

    @property
    def privilege(self) -> int:
        """The current privilege level: that of the stack segment (SDM vol. 3A, 5.5)."""
        return self.segments["SS"].flags >> 13 & 3

    @property
    def delivers_events_by_fred(self) -> bool:
        """CR4.FRED: system calls and interrupts enter by other registers than these."""
        return bool(self.cr4 & _CR4_FRED)


@dataclass(frozen=True, slots=True)
class SavedCpus:
    """All vCPUs at one moment of monotonic time, or why there are none."""

    taken_at: float
    cpus: tuple[SavedCpu, ...]
    reason: str = ""


def disagreement(saved: SavedCpu, listed: CpuState) -> str:
    """Name the first register that a listing of the same moment shows otherwise; "" if none.

    Compared is what both hold, more than 40 values of all sizes on both sides of those that only the
    saved state has: a section that was taken for another one, or read at a wrong offset, cannot agree in
    all of them. Left out are RFLAGS, which QEMU works out late, and CR2 and DR6, into which saving puts
    what belongs to a pending exception.
    """
    pairs = {
        "RIP": (saved.instruction_pointer, listed.instruction_pointer),
        "CR0": (saved.cr0 & _LISTED, listed.cr0),
        "CR3": (saved.cr3, listed.cr3),
        "CR4": (saved.cr4 & _LISTED, listed.cr4),
        "EFER": (saved.efer, listed.efer),
        "GDTR": (saved.gdt, listed.gdt),
        "IDTR": (saved.idt, listed.idt),
        "DR0-DR3": (saved.debug[:4], listed.debug),
        "DR7": (saved.debug[7], listed.dr7),
        **{name: (_as_listed(saved.segments[name]), listed.segments[name]) for name in saved.segments},
    }
    return next((name for name, (ours, theirs) in pairs.items() if ours != theirs), "")


def _as_listed(segment: SegmentRegister) -> SegmentRegister:
    return replace(segment, flags=segment.flags & _LISTED_FLAGS)
