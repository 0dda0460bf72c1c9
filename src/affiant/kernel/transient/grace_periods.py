"""RCU's grace periods: how far a kernel has come with what it frees later.

What is taken off a list is freed when a grace period has passed since. A guest that is short of
processor time takes seconds for one that takes milliseconds elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError

__all__ = ["GracePeriods", "grace_periods"]

_STATE_BITS = 2  # RCU_SEQ_CTR_SHIFT


@dataclass(frozen=True, slots=True)
class GracePeriods:
    """How many grace periods have ended since boot, and whether one is going on. Data of the guest."""

    ended: int
    going_on: bool


def grace_periods(program: KernelProgram) -> GracePeriods | None:
    """Return what the kernel says of them, None if it cannot be read."""
    try:
        place = program.address("rcu_state") + program.offset("struct rcu_state", "gp_seq")
        sequence = program.word(place)
    except AffiantError:
        return None
    return GracePeriods(sequence >> _STATE_BITS, bool(sequence & (1 << _STATE_BITS) - 1))
