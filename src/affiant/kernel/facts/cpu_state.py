"""The fact `cpu_state`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.look import CpuLook, read_cpu_state
from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest

__all__ = ["CPU_STATE_FIELDS", "CpuStateFact", "cpu_state"]

CPU_STATE_FIELDS = {
    "booting": "whether the kernel says that it still boots",
    "count": "vCPUs",
    "running": "vCPUs in 64-bit mode; the others run no kernel code",
    "starting": "vCPUs that are being brought up, by what their registers tell: not compared",
    "checked": "what was compared: control (vCPUs), breakpoints (registers), interrupts (gates), "
    "segments (descriptors)",
    "unread": "topic and reason of what could not be compared",
    "required_cr4": "bits of CR4 that some vCPU has been seen with",
    "deviations": "cpu, topic, subject, expected, found of each thing that is not as it was built",
    "deviations_left_out": "deviations beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class CpuStateFact:
    """The state of all vCPUs against that of their kernel's build."""

    look: CpuLook

    def to_json(self) -> dict[str, Json]:
        """Return the fact `cpu_state`."""
        look = self.look
        return {
            "booting": look.booting,
            "count": look.count,
            "running": look.running,
            "starting": list(look.starting),
            "checked": dict(look.checked),
            "unread": dict(look.unread),
            "required_cr4": hex(look.required_cr4),
            **bounded("deviations", look.deviations, Deviation.to_json),
        }


def cpu_state(guest: Guest, now: float) -> CpuStateFact:
    """Read the fact `cpu_state`."""
    return CpuStateFact(read_cpu_state(guest, guest.cpu_expectations, now=now))
