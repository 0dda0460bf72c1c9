"""What is told of a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affiant.kernel.comparison.difference import Difference
from affiant.kernel.modules.loaded import Module

__all__ = ["AS_PACKAGED", "IN_TRANSITION", "ModuleCode", "told"]

AS_PACKAGED = "as packaged"
IN_TRANSITION = "in transition"


@dataclass(frozen=True, slots=True)
class ModuleCode:
    """One module: `verdict` is `as packaged`, `changed`, `unknown`, `in transition` or `unread`.

    `digest` is the SHA-256 of the code in memory for an unknown module, "" otherwise; `reason` says why
    something could not be compared, or hashed. `by_class` counts changed bytes by the patch sites that
    explain them. `settling` are sites in a state that a healthy kernel is in for moments: no differences yet.
    """

    name: str
    verdict: str
    base: int
    compared: int
    by_class: Mapping[str, int]
    differences: tuple[Difference, ...]
    hooks: int
    digest: str
    reason: str
    taints: int
    signature_ok: bool | None
    settling: tuple[Difference, ...] = ()


def told(module: Module, verdict: str, *, digest: str = "", reason: str = "") -> ModuleCode:
    """Return a verdict on a module of which nothing was compared."""
    return ModuleCode(
        name=module.name,
        verdict=verdict,
        base=module.base,
        compared=0,
        by_class={},
        differences=(),
        hooks=0,
        digest=digest,
        reason=reason,
        taints=module.taints,
        signature_ok=module.signature_ok,
    )
