"""How far a rule of a bundle is rolled out: on which machines, when, and whether it is enforced yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from affiant.model.outcome import Mode

__all__ = ["EVERYWHERE", "Rollout"]

_DOMAIN: Final = b"affiant roll-out 1\0"


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where and when one rule of a bundle judges; times are seconds since the epoch.

    `mode` stands in for the MODE of the script (None: the script's own). From `enforce_from` on the rule
    is enforced, whatever stood before. `percent` of the fleet is judged by it: a larger share always
    holds the machines of a smaller one, and each rule begins with other machines. It judges from
    `not_before` on and no longer at `expires`.
    """

    mode: Mode | None = None
    enforce_from: int | None = None
    percent: int = 100
    not_before: int | None = None
    expires: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise ValueError(f"{self.percent} is no percentage")
        if self.not_before is not None and self.expires is not None and self.not_before >= self.expires:
            raise ValueError("a roll-out that ends before it begins")

    def reaches(self, rule: str, device: bytes) -> bool:
        """Tell whether `device` is in the share of the fleet that `rule` is rolled out to."""
        digest = hashlib.sha256(_DOMAIN + rule.encode() + b"\0" + device).digest()
        return int.from_bytes(digest[:8], "big") % 100 < self.percent

    def in_force(self, now: int) -> bool:
        """Tell whether the rule judges at `now`."""
        return (self.not_before is None or self.not_before <= now) and (
            self.expires is None or now < self.expires
        )

    def mode_at(self, now: int, own: Mode) -> Mode:
        """Return the rule's mode at `now`, for a script whose own is `own`."""
        if self.enforce_from is not None:
            return Mode.ENFORCE if now >= self.enforce_from else self.mode or Mode.AUDIT
        return self.mode or own

    @property
    def changes(self) -> tuple[int, ...]:
        """The moments at which what `in_force` and `mode_at` answer may change, in order."""
        moments = (self.not_before, self.enforce_from, self.expires)
        return tuple(sorted({moment for moment in moments if moment is not None}))


EVERYWHERE: Final = Rollout()
"""On all machines, at once, as the script says."""
