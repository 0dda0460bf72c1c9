"""The values that facts are, and their JSON.

`to_json` gives a fact to scripts (`as_json`): lists that grow with tampering hold at most 256 entries, and
`<list>_left_out` counts the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from affiant.kernel.comparison.difference import Difference, Hook
from affiant.kernel.comparison.text import RegionComparison
from affiant.kernel.facts.as_json import LONGEST_INVENTORY, Json, bounded
from affiant.kernel.kernel_image.syscalls import SyscallTable, WrongEntry
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import Extent
from affiant.kernel.modules.loaded import ModuleView, Stranger
from affiant.kernel.page_tables.executable_pages import UnownedRange
from affiant.kernel.processes.process_ids import ProcessId
from affiant.kernel.processes.tasks import Task, TaskView

__all__ = [
    "CpuRegisters",
    "Fact",
    "KernelCode",
    "KernelIdentity",
    "Modules",
    "SyscallTables",
    "Tasks",
    "Unavailable",
]

_MOST_FORMS = 8  # forms of a patch site that are told


class Fact(Protocol):
    """Something seen; every fact is a frozen value of one moment."""

    def to_json(self) -> dict[str, Json]:
        """Return the fact as an assertion script reads it."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A fact that could not be established; `reason` is one sentence."""

    reason: str

    def to_json(self) -> dict[str, Json]:
        """Return exactly `{"unavailable": reason}`."""
        return {"unavailable": self.reason}


@dataclass(frozen=True, slots=True)
class KernelIdentity:
    """Which kernel runs, and where. Hex strings; `banner_found` is what guest memory holds."""

    release: str
    build_id: str
    reference: str
    slide: int
    physical_base: int
    anchor: str
    paging_levels: int
    banner_expected: str
    banner_found: str

    def to_json(self) -> dict[str, Json]:
        """Return the fact `kernel_identity`."""
        return {
            "release": self.release,
            "build_id": self.build_id,
            "reference": self.reference,
            "slide": hex(self.slide),
            "physical_base": hex(self.physical_base),
            "anchor": self.anchor,
            "paging_levels": self.paging_levels,
            "banner_expected": self.banner_expected,
            "banner_found": self.banner_found,
            "banner_matches": self.banner_expected == self.banner_found,
        }


