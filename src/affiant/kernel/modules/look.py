"""Every listed module at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Final

from affiant.kernel.modules.comparison import MOST_DIFFERENCES
from affiant.kernel.modules.judge import ModuleJudge
from affiant.kernel.modules.loaded import Module, listed_modules
from affiant.kernel.modules.places import ModuleKey, module_key
from affiant.kernel.modules.verdict import IN_TRANSITION, ModuleCode, told
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.transient.code_changes import is_changing_code

__all__ = ["ModuleCodeLook", "read_module_code"]

_LONG: Final = 300.0
_MANY_LOOKS: Final = 32
"""A guest that loads modules all the time has one in transition in many looks, and not in each of so many."""

_TORN: Final = ("changed", "unread")
"""Verdicts that a module gets, too, whose memory changed hands while it was read."""

_SUSPECT: Final = (*_TORN, "unknown")
"""Verdicts that a module gets that has left: its very name may be another's by then."""


@dataclass(frozen=True, slots=True)
class ModuleCodeLook:
    """All modules of one moment, by name; `references` counts those that the reference names."""

    modules: tuple[ModuleCode, ...]
    references: int


def read_module_code(kernel: RunningKernel, judge: ModuleJudge, *, now: float) -> ModuleCodeLook:
    """Compare every listed module. Raises MalformedError or MemoryFault if the list cannot be followed."""
    listed = _listed(kernel)
    judge.begin()
    moving = {key for key, module in listed.items() if module.state != "live"}
    moving -= _lasting(kernel, "modules in transition", moving, listed, now)
    whole = judge.whole(kernel, listed, moving)
    found: dict[ModuleKey, ModuleCode] = {}
    for key, module in listed.items():
        if key in moving:
            found[key] = told(module, IN_TRANSITION, reason=f"it is {module.state}")
        else:
            found[key] = whole.get(key) or judge.compare(kernel, key, listed)
    if not kernel.paused:
        _look_again(kernel, judge, listed, found, now)
    _tell_what_lasts(kernel, listed, found, now)
    judge.forget_others(listed.keys())
    return ModuleCodeLook(tuple(sorted(found.values(), key=lambda code: code.name)), judge.references)


def _lasting(
    kernel: RunningKernel,
    topic: str,
    keys: Set[ModuleKey],
    listed: Mapping[ModuleKey, Module],
    now: float,
) -> set[ModuleKey]:
    """Return those modules of which a guest has said for too long what passes in moments.

    A module is known by its place: all else that it says of itself may be another in each look. Where there
    was one or the other in many looks in a row, all of them have lasted, so that nobody evades by taking
    turns.
    """
    places = {listed[key].address for key in keys}
    old = kernel.patience.settled(topic, places, now)
    always = kernel.patience.settled(
        f"{topic}, always", {topic} if keys else set(), now, seconds=_LONG, looks=_MANY_LOOKS
    )
    return {key for key in keys if always or listed[key].address in old}


def _listed(kernel: RunningKernel) -> dict[ModuleKey, Module]:
    return {module_key(module): module for module in listed_modules(kernel.program)}


def _look_again(
    kernel: RunningKernel,
    judge: ModuleJudge,
    listed: Mapping[ModuleKey, Module],
    found: dict[ModuleKey, ModuleCode],
    now: float,
) -> None:
    """Look once more at modules that seem not to be as packaged, before that is told of them.

    Memory is freed under the eyes of whoever reads it. A module may have left while it was compared, and it
    may have come again, at the same place. Whether it has left is the guest's word: it is taken for some
    seconds, as that of a module that is being loaded is.
    """
    suspects = [key for key, code in found.items() if code.verdict in _SUSPECT]
    gone: set[ModuleKey] = set()
    if suspects:
        again = _listed(kernel)
        for key in suspects:
            if key in again and found[key].verdict in _TORN:
                found[key] = judge.compare(kernel, key, again)
        left = {key for key in suspects if found[key].verdict in _SUSPECT}
        gone = left - again.keys()
        if left - gone:
            gone |= left - _listed(kernel).keys()
    for key in gone - _lasting(kernel, "modules that leave while they are compared", gone, listed, now):
        found[key] = told(listed[key], IN_TRANSITION, reason="it was unloaded meanwhile")


def _tell_what_lasts(
    kernel: RunningKernel,
    listed: Mapping[ModuleKey, Module],
    found: dict[ModuleKey, ModuleCode],
    now: float,
) -> None:
    """Tell of sites that stay half changed, as of those of the kernel's own text.

    A module has hundreds of sites that are changed one after the other while it is loaded, so it is each
    site that must not stay so.
    """
    half_done = {
        (listed[key].address, run.site, run.address) for key, code in found.items() for run in code.settling
    }
    excused = bool(half_done) and is_changing_code(kernel.program)
    unseen = {
        listed[key].address for key, code in found.items() if not code.compared or code.verdict == "unread"
    }
    lasting = kernel.patience.settled(
        "sites of modules", half_done, now, excused=excused, unseen=lambda site: site[0] in unseen
    )
    for key, code in found.items():
        place = listed[key].address
        stuck = tuple(run for run in code.settling if (place, run.site, run.address) in lasting)
        if stuck:
            found[key] = replace(
                code,
                verdict="changed",
                differences=(*code.differences, *stuck)[:MOST_DIFFERENCES],
                settling=tuple(run for run in code.settling if run not in stuck),
            )
