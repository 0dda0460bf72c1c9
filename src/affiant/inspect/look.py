"""One look at a guest: its registers, and the facts that can be established now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affiant.inspect.registers import read_register_listings
from affiant.model.errors import SetupError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.facts.registry import Fact

__all__ = ["Look", "Target", "look_at", "machine_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a guest's memory and registers are, and the reference image of its kernel."""

    name: str
    ram: Path
    qmp: Path
    reference: Path
    memory_bytes: int
    below_4g_bytes: int | None = None
    saved_cpus: Path | None = None  # the launcher's socket for what QEMU saves of them; None: no launcher


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. `reason` says why there is no kernel to look at, and is empty otherwise."""

    name: str
    facts: dict[str, Fact]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the look for programs; facts in the shape that assertion scripts read."""
        return {
            "vm": self.name,
            "kernel": "seen" if not self.reason else "not seen",
            "reason": self.reason,
            "facts": {name: fact.to_json() for name, fact in self.facts.items()},
        }


def machine_target(name: str) -> Target:
    """Return the target of a machine that `affiant vm` started; raises SetupError if there is none."""
    from affiant.vm.state import VmState

    state = VmState.load(name)
    if not state.running:
        raise SetupError(f"the virtual machine {name!r} is not running", hint=f"affiant vm start {name}")
    if state.reference is None:
        raise SetupError(
            f"no reference image is known for {name!r}",
            hint="affiant reference build PACKAGE, then --reference FILE",
        )
    return Target(
        name,
        state.ram,
        state.qmp,
        state.reference,
        state.memory_bytes,
        state.below_4g_bytes,
        state.cpus_socket,
    )


def look_at(target: Target, facts: Sequence[str]) -> Look:
    """Look once. A guest that does not run the reference's kernel gives its registers and the reason."""
    from affiant.inspect.saved_registers import read_saved_registers
    from affiant.kernel.facts.cpus import CpuRegisters
    from affiant.kernel.facts.registry import collect
    from affiant.kernel.guest import Guest
    from affiant.kernel.machine.cpu import parse_registers
    from affiant.kernel.machine.memory import GuestMemory
    from affiant.kernel.reference import ReferenceImage

    reference = ReferenceImage.load(target.reference)
    with GuestMemory.open(
        target.ram, memory_bytes=target.memory_bytes, below_4g_bytes=target.below_4g_bytes
    ) as memory:
        listings = read_register_listings(target.qmp)
        cpus = tuple(parse_registers(text, index=index) for index, text in enumerate(listings))
        try:
            guest = Guest.open(memory, reference, cpus)
        except UnavailableError as error:
            return Look(target.name, {"cpus": CpuRegisters(cpus, {})}, str(error))
        if "system_registers" in facts:
            guest = guest.with_saved(read_saved_registers(target.saved_cpus))
        return Look(target.name, collect(guest, facts), "")