@dataclass(frozen=True, slots=True)
class KernelCode:
    """Comparisons of one kind of region (text, or read-only data) through every mapping in use.

    `mappings` is how many distinct mappings of the region vCPUs run with: 1 in a healthy guest.
    `symbols` names the place of each difference and hook, `owners` what lies outside of the kernel image.
    """

    comparisons: tuple[RegionComparison, ...]
    symbols: Mapping[int, str]
    mappings: int
    owners: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the fact `kernel_text` or `kernel_rodata`."""
        hooks = [hook for comparison in self.comparisons for hook in comparison.hooks]
        settling = [run for comparison in self.comparisons for run in comparison.passing]
        unexplained = [run for comparison in self.comparisons for run in comparison.unexplained]
        displaced = [run for comparison in self.comparisons for run in comparison.displaced]
        left_out = sum(comparison.left_out for comparison in self.comparisons)
        return {
            "compared_bytes": sum(comparison.compared for comparison in self.comparisons),
            "differing_bytes": sum(comparison.differing for comparison in self.comparisons),
            "unread_bytes": sum(comparison.unread for comparison in self.comparisons),
            "writable_bytes": sum(comparison.writable for comparison in self.comparisons),
            "mappings": self.mappings,
            "regions": [
                {"name": comparison.region, "bytes": comparison.compared} for comparison in self.comparisons
            ],
            "by_class": _summed(comparison.by_class for comparison in self.comparisons),
            "unchecked_classes": sorted({name for each in self.comparisons for name in each.unchecked}),
            "sites": _summed(comparison.sites for comparison in self.comparisons),
            "unjudged": [text for comparison in self.comparisons for text in comparison.unjudged],
            **bounded("hooks", hooks, self._hook),
            **bounded("settling", settling, self._difference),
            "unexplained_bytes": sum(comparison.unexplained_bytes for comparison in self.comparisons),
            **bounded("unexplained", unexplained, self._difference, left_out=left_out),
            **bounded("displaced", displaced, _displaced),
        }

    def _difference(self, run: Difference) -> dict[str, Json]:
        return {
            "address": hex(run.address),
            "symbol": self.symbols.get(run.address, ""),
            "expected": run.expected.hex(),
            "found": run.found.hex(),
            "length": run.length,
            "owner": self.owners.get(run.culprit, ""),
            "site": run.site,
            "reason": run.reason,
            "allowed": [form.hex() for form in run.allowed[:_MOST_FORMS]],
        }

    def _hook(self, hook: Hook) -> dict[str, Json]:
        return {
            "via": hook.via,
            "symbol": self.symbols.get(hook.address, ""),
            "handler": self.symbols.get(hook.handler, "") or hex(hook.handler),
            "owner": self.owners.get(hook.handler, "") if hook.handler else "",
            "count": hook.count,
        }


@dataclass(frozen=True, slots=True)
class SyscallTables:
    """Every system call table of this kernel."""

    tables: tuple[SyscallTable, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the fact `syscall_table`."""
        wrong = [(table.name, entry) for table in self.tables for entry in table.wrong]
        return {
            "tables": [
                {
                    "name": table.name,
                    "dispatch": table.dispatch,
                    "entries": table.entries,
                    "unread": table.unread,
                }
                for table in self.tables
            ],
            "entries": sum(table.entries for table in self.tables),
            **bounded("wrong", wrong, _wrong),
        }


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules in several views, and the owners of executable pages."""

    view: ModuleView

    def to_json(self) -> dict[str, Json]:
        """Return the fact `modules`."""
        view = self.view
        return {
            "listed": [
                {
                    "name": module.name,
                    "state": module.state,
                    "address": hex(module.address),
                    "base": hex(module.base),
                    "size": module.size,
                    "taints": module.taints,
                    "sig_ok": module.signature_ok,
                }
                for module in view.listed
            ],
            "views": view.views,
            "executable_pages": view.executable_pages,
            "owners": view.owners,
            "in_transition": [module.name for module in view.listed if module.state != "live"],
            **bounded("unlisted", view.unlisted, _stranger),
            **bounded("settling_modules", view.settling_modules, _stranger),
            **bounded("unowned", view.unowned, _range),
            **bounded("settling", view.settling, _range),
        }


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks on the kernel's list, and processes that are not on it."""

    view: TaskView

    def to_json(self) -> dict[str, Json]:
        """Return the fact `tasks`; `listed` is there up to 8192 tasks, with `listed_left_out`."""
        tasks = self.view.listed
        return {
            "count": len(tasks),
            "kernel_threads": sum(task.kernel_thread for task in tasks),
            "ids": self.view.ids,
            "ids_unseen": self.view.ids_unseen,
            **bounded("unlisted", self.view.unlisted, _process),
            **bounded("settling", self.view.settling, _process),
            **bounded("listed", tasks, _task, most=LONGEST_INVENTORY),
        }


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


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


def _displaced(run: Extent) -> dict[str, Json]:
    return {"address": hex(run.start), "physical": hex(run.physical), "pages": run.size // PAGE_SIZE}


def _wrong(found: tuple[str, WrongEntry]) -> dict[str, Json]:
    table, entry = found
    return {
        "table": table,
        "index": entry.index,
        "symbol": entry.symbol,
        "expected": hex(entry.expected),
        "found": hex(entry.found),
        "found_symbol": entry.found_symbol,
        "found_owner": "",
    }


def _task(task: Task) -> dict[str, Json]:
    return {
        "pid": task.pid,
        "name": task.name,
        "uid": task.uid,
        "flags": hex(task.flags),
        "kernel_thread": task.kernel_thread,
        "user_memory": task.user_memory,
        "address": hex(task.address),
    }


def _process(process: ProcessId) -> dict[str, Json]:
    return {"pid": process.number, "name": process.name, "task": hex(process.task)}


def _stranger(stranger: Stranger) -> dict[str, Json]:
    return {"name": stranger.name, "seen_in": stranger.seen_in, "address": hex(stranger.address)}


def _range(run: UnownedRange) -> dict[str, Json]:
    return {"address": hex(run.address), "pages": run.pages}
