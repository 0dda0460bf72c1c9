"""What all owners look through in one look at executable pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.modules.loaded import Module, listed_modules
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.bpf_freeing import functions_being_freed
from affiant.kernel.page_content.bpf_lists import BpfLists, read_bpf_lists

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["View"]

_LARGEST_READ = 128 << 20


@dataclass(slots=True, eq=False)
class View:
    """One guest in one look; lists that several owners need are read once.

    `booting`: the kernel says that it boots, and is still believed.
    """

    guest: RunningKernel
    _bpf: BpfLists | None = None
    _modules: Sequence[Module] | None = None
    _freeing: tuple[frozenset[int] | None] | None = None
    booting: bool = False

    @property
    def program(self) -> KernelProgram:
        """The kernel's symbols, types and objects."""
        return self.guest.program

    @property
    def bpf(self) -> BpfLists:
        """The lists of BPF code; raises MemoryFault or MalformedError if they have no end."""
        if self._bpf is None:
            self._bpf = read_bpf_lists(self.program)
        return self._bpf

    @property
    def freeing(self) -> frozenset[int] | None:
        """Where functions of BPF start that wait to be freed, as the guest says; None if nobody can tell."""
        if self._freeing is None:
            self._freeing = (functions_being_freed(self.guest),)
        return self._freeing[0]

    @property
    def modules(self) -> Sequence[Module]:
        """The modules on the list; raises MemoryFault or MalformedError if it has no end."""
        if self._modules is None:
            self._modules = listed_modules(self.program)
        return self._modules

    def holds(self, start: int, memory: bytes) -> bool:
        """Tell whether the kernel's own page tables map exactly these bytes at an address."""
        runs = self.guest.kernel_space.extents(start, start + len(memory))
        return sum(run.size for run in runs) == len(memory) and all(
            self.guest.memory.holds_part(run.physical, memory, run.start - start, run.end - start)
            for run in runs
        )

    def read(self, start: int, end: int) -> bytes:
        """Return what the kernel's own page tables map there; raises MemoryFault unless all of it is RAM."""
        if not 0 < end - start <= _LARGEST_READ:
            raise MemoryFault(f"no code is {end - start} bytes long")
        memory = self.guest.memory
        runs = self.guest.kernel_space.extents(start, end)
        parts = [
            memory.view(run.physical, run.size) for run in runs if memory.contains(run.physical, run.size)
        ]
        if sum(len(part) for part in parts) != end - start:
            raise MemoryFault(f"{start:#x} to {end:#x} is not all mapped to RAM")
        return b"".join(parts)
