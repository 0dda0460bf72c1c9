"""All system registers of each vCPU that only QEMU's saved state tells, in one look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.look import CpuExpectations
from affiant.kernel.cpu_state.memory_types import memory_type_deviations
from affiant.kernel.cpu_state.per_cpu_base import per_cpu_base_deviations
from affiant.kernel.cpu_state.starting import starting_cpus
from affiant.kernel.cpu_state.system_calls import REGISTERS, system_call_deviations
from affiant.kernel.machine.saved_cpu import SavedCpu, SavedCpus
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.transient.booting import is_booting
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["SavedLook", "read_saved_cpus"]


@dataclass(frozen=True, slots=True)
class SavedLook:
    """What was seen of all vCPUs at the moment that they were saved.

    `checked` counts registers that were compared, by topic. `starting` are CPUs that are being brought
    up: not compared. `unread` says what could not be compared.
    """

    booting: bool
    age: float
    saved: tuple[SavedCpu, ...]
    running: int
    starting: tuple[int, ...]
    checked: Mapping[str, int]
    deviations: tuple[Deviation, ...]
    unread: Mapping[str, str]


def read_saved_cpus(
    kernel: RunningKernel, expectations: CpuExpectations, saved: SavedCpus | None, *, now: float
) -> SavedLook:
    """Compare saved registers with those of the kernel's build.

    Raises UnavailableError if there are none.
    """
    if saved is None:
        raise UnavailableError("nobody had QEMU save these registers")
    if not saved.cpus:
        raise UnavailableError(saved.reason or "QEMU's device state names no vCPU")
    running = [cpu for cpu in saved.cpus if cpu.in_64_bit_mode]
    # Each state counts once, at the moment that it was saved, however often it is looked at.
    starting = starting_cpus(
        kernel, running, expectations.segments, topic="starting, as saved", moment=saved.taken_at
    )
    settled = [cpu for cpu in running if cpu.index not in starting]
    deviations = list(memory_type_deviations(settled))
    checked = {"system calls": 0, "per-CPU data": 0, "memory types": len(settled)}
    unread = {
        topic: reason
        for topic, reason in expectations.reasons.items()
        if topic in ("system calls", "segments")
    }
    for cpu in settled:
        try:
            if expectations.entries is not None:
                deviations.extend(system_call_deviations(cpu, kernel.program, expectations.entries))
                checked["system calls"] += REGISTERS
        except AffiantError as error:
            unread["system calls"] = str(error)
        try:
            if expectations.segments is not None:
                deviations.extend(
                    per_cpu_base_deviations(cpu, kernel.kernel_space, kernel.program, expectations.segments)
                )
                checked["per-CPU data"] += 1
        except AffiantError as error:
            unread["per-CPU data"] = str(error)
    return SavedLook(
        booting=is_booting(kernel.program, kernel.patience, now),
        age=max(0.0, now - saved.taken_at),
        saved=saved.cpus,
        running=len(running),
        starting=tuple(sorted(starting)),
        checked=checked,
        deviations=tuple(deviations),
        unread=unread,
    )
