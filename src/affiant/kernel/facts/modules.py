"""The fact `modules`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.facts.as_json import LONGEST_INVENTORY, Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.modules.loaded import ModuleView, Stranger, read_modules
from affiant.kernel.page_tables.executable_pages import UnownedRange
from affiant.model.errors import UnavailableError

__all__ = ["MODULES_FIELDS", "Modules", "modules"]

MODULES_FIELDS = {
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


def modules(guest: Guest, now: float) -> Modules:
    """Read the fact `modules`."""
    view = read_modules(
        guest.memory, guest.kernel_space, guest.program, guest.patience, vcpus=len(guest.cpus), now=now
    )
    if len(view.listed) > LONGEST_INVENTORY:
        raise UnavailableError(f"more than {LONGEST_INVENTORY} modules are listed")
    return Modules(view)


def _stranger(stranger: Stranger) -> dict[str, Json]:
    return {"name": stranger.name, "seen_in": stranger.seen_in, "address": hex(stranger.address)}


def _range(run: UnownedRange) -> dict[str, Json]:
    return {"address": hex(run.address), "pages": run.pages}
