"""One module compared with its file, with all that is wrong with it told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.comparison.difference import Difference
from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.modules.image import LinkedModule
from affiant.kernel.modules.loaded import Module
from affiant.kernel.modules.references import KnownModule
from affiant.kernel.modules.verdict import AS_PACKAGED, IN_TRANSITION, ModuleCode, told
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.site_content.content import SiteContent

__all__ = ["MOST_DIFFERENCES", "compare_module", "holds_text"]

MOST_DIFFERENCES: Final = 64
_MOST_REASONS: Final = 3


def compare_module(kernel: RunningKernel, module: Module, known: KnownModule) -> ModuleCode:
    """Compare a module now, and keep what is found with what is known of it.

    Whether a site that is half changed has been so for too long is not known here: it is in transition.
    Raises MemoryFault if the module would not end before the last address.
    """
    wrong: list[Difference] = []
    settling: list[Difference] = []
    compared = unread = hooks = 0
    unjudged: tuple[str, ...] = ()
    by_class: Counter[str] = Counter()
    for code in (known.code, known.init):
        if code is None:
            continue
        seen = _compare_text(kernel, code)
        wrong += [run for run in seen.unexplained if _inside(run, code[0])]
        settling += [run for run in seen.passing if _inside(run, code[0])]
        compared, unread = compared + seen.compared, unread + seen.unread
        by_class.update(seen.by_class)
        hooks += sum(hook.count for hook in seen.hooks if hook.via == "ftrace")
        unjudged += seen.unjudged
    if known.rodata is not None:
        data = compare_region(kernel.memory, kernel.kernel_space, kernel.location, known.rodata)
        wrong += data.unexplained
        compared, unread = compared + data.compared, unread + data.unread
    excess = _excess(module, known.linked)
    steady = IN_TRANSITION if settling else AS_PACKAGED
    verdict = "changed" if wrong or excess else "unread" if unread or unjudged else steady
    reasons = [f"{excess} bytes of code more than its file has"] if excess else []
    reasons += [f"{unread} bytes could not be read"] if unread else []
    reasons += unjudged
    reasons += [f"nobody has the symbol {name}" for name in known.linked.unresolved]
    known.due = False
    known.result = replace(
        told(module, verdict, reason="; ".join(reasons[:_MOST_REASONS])),
        compared=compared,
        by_class=dict(by_class),
        differences=tuple(wrong[:MOST_DIFFERENCES]),
        hooks=hooks,
        settling=tuple(settling),
    )
    return known.result


def holds_text(kernel: RunningKernel, code: tuple[CodeRegion, SiteContent]) -> bool:
    """Tell whether all of a text is there now as it must stand, sites that are half changed aside.

    Raises what `compare_module` raises.
    """
    seen = _compare_text(kernel, code)
    return not (seen.unread or seen.unjudged or any(_inside(run, code[0]) for run in seen.unexplained))


def _compare_text(kernel: RunningKernel, code: tuple[CodeRegion, SiteContent]) -> RegionComparison:
    seen = compare_region(kernel.memory, kernel.kernel_space, kernel.location, *code)
    if (seen.unexplained or seen.passing) and not kernel.paused:
        # Code is changed in steps; a copy made in the middle of one shows what never stood there.
        seen = compare_region(kernel.memory, kernel.kernel_space, kernel.location, *code)
    return seen


def _excess(module: Module, linked: LinkedModule) -> int:
    """Return how many bytes of code the guest says that the module has, beyond what its file has."""
    whole = 0
    for start, end in module.text:
        areas = (linked.areas.get(name) for name in ("text", "init_text"))
        own = next((area for area in areas if area is not None and area.start == start), None)
        allowed = len(own.expected) if own is not None else 0
        whole += max(0, -(-(end - start) // PAGE_SIZE) * PAGE_SIZE - allowed)
    return whole


def _inside(run: Difference, region: CodeRegion) -> bool:
    """Probes of the kernel and of other modules are told where they are."""
    return region.start <= run.address < region.end
