"""The fact `cpus`, as assertion scripts read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affiant.kernel.facts.as_json import Json
from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import CpuState

__all__ = ["CPUS_FIELDS", "CpuRegisters", "cpus"]

CPUS_FIELDS = {"count": "vCPUs", "cpus": "registers of each vCPU"}


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """The registers that the kernel's protection hangs on; `symbols` names each vCPU's next instruction."""

    cpus: tuple[CpuState, ...]
    symbols: Mapping[int, str]

    def to_json(self) -> dict[str, Json]:
        """Return the fact `cpus`."""
        return {"count": len(self.cpus), "cpus": [self._cpu(cpu) for cpu in self.cpus]}

    def _cpu(self, cpu: CpuState) -> dict[str, Json]:
        return {
            "index": cpu.index,
            "privilege": cpu.privilege,
            "halted": cpu.halted,
            "instruction_pointer": hex(cpu.instruction_pointer),
            "symbol": self.symbols.get(cpu.index, ""),
            "cr0": hex(cpu.cr0),
            "cr3": hex(cpu.cr3),
            "cr4": hex(cpu.cr4),
            "efer": hex(cpu.efer),
            "idt_base": hex(cpu.idt.base),
            "idt_limit": cpu.idt.limit,
            "gdt_base": hex(cpu.gdt.base),
            "gdt_limit": cpu.gdt.limit,
            "task_register_base": hex(cpu.segments["TR"].base),
            "dr7": hex(cpu.dr7),
            "paging_levels": cpu.paging_levels,
            "write_protect": cpu.write_protect,
        }


def cpus(guest: Guest, _now: float) -> CpuRegisters:
    """Read the fact `cpus`."""
    return CpuRegisters(
        guest.cpus, {cpu.index: guest.program.describe(cpu.instruction_pointer) for cpu in guest.cpus}
    )
