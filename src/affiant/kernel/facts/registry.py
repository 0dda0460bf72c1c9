"""All facts by name: `FACTS` has the version, the meaning, the documented fields and the reader of each.

What could not be read is `Unavailable` with its reason, and never an empty, healthy-looking value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from affiant.kernel.facts.bpf_programs import BPF_PROGRAMS_FIELDS, bpf_programs
from affiant.kernel.facts.cpu_state import CPU_STATE_FIELDS, cpu_state
from affiant.kernel.facts.cpus import CPUS_FIELDS, cpus
from affiant.kernel.facts.executable_pages import EXECUTABLE_PAGES_FIELDS, executable_pages
from affiant.kernel.facts.fact import Fact, Unavailable
from affiant.kernel.facts.kernel_code import COMPARISON_FIELDS, kernel_rodata, kernel_text
from affiant.kernel.facts.kernel_identity import KERNEL_IDENTITY_FIELDS, kernel_identity
from affiant.kernel.facts.module_code import MODULE_CODE_FIELDS, module_code
from affiant.kernel.facts.modules import MODULES_FIELDS, modules
from affiant.kernel.facts.page_rights import PAGE_RIGHTS_FIELDS, page_rights
from affiant.kernel.facts.syscall_table import SYSCALL_TABLE_FIELDS, syscall_table
from affiant.kernel.facts.system_registers import SYSTEM_REGISTERS_FIELDS, system_registers
from affiant.kernel.facts.tasks import TASKS_FIELDS, tasks
from affiant.kernel.facts.trace_callbacks import TRACE_CALLBACKS_FIELDS, trace_callbacks
from affiant.kernel.guest import Guest
from affiant.model.errors import AffiantError

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


FACTS: Final[Mapping[str, FactDefinition]] = {
    definition.name: definition
    for definition in (
        FactDefinition(
            "kernel_identity",
            1,
            "Which kernel runs: the reference that its text agrees with, its place, its banner.",
            KERNEL_IDENTITY_FIELDS,
            kernel_identity,
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
            SYSCALL_TABLE_FIELDS,
            syscall_table,
        ),
        FactDefinition(
            "modules",
            1,
            "Listed modules, other views of them, and the owner of every executable page above the image.",
            MODULES_FIELDS,
            modules,
        ),
        FactDefinition(
            "tasks",
            2,
            "The tasks on the kernel's list, and processes that have an id and are not on it.",
            TASKS_FIELDS,
            tasks,
        ),
        FactDefinition(
            "cpus",
            1,
            "The registers of each vCPU that the kernel's protection hangs on.",
            CPUS_FIELDS,
            cpus,
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
