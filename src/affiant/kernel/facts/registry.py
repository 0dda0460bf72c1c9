"""Facts: what was looked at in a live kernel, as values that assertions judge.

A fact says what was seen and how much was looked at; it never judges. What could not be read is
`Unavailable` with its reason, and never an empty, healthy-looking value. `FACTS` is the registry:
name, version, meaning and documented fields of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from affiant.kernel.facts.as_json import LONGEST_INVENTORY
from affiant.kernel.facts.bpf_programs import BPF_PROGRAMS_FIELDS, bpf_programs
from affiant.kernel.facts.executable_pages import EXECUTABLE_PAGES_FIELDS, executable_pages
from affiant.kernel.facts.kernel_code import COMPARISON_FIELDS, kernel_rodata, kernel_text
from affiant.kernel.facts.protection import (
    CPU_STATE_FIELDS,
    MODULE_CODE_FIELDS,
    PAGE_RIGHTS_FIELDS,
    cpu_state,
    module_code,
    page_rights,
)
from affiant.kernel.facts.system_registers import SYSTEM_REGISTERS_FIELDS, system_registers
from affiant.kernel.facts.trace_callbacks import TRACE_CALLBACKS_FIELDS, trace_callbacks
from affiant.kernel.facts.values import (
    CpuRegisters,
    Fact,
    KernelIdentity,
    Modules,
    SyscallTables,
    Tasks,
    Unavailable,
)
from affiant.kernel.guest import Guest
from affiant.kernel.kernel_image.syscalls import read_syscall_tables
from affiant.kernel.modules.loaded import read_modules
from affiant.kernel.processes.tasks import read_task_view
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["FACTS", "Fact", "FactDefinition", "Unavailable", "collect"]


@dataclass(frozen=True, slots=True)
class FactDefinition:
    """What a fact is: `fields` documents the keys of its JSON; `version` grows when their meaning changes."""

    name: str
    version: int
    description: str
    fields: Mapping[str, str]
    read: Callable[[Guest, float], Fact]


def collect(guest: Guest, names: Iterable[str], *, now: float | None = None) -> dict[str, Fact]:
    """Return the named facts of this moment; one that cannot be established is `Unavailable`.

    `now` is monotonic time in seconds, and tells lasting strangers from passing ones. Raises nothing
    that the guest could cause; a name that no fact has is unavailable too, since rules may be newer.
    """
    moment = time.monotonic() if now is None else now
    facts: dict[str, Fact] = {}
    for name in names:
        definition = FACTS.get(name)
        if definition is None:
            facts[name] = Unavailable(f"this monitor knows no fact {name}")
            continue
        try:
            facts[name] = definition.read(guest, moment)
        except AffiantError as error:
            facts[name] = Unavailable(str(error))
    return facts


def _kernel_identity(guest: Guest, _now: float) -> Fact:
    reference, program = guest.reference, guest.program
    expected = reference.banner
    found = program.read(program.address("linux_banner"), min(len(expected) + 1, 512))
    return KernelIdentity(
        release=reference.release,
        build_id=reference.build_id.hex(),
        reference=reference.digest.hex(),
        slide=guest.location.slide,
        physical_base=guest.location.physical_base & (1 << 64) - 1,
        anchor=guest.location.anchor,
        paging_levels=guest.location.levels,
        banner_expected=expected,
        banner_found=found.split(b"\0")[0].decode("utf-8", "backslashreplace").rstrip("\n"),
    )


def _syscall_table(guest: Guest, _now: float) -> Fact:
    if not guest.syscall_tables:
        raise UnavailableError("the reference has no system call table")
    return SyscallTables(read_syscall_tables(guest.kernel_space, guest.program, guest.syscall_tables))


def _modules(guest: Guest, now: float) -> Fact:
    view = read_modules(
        guest.memory, guest.kernel_space, guest.program, guest.patience, vcpus=len(guest.cpus), now=now
    )
    if len(view.listed) > LONGEST_INVENTORY:
        raise UnavailableError(f"more than {LONGEST_INVENTORY} modules are listed")
    return Modules(view)


def _tasks(guest: Guest, now: float) -> Fact:
    return Tasks(read_task_view(guest.program, guest.patience, now=now))


def _cpus(guest: Guest, _now: float) -> Fact:
    return CpuRegisters(
        guest.cpus, {cpu.index: guest.program.describe(cpu.instruction_pointer) for cpu in guest.cpus}
    )


FACTS: Final[Mapping[str, FactDefinition]] = {
    definition.name: definition
    for definition in (
        FactDefinition(
            "kernel_identity",
            1,
            "Which kernel runs: the reference that its text agrees with, its place, its banner.",
            {
                "release": "the reference's release",
                "build_id": "its GNU build id, hex",
                "reference": "SHA-256 of the reference image, hex",
                "slide": "KASLR slide",
                "physical_base": "what the kernel calls phys_base",
                "anchor": "what the slide was found by: idt or page tables",
                "paging_levels": "4 or 5",
                "banner_expected": "the reference's version banner",
                "banner_found": "the banner in guest memory",
                "banner_matches": "whether they are equal",
            },
            _kernel_identity,
        ),
        FactDefinition(
            "kernel_text",
            1,
            "The kernel's text against the reference, byte for byte, through the mappings vCPUs use.",
            COMPARISON_FIELDS,
            kernel_text,
        ),
        FactDefinition(
            "kernel_rodata",
            1,
            "The kernel's read-only data against the reference; of __ro_after_init, functions and vDSO.",
            COMPARISON_FIELDS,
            kernel_rodata,
        ),
        FactDefinition(
            "syscall_table",
            1,
            "Each system call table against the reference, entry by entry.",
            {
                "tables": "name, dispatch (table, or switch where text decides), entries, unread",
                "entries": "entries compared in all tables",
                "wrong": "table, index, symbol, expected, found, found_symbol of each entry that differs",
                "wrong_left_out": "entries beyond the first 256",
            },
            _syscall_table,
        ),
        FactDefinition(
            "modules",
            1,
            "Listed modules, other views of them, and the owner of every executable page above the image.",
            {
                "listed": "name, state, address, base, size, taints, sig_ok of each module on the list",
                "views": "modules in the list, the kset and the address tree (null: no such view)",
                "executable_pages": "executable 4 KiB pages above the kernel image",
                "owners": "executable pages by kind of owner",
                "in_transition": "names of modules that are coming, going or unformed",
                "unlisted": "modules that another view has shown for a while and the list does not",
                "settling_modules": "the same, not seen for long enough to be sure",
                "unowned": "runs of executable pages that nobody has owned for a while",
                "settling": "the same, not seen for long enough to be sure",
                "unlisted_left_out": "entries beyond the first 256",
                "settling_modules_left_out": "entries beyond the first 256",
                "unowned_left_out": "entries beyond the first 256",
                "settling_left_out": "entries beyond the first 256",
            },
            _modules,
        ),
        FactDefinition(
            "tasks",
            2,
            "The tasks on the kernel's list, and processes that have an id and are not on it.",
            {
                "count": "tasks on the list, the idle task left out",
                "kernel_threads": "those that are kernel threads",
                "ids": "processes by the ids that the kernel has given out; null where these were not seen",
                "ids_unseen": "why not",
                "unlisted": "pid, name, task of each process that has been off the list for a while",
                "settling": "the same, not seen for long enough to be sure",
                "unlisted_left_out": "entries beyond the first 256",
                "settling_left_out": "entries beyond the first 256",
                "listed": "pid, name, uid (null: unreadable), flags, kernel_thread, user_memory, address",
                "listed_left_out": "tasks beyond the first 8192",
            },
            _tasks,
        ),
        FactDefinition(
            "cpus",
            1,
            "The registers of each vCPU that the kernel's protection hangs on.",
            {"count": "vCPUs", "cpus": "registers of each vCPU"},
            _cpus,
        ),
        FactDefinition(
            "page_rights",
            1,
            "What the page tables allow in the kernel half: writable code, aliases, tables of their own.",
            PAGE_RIGHTS_FIELDS,
            page_rights,
        ),
        FactDefinition(
            "cpu_state",
            1,
            "Control and debug registers, interrupt gates, descriptors and stacks against the build.",
            CPU_STATE_FIELDS,
            cpu_state,
        ),
        FactDefinition(
            "system_registers",
            1,
            "Registers of system calls, per-CPU data and memory types against the build, all of one moment.",
            SYSTEM_REGISTERS_FIELDS,
            system_registers,
        ),
        FactDefinition(
            "module_code",
            1,
            "Code and read-only data of each loaded module against the file in the distribution's package.",
            MODULE_CODE_FIELDS,
            module_code,
        ),
        FactDefinition(
            "executable_pages",
            1,
            "Who owns each executable page above the kernel image, and whether it holds what it may.",
            EXECUTABLE_PAGES_FIELDS,
            executable_pages,
        ),
        FactDefinition(
            "bpf_programs",
            1,
            "Loaded BPF programs: what each calls, where it is entered from, and which are on no list.",
            BPF_PROGRAMS_FIELDS,
            bpf_programs,
        ),
        FactDefinition(
            "trace_callbacks",
            1,
            "Functions that tracepoints and perf events call, and tracepoints against what was linked.",
            TRACE_CALLBACKS_FIELDS,
            trace_callbacks,
        ),
    )
}
