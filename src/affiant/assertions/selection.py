"""Which rules of a bundle judge one machine, at one time."""

from __future__ import annotations

from dataclasses import replace

from affiant.assertions.bundle import Bundle
from affiant.assertions.rollout import EVERYWHERE

__all__ = ["next_change", "select"]


def select(bundle: Bundle, *, device: bytes, now: int) -> Bundle:
    """Return `bundle` with those of its rules that judge `device` at `now`, each in its mode of then.

    Name, version and digest stay those of the whole bundle: which rules of it judged, a report says
    itself. May be left without any rule. `next_change` tells when the answer may be another.
    """
    scripts = []
    for script in bundle.scripts:
        rollout = bundle.rollouts.get(script.name, EVERYWHERE)
        if rollout.in_force(now) and rollout.reaches(script.name, device):
            scripts.append(replace(script, mode=rollout.mode_at(now, script.mode)))
    return replace(bundle, scripts=tuple(scripts))


def next_change(bundle: Bundle, *, now: int) -> int | None:
    """Return the first moment after `now` at which `select` may answer otherwise; None: never."""
    moments = [moment for rollout in bundle.rollouts.values() for moment in rollout.changes if moment > now]
    return min(moments, default=None)
