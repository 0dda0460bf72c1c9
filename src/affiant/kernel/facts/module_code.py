"""The fact `module_code`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.comparison.difference import Difference
from affiant.kernel.facts.as_json import LONGEST_INVENTORY, Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.modules.look import ModuleCodeLook, read_module_code
from affiant.kernel.modules.verdict import ModuleCode
from affiant.kernel.site_content.instructions import disassemble

__all__ = ["MODULE_CODE_FIELDS", "ModuleCodeFact", "module_code"]

_INSTRUCTIONS = 4

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
