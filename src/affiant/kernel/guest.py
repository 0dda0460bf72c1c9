"""One running guest kernel, ready to be looked at."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import ref

from affiant.kernel.bpf_programs.callees import Callees
from affiant.kernel.comparison.regions import CodeRegion, rodata_regions, text_region
from affiant.kernel.cpu_state.look import CpuExpectations
from affiant.kernel.kernel_image.init_pointers import InitPointers
from affiant.kernel.kernel_image.syscalls import ExpectedTable, expected_tables
from affiant.kernel.kernel_image.vdso import VdsoImage, vdso_images
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.event_log import EventLogCandidate, kernel_event_log, scan_for_event_logs
from affiant.kernel.machine.memory import GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.kernel.modules.judge import ModuleJudge
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import (
    KERNEL_MAP,
    KernelLocation,
    address_spaces,
    locate_kernel,
    still_there,
)
from affiant.kernel.page_content.look import PageOwners
from affiant.kernel.page_tables.tables_in_order import tables_in_order
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.site_content.function_types import FunctionTypes
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.outside import Outside
from affiant.kernel.tracing.tracepoints import Tracepoints
from affiant.kernel.transient.grace_periods import grace_periods
from affiant.kernel.transient.patience import Patience
from affiant.model.errors import AffiantError, MalformedError

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["Guest", "find_event_logs"]


class _Prepared:
    """What depends on the reference and the location alone, so that a look need not build it again."""

    def __init__(self, memory: GuestMemory, reference: ReferenceImage, location: KernelLocation) -> None:
        self.memory = memory
        self.reference = reference
        self.location = location
        self.program = program = KernelProgram(memory, reference, location)
        self.patience = Patience(lambda: grace_periods(program))
        self.module_judge: ModuleJudge | None = None
        self.page_owners: PageOwners | None = None
        self.bpf_callees: Callees | None = None
        self.tracepoints: Tracepoints | None = None

    @cached_property
    def text(self) -> CodeRegion:
        return text_region(self.reference, self.location.slide)

    @cached_property
    def init_pointers(self) -> InitPointers:
        image = KernelImage(self.memory, self.program.space, self.program, self.text)
        return InitPointers(image, FunctionTypes(image), [own.region for own in self.vdso])

    @cached_property
    def vdso(self) -> tuple[VdsoImage, ...]:
        return vdso_images(self.memory, self.program.space, self.program, self.text_content.voters)

    @cached_property
    def text_content(self) -> SiteContent:
        image = KernelImage(self.memory, self.program.space, self.program, self.text, outside=_Outside(self))
        return SiteContent(self.memory, self.program.space, self.program, self.text, image=image)

    @cached_property
    def rodata(self) -> tuple[CodeRegion, ...]:
        return rodata_regions(self.reference, self.location.slide)

    @cached_property
    def syscall_tables(self) -> tuple[ExpectedTable, ...]:
        return expected_tables(self.program)

    @cached_property
    def cpu_expectations(self) -> CpuExpectations:
        return CpuExpectations(self.program)


class _Outside:
    """Tells of code outside of the kernel image by comparing it now.

    What was prepared holds those who ask, so they do not hold it.
    """

    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = ref(prepared)

    def functions_among(self, addresses: Set[int]) -> frozenset[int]:
        guest = self._guest()
        try:
            return guest.module_judge.vouched(guest, addresses) if addresses else frozenset()
        except AffiantError:
            return frozenset()  # nobody can tell

    def generated_among(self, addresses: Set[int]) -> frozenset[int]:
        guest = self._guest()
        try:
            return guest.page_owners.vouched(guest, addresses) if addresses else frozenset()
        except (MalformedError, MemoryFault):
            return frozenset()

    def left_among(self, pages: Set[int]) -> frozenset[int]:
        guest = self._guest()
        return guest.module_judge.left_among(guest, pages)

    def _guest(self) -> Guest:
        prepared = self._prepared()
        if prepared is None:
            raise ValueError("the guest that this belongs to is gone")
        return Guest(prepared.memory, (), prepared)


@dataclass(frozen=True)
class Guest:
    """A guest that was seen to run the reference's kernel, with the registers of one moment.

    Made by `open`, which guarantees that the location is anchored on vCPU state and confirmed against
    the reference's text. Everything read through it afterwards is live and may fail.
    """

    memory: GuestMemory
    cpus: tuple[CpuState, ...]
    _prepared: _Prepared
    saved: SavedCpus | None = None
    """What QEMU saved of the vCPUs, at a moment of its own; None where nobody asked it to."""
    paused: bool = False
    """Whether what is read stands still: then nothing is read twice to tell a change from a moment."""
    tables_around: frozenset[int] = frozenset()
    """Page tables (physical addresses) that were in order just before the registers were read, or after."""

    @classmethod
    def open(
        cls,
        memory: GuestMemory,
        reference: ReferenceImage,
        cpus: Sequence[CpuState],
        *,
        before: Guest | None = None,
    ) -> Guest:
        """Find the kernel and prepare to read it.

        If it is where it was `before`, in the same boot, what was seen of it then counts on. Raises
        UnavailableError, with the reason, while the guest does not run the reference's kernel.
        """
        location = locate_kernel(memory, cpus, reference)
        if before is not None and (before.reference, before.location) == (reference, location):
            return cls(memory, tuple(cpus), before._prepared)
        return cls(memory, tuple(cpus), _Prepared(memory, reference, location))

    def refresh(self, cpus: Sequence[CpuState]) -> Guest:
        """Return the same guest with newer registers; anchors anew, and reuses what still holds.

        Raises UnavailableError if the kernel is gone (the guest was reset, or runs another one).
        """
        # Under load, the processes whose CR3 was read may all be gone: then the kernel's own tables tell.
        if still_there(self.kernel_space, self.location, cpus, self.reference):
            return Guest(self.memory, tuple(cpus), self._prepared)
        location = locate_kernel(self.memory, cpus, self.reference)
        if location == self.location:
            return Guest(self.memory, tuple(cpus), self._prepared)
        return Guest(self.memory, tuple(cpus), _Prepared(self.memory, self.reference, location))

    def at_rest(self) -> Guest:
        """Return the same guest, for as long as it is paused or copies of one moment are read."""
        return replace(self, paused=True)

    def tables_in_order(self) -> frozenset[int]:
        """Return which page tables are in order now, for whoever reads registers next; raises nothing."""
        return tables_in_order(self.program, self.kernel_space)

    def with_tables(self, before: frozenset[int]) -> Guest:
        """Return the same guest with what `tables_in_order` told just before its registers were read.

        Where a vCPU is on others, its process may have been made since: what is in order now counts as well.
        """
        used = {cpu.page_table for cpu in self.cpus}
        if used - before - {self.kernel_space.root}:
            before |= self.tables_in_order()
        return replace(self, tables_around=before)

    def with_saved(self, saved: SavedCpus | None) -> Guest:
        """Return the same guest with what QEMU saved of its vCPUs."""
        return replace(self, saved=saved)

    @property
    def reference(self) -> ReferenceImage:
        """The reference image that the kernel is compared with."""
        return self._prepared.reference

    @property
    def location(self) -> KernelLocation:
        """Where the kernel runs."""
        return self._prepared.location

    @property
    def program(self) -> KernelProgram:
        """Symbols, types and kernel objects."""
        return self._prepared.program

    @property
    def patience(self) -> Patience:
        """What seemed wrong in earlier looks at this kernel."""
        return self._prepared.patience

    @property
    def text(self) -> CodeRegion:
        """The kernel's text as it must stand."""
        return self._prepared.text

    @property
    def text_content(self) -> SiteContent:
        """What the kernel's own tables map at its patch sites, as last found legal."""
        return self._prepared.text_content

    @property
    def outside(self) -> Outside:
        """Who vouches for code outside of the kernel image."""
        return _Outside(self._prepared)

    @property
    def init_pointers(self) -> InitPointers:
        """The kernel's pointers to functions that boot may choose."""
        return self._prepared.init_pointers

    @property
    def vdso(self) -> tuple[VdsoImage, ...]:
        """The code that the kernel lends to processes."""
        return self._prepared.vdso

    @property
    def rodata(self) -> tuple[CodeRegion, ...]:
        """The kernel's read-only data as it must stand."""
        return self._prepared.rodata

    @property
    def syscall_tables(self) -> tuple[ExpectedTable, ...]:
        """The system call tables as they must stand."""
        return self._prepared.syscall_tables

    @property
    def module_judge(self) -> ModuleJudge:
        """The kernel's modules as they must stand; raises UnavailableError if the reference has no files."""
        if self._prepared.module_judge is None:
            self._prepared.module_judge = ModuleJudge(self)
        return self._prepared.module_judge

    @property
    def page_owners(self) -> PageOwners:
        """Who may have executable pages, with what was found legal in them so far."""
        if self._prepared.page_owners is None:
            self._prepared.page_owners = PageOwners(self)
        return self._prepared.page_owners

    @property
    def bpf_callees(self) -> Callees:
        """What BPF programs call, as far as it was decoded so far."""
        if self._prepared.bpf_callees is None:
            self._prepared.bpf_callees = Callees(self)
        return self._prepared.bpf_callees

    @property
    def tracepoints(self) -> Tracepoints:
        """The kernel's tracepoints, as its reference has them."""
        if self._prepared.tracepoints is None:
            self._prepared.tracepoints = Tracepoints(self)
        return self._prepared.tracepoints

    @property
    def cpu_expectations(self) -> CpuExpectations:
        """What the vCPUs' tables must hold, and which protections they were seen with."""
        return self._prepared.cpu_expectations

    @property
    def kernel_space(self) -> AddressSpace:
        """The kernel's own page tables, `init_top_pgt`."""
        return self._prepared.program.space

    def other_spaces(self) -> tuple[AddressSpace, ...]:
        """Return address spaces of vCPUs that map the kernel image otherwise than the kernel's own tables.

        A healthy kernel shares one mapping among all processes, so there are none; or a process has
        exited since the registers were read, and its tables hold something else by now. Only a look
        under pause, with registers read under the same pause, tells these apart.
        """
        ours = self.kernel_space.top_entry(KERNEL_MAP)
        others: dict[int, AddressSpace] = {}
        for cpu in self.cpus:
            for space in address_spaces(self.memory, cpu):
                if space.levels == self.location.levels and self._differs(space, ours):
                    others[space.root] = space
        return tuple(others.values())

    def forget_verified(self) -> None:
        """Have the next look judge every patch site and every module from the reference alone.

        Looks remember what they found legal, and compare with that. It is what makes them cheap, and a
        memory that should not be trusted for ever.
        """
        if "text_content" in vars(self._prepared):
            self.text_content.forget()
        for image in vars(self._prepared).get("vdso", ()):
            image.content.forget()
        if self._prepared.module_judge is not None:
            self._prepared.module_judge.forget()
        if self._prepared.page_owners is not None:
            self._prepared.page_owners.forget()

    def event_logs(self) -> tuple[EventLogCandidate, ...]:
        """Return event log candidates, the one that the kernel points to first."""
        return find_event_logs(self.memory, self)

    def _differs(self, space: AddressSpace, ours: int) -> bool:
        try:
            return space.top_entry(KERNEL_MAP) != ours and space.translate(self.text.start).executable
        except MemoryFault:
            return False


def find_event_logs(memory: GuestMemory, guest: Guest | None = None) -> tuple[EventLogCandidate, ...]:
    """Return what may be the TCG event log, best first; the one that replays onto a quote is it.

    Works in firmware and with an unknown kernel (`guest` None), by scanning RAM.
    """
    if guest is not None:
        try:
            efi = guest.program.copy("struct efi", guest.program.address("efi"))
            log = kernel_event_log(
                memory, log_address=efi.integer("tpm_log"), final_address=efi.integer("tpm_final_log")
            )
        except AffiantError:
            log = None
        if log is not None:
            return (log, *(other for other in scan_for_event_logs(memory) if other.data != log.data))
    return scan_for_event_logs(memory)
