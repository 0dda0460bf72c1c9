"""The fact `page_rights`, as assertion scripts read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.page_tables.page_rights import PageRights, read_page_rights
from affiant.kernel.page_tables.rights_findings import RightsFinding

__all__ = ["PAGE_RIGHTS_FIELDS", "PageRightsFact", "page_rights"]

PAGE_RIGHTS_FIELDS = {
    "booting": "whether the kernel says that it still boots, and has not protected its pages yet",
    "roots": "page tables looked at: kernel, cpus, tasks, efi; user halves, where tables come in pairs",
    "cpu_tables": "whose tables each vCPU is on: kernel, efi, a task, last on a CPU, text poking, "
    "switching (it is just loading others), gone (somebody had them just as the registers were read, and "
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


def page_rights(guest: Guest, now: float) -> PageRightsFact:
    """Read the fact `page_rights`."""
    return PageRightsFact(read_page_rights(guest, now=now))


def _finding(finding: RightsFinding) -> dict[str, Json]:
    return {
        "what": finding.what,
        "address": hex(finding.address),
        "pages": finding.pages,
        "physical": hex(finding.physical),
        "root": finding.root,
        "meaning": finding.meaning,
    }
