"""The fact `system_registers`, as assertion scripts read it.

Keys that scripts rely on are documented with the fact's definition. Lists hold at most 256 entries.
"""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.saved_look import SavedLook, read_saved_cpus
from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.machine.saved_cpu import SavedCpu

__all__ = ["SYSTEM_REGISTERS_FIELDS", "SystemRegistersFact", "system_registers"]


SYSTEM_REGISTERS_FIELDS = {
    "booting": "whether the kernel says that it still boots",
    "age_ms": "how long ago they were saved: the guest is stopped for it, so not at every look",
    "count": "vCPUs",
    "running": "vCPUs in 64-bit mode; the others run no kernel code",
    "starting": "vCPUs that are being brought up, by what their registers tell: not compared",
    "checked": "registers that were compared: system calls, per-CPU data, memory types",
    "unread": "topic and reason of what could not be compared",
    "registers": "cpu, privilege, lstar, cstar, star, syscall_mask, sysenter_cs, sysenter_esp, sysenter_eip, "
    "gs_base, kernel_gs_base, pat, efer, spec_ctrl (null: not told) of each vCPU",
    "registers_left_out": "vCPUs beyond the first 256",
    "deviations": "cpu, topic, subject, expected, found of each register that is not as it was built",
    "deviations_left_out": "deviations beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class SystemRegistersFact:
    """Registers that enter the kernel and find its data, of all vCPUs at one moment."""

    look: SavedLook

    def to_json(self) -> dict[str, Json]:
        """Return the fact `system_registers`."""
        look = self.look
        return {
            "booting": look.booting,
            "age_ms": round(1000 * look.age),
            "count": len(look.saved),
            "running": look.running,
            "starting": list(look.starting),
            "checked": dict(look.checked),
            "unread": dict(look.unread),
            **bounded("registers", look.saved, _registers),
            **bounded("deviations", look.deviations, Deviation.to_json),
        }


def system_registers(guest: Guest, now: float) -> SystemRegistersFact:
    """Read the fact `system_registers`."""
    return SystemRegistersFact(read_saved_cpus(guest, guest.cpu_expectations, guest.saved, now=now))


def _registers(cpu: SavedCpu) -> dict[str, Json]:
    return {
        "cpu": cpu.index,
        "privilege": cpu.privilege,
        "lstar": hex(cpu.lstar),
        "cstar": hex(cpu.cstar),
        "star": hex(cpu.star),
        "syscall_mask": hex(cpu.syscall_mask),
        "sysenter_cs": hex(cpu.sysenter_cs),
        "sysenter_esp": hex(cpu.sysenter_esp),
        "sysenter_eip": hex(cpu.sysenter_eip),
        "gs_base": hex(cpu.segments["GS"].base),
        "kernel_gs_base": hex(cpu.kernel_gs_base),
        "pat": hex(cpu.pat),
        "efer": hex(cpu.efer),
        "spec_ctrl": None if cpu.spec_ctrl is None else hex(cpu.spec_ctrl),
    }
