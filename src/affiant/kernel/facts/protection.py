"""The facts `page_rights`, `cpu_state` and `module_code`, as assertion scripts read them.

Keys that scripts rely on are documented with the facts' definitions. Lists hold at most 256 entries.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from affiant.kernel.comparison.difference import Difference
from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.look import CpuLook, read_cpu_state
from affiant.kernel.facts.as_json import LONGEST_INVENTORY, Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.modules.look import ModuleCodeLook, read_module_code
from affiant.kernel.modules.verdict import ModuleCode
from affiant.kernel.page_tables.page_rights import PageRights, RightsFinding, read_page_rights
from affiant.kernel.site_content.instructions import disassemble

__all__ = [
    "CPU_STATE_FIELDS",
    "MODULE_CODE_FIELDS",
    "PAGE_RIGHTS_FIELDS",
    "CpuStateFact",
    "ModuleCodeFact",
    "PageRightsFact",
    "cpu_state",
    "module_code",
    "page_rights",
]


_INSTRUCTIONS = 4

PAGE_RIGHTS_FIELDS = {
    "booting": "whether the kernel says that it still boots, and has not protected its pages yet",
    "roots": "page tables looked at: kernel, cpus, tasks, efi; user halves, where tables come in pairs",
    "cpu_tables": "whose tables each vCPU is on: kernel, efi, a task, last on a CPU, text poking, "
    "switching (it is just loading others), gone (somebody had them just before the registers were read, and "
    "their kernel half was the kernel's), or empty",
    "tasks": "tasks on the list; of more than 512 tables that they have, as many by lot are compared, and "
    "those that vCPUs are on",
    "tables": "page tables read",
    "leaves": "pages of any size that they map",
    "unread_tables": "tables that lie outside RAM: what they map is not known",
    "executable_pages": "executable 4 KiB pages by place: kernel text, module area, real mode, vsyscall",
    "protected_pages": "4 KiB of RAM that hold code or read-only data, which nothing may map writable",
    "findings": "what, address, pages, physical, root, meaning of each run of pages with wrong rights; "
    "'kept for the firmware' (one entry) is what the kernel itself leaves in the tables of EFI services, "
    "'firmware code and data' (one entry) what firmware has there both writable and executable",
    "findings_by_kind": "how many there are of each kind",
    "findings_left_out": "findings beyond the first 256",
}

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

MODULE_CODE_FIELDS = {
    "references": "modules that the reference image names",
    "compared_bytes": "bytes of code and read-only data compared, over all modules",
    "modules": "name, verdict (as packaged, changed, unknown, in transition, unread), base, compared_bytes, "
    "by_class (changed bytes by the patch sites that explain them), hooks, digest of an unknown module's "
    "code, reason, taints, sig_ok of each listed module",
    "modules_left_out": "modules beyond the first 8192",
    "differences": "module, address, length, expected, found, site and reason at patch sites, instructions",
    "differences_left_out": "differences beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class ModuleCodeFact:
    """Each module against its packaged file."""

    look: ModuleCodeLook

    def to_json(self) -> dict[str, Json]:
        """Return the fact `module_code`."""
        modules = self.look.modules
        differences = [(code.name, run) for code in modules for run in code.differences]
        return {
            "references": self.look.references,
            "compared_bytes": sum(code.compared for code in modules),
            **bounded("modules", modules, _module, most=LONGEST_INVENTORY),
            **bounded("differences", differences, _difference),
        }


@dataclass(frozen=True, slots=True)
class PageRightsFact:
    """Rights of all pages of the kernel half."""

    view: PageRights

    def to_json(self) -> dict[str, Json]:
        """Return the fact `page_rights`."""
        view = self.view
        return {
            "booting": view.booting,
            "roots": dict(view.roots),
            "cpu_tables": dict(view.cpu_tables),
            "tasks": view.tasks,
            "tables": view.tables,
            "leaves": view.leaves,
            "unread_tables": view.unread_tables,
            "executable_pages": dict(view.executable_pages),
            "protected_pages": view.protected_pages,
            **bounded("findings", view.findings, _finding, left_out=view.left_out),
            "findings_by_kind": dict(Counter(finding.what for finding in view.findings)),
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


def page_rights(guest: Guest, now: float) -> PageRightsFact:
    """Read the fact `page_rights`."""
    return PageRightsFact(read_page_rights(guest, now=now))


def cpu_state(guest: Guest, now: float) -> CpuStateFact:
    """Read the fact `cpu_state`."""
    return CpuStateFact(read_cpu_state(guest, guest.cpu_expectations, now=now))


def module_code(guest: Guest, now: float) -> ModuleCodeFact:
    """Read the fact `module_code`."""
    return ModuleCodeFact(read_module_code(guest, guest.module_judge, now=now))


def _module(code: ModuleCode) -> dict[str, Json]:
    return {
        "name": code.name,
        "verdict": code.verdict,
        "base": hex(code.base),
        "compared_bytes": code.compared,
        "by_class": dict(code.by_class),
        "hooks": code.hooks,
        "digest": code.digest,
        "reason": code.reason,
        "taints": code.taints,
        "sig_ok": code.signature_ok,
    }


def _difference(found: tuple[str, Difference]) -> dict[str, Json]:
    module, run = found
    return {
        "module": module,
        "address": hex(run.address),
        "length": run.length,
        "expected": run.expected.hex(),
        "found": run.found.hex(),
        "site": run.site,
        "reason": run.reason,
        "instructions": list(disassemble(run.found, run.address, most=_INSTRUCTIONS)),
    }


def _finding(finding: RightsFinding) -> dict[str, Json]:
    return {
        "what": finding.what,
        "address": hex(finding.address),
        "pages": finding.pages,
        "physical": hex(finding.physical),
        "root": finding.root,
        "meaning": finding.meaning,
    }
