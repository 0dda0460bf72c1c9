"""The fact `executable_pages`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.page_content.claim import Fault
from affiant.kernel.page_content.look import PageContent, read_page_content
from affiant.kernel.site_content.instructions import disassemble

__all__ = ["EXECUTABLE_PAGES_FIELDS", "ExecutablePagesFact", "executable_pages"]

_INSTRUCTIONS = 6

EXECUTABLE_PAGES_FIELDS = {
    "pages": "executable 4 KiB pages above the kernel image",
    "traps": "those of them that hold nothing but INT3, and need no owner",
    "owners": "by kind of owner: pages, pieces judged in them (programs, slots, trampolines), pieces of "
    "which a part was trusted, and for which reasons",
    "modules": "executable pages by the listed module that they belong to; compared in module_code",
    "findings": "code that has lasted though its owner must not have it, or that nobody owns (also if it is "
    "elsewhere in each look): address, owner, reason, found, instructions",
    "findings_left_out": "findings beyond the first 256",
    "settling": "the same, not seen for long enough to be sure",
    "settling_left_out": "entries beyond the first 256",
    "unread": "kinds of owners whose lists could not be followed, and why",
}


@dataclass(frozen=True, slots=True)
class ExecutablePagesFact:
    """Who owns executable pages, and whether they hold what their owners may have."""

    look: PageContent

    def to_json(self) -> dict[str, Json]:
        """Return the fact `executable_pages`."""
        look = self.look
        return {
            "pages": look.pages,
            "traps": look.traps,
            "owners": {
                kind: {
                    "pages": owner.pages,
                    "pieces": owner.pieces,
                    "trusted": owner.trusted,
                    "trust": list(owner.trust),
                }
                for kind, owner in look.owners.items()
            },
            "modules": dict(look.modules),
            **bounded("findings", look.faults, _fault),
            **bounded("settling", look.settling, _fault),
            "unread": dict(look.unread),
        }


def executable_pages(guest: Guest, now: float) -> ExecutablePagesFact:
    """Read the fact `executable_pages`."""
    return ExecutablePagesFact(read_page_content(guest, guest.page_owners, now=now))


def _fault(fault: Fault) -> dict[str, Json]:
    return {
        "address": hex(fault.address),
        "owner": fault.owner,
        "reason": fault.reason,
        "found": fault.found.hex(),
        "instructions": list(disassemble(fault.found, fault.address, most=_INSTRUCTIONS)),
    }
