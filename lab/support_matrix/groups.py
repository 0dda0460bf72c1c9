"""Rules in groups, as the page shows them: by what they read, or else by what tampering they tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from affiant.assertions.script import Script
from lab.tamper.table import TECHNIQUES

__all__ = ["grouped"]

_OF_FACTS: Final = {
    "kernel_identity": "Kernel image",
    "kernel_text": "Kernel image",
    "kernel_rodata": "Kernel image",
    "syscall_table": "Kernel image",
    "module_code": "Modules",
    "modules": "Modules",
    "page_rights": "Page tables and executable pages",
    "executable_pages": "Page tables and executable pages",
    "cpus": "Processors",
    "cpu_state": "Processors",
    "system_registers": "Processors",
    "tasks": "Processes",
    "bpf_programs": "BPF and tracing",
    "trace_callbacks": "BPF and tracing",
}
_OF_FAMILIES: Final = {
    "processes": "Processes",
    "data": "Hooks and other data of the kernel",
    "switches": "Switches",
}
_OTHERS: Final = "Others"


def grouped(scripts: Iterable[Script]) -> dict[str, list[Script]]:
    """Return the scripts by the title of their group; a group's and the groups' order is that of names here.

    A script that reads facts is grouped by the first of them; one that only asks, by the family of techniques
    that it must tell. What neither tells is among the others, at the end.
    """
    families = {technique.rule: technique.family for technique in TECHNIQUES}
    titles = list(dict.fromkeys((*_OF_FACTS.values(), *_OF_FAMILIES.values(), _OTHERS)))
    groups: dict[str, list[Script]] = {title: [] for title in titles}
    for script in scripts:
        family = _OF_FAMILIES.get(families.get(script.name, ""), _OTHERS)
        groups[_OF_FACTS.get(script.facts[0], _OTHERS) if script.facts else family].append(script)
    return {title: members for title, members in groups.items() if members}
