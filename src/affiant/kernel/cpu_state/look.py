"""All of it for each vCPU, in one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from affiant.kernel.cpu_state.control import ControlMemory, control_deviations, debug_deviations
from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.interrupts import expected_gates, interrupt_deviations
from affiant.kernel.cpu_state.segments import DESCRIPTORS, expected_segments, segment_deviations
from affiant.kernel.cpu_state.starting import starting_cpus
from affiant.kernel.cpu_state.system_calls import expected_entries
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.transient.booting import is_booting
from affiant.model.errors import AffiantError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

ResultT = TypeVar("ResultT")

__all__ = ["CpuExpectations", "CpuLook", "read_cpu_state"]


class CpuExpectations:
    """What a kernel's CPUs must hold, worked out once; `reasons` says what the reference does not tell."""

    def __init__(self, program: KernelProgram) -> None:
        self.control = ControlMemory()
        self.reasons: dict[str, str] = {}
        self.gates = self._try("interrupts", expected_gates, program)
        self.segments = self._try("segments", expected_segments, program)
        self.entries = self._try(
            "system calls", lambda program: expected_entries(program, self.segments), program
        )

    def _try(
        self, topic: str, make: Callable[[KernelProgram], ResultT], program: KernelProgram
    ) -> ResultT | None:
        try:
            return make(program)
        except AffiantError as error:
            self.reasons[topic] = str(error)
            return None


@dataclass(frozen=True, slots=True)
class CpuLook:
    """What was seen of all vCPUs.

    `running` counts vCPUs in 64-bit mode: the others were not looked at, nor were those in `starting`,
    which are being brought up. `checked` counts gates,
    descriptors and so on that were compared, by topic. `unread` gives the reason for what could not be
    looked at. `required_cr4` are the bits that some vCPU has been seen with.
    """

    booting: bool
    count: int
    running: int
    starting: tuple[int, ...]
    checked: Mapping[str, int]
    deviations: tuple[Deviation, ...]
    unread: Mapping[str, str]
    required_cr4: int


def read_cpu_state(guest: RunningKernel, expectations: CpuExpectations, *, now: float) -> CpuLook:
    """Compare the registers of one moment, and the tables that they lead to now."""
    program, space = guest.program, guest.kernel_space
    running = [cpu for cpu in guest.cpus if cpu.paging_levels]
    starting = starting_cpus(guest, running, expectations.segments, topic="starting processors", moment=now)
    settled = [cpu for cpu in running if cpu.index not in starting]
    deviations = [
        *control_deviations(settled, program, expectations.control),
        *debug_deviations(guest.cpus, program),
    ]
    unread = {
        topic: reason for topic, reason in expectations.reasons.items() if topic in ("interrupts", "segments")
    }
    checked = {"control": len(settled), "breakpoints": 4 * len(guest.cpus), "interrupts": 0, "segments": 0}
    for cpu in settled:
        try:
            if expectations.gates is not None:
                deviations.extend(interrupt_deviations(cpu, space, expectations.gates))
                checked["interrupts"] += len(expectations.gates.gates)
        except AffiantError as error:
            unread["interrupts"] = str(error)
        try:
            if expectations.segments is not None:
                deviations.extend(segment_deviations(cpu, space, program, expectations.segments))
                checked["segments"] += DESCRIPTORS
        except AffiantError as error:
            unread["segments"] = str(error)
    return CpuLook(
        booting=is_booting(guest.program, guest.patience, now),
        count=len(guest.cpus),
        running=len(running),
        starting=tuple(sorted(starting)),
        checked=checked,
        deviations=tuple(deviations),
        unread=unread,
        required_cr4=expectations.control.seen,
    )
