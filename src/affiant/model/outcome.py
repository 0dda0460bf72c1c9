"""The four outcomes of looking, and what one assertion concluded.

"Nothing looked at" proves nothing: it is `INCONCLUSIVE`, never `HOLDS`. The outcomes are kept
apart up to the last screen; nothing here is truthy on purpose.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from affiant.model.finding import Finding

__all__ = ["AssertionResult", "Mode", "Outcome"]


class Outcome(enum.Enum):
    """What an assertion concluded; the value is the word used in JSON and on screens."""

    HOLDS = "holds"
    VIOLATED = "violated"
    NOT_APPLICABLE = "not applicable"
    INCONCLUSIVE = "inconclusive"

    def __bool__(self) -> bool:
        raise TypeError("an Outcome is compared, not tested for truth")


class Mode(enum.Enum):
    """Whether a violation makes a relying party refuse (`ENFORCE`) or is told only (`AUDIT`)."""

    ENFORCE = "enforce"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class AssertionResult:
    """The verdict of one assertion on one set of facts.

    `looked_at` counts the observations, good and bad. `HOLDS` implies `looked_at > 0`.
    `findings` are what is wrong (`VIOLATED`: at least one); `reason` says why the outcome is
    inconclusive or not applicable, in one sentence, and is empty otherwise.
    """

    name: str
    version: int
    mode: Mode
    outcome: Outcome
    looked_at: int
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if self.outcome is Outcome.HOLDS and self.looked_at < 1:
            raise ValueError(f"{self.name}: nothing looked at proves nothing")
        if (self.outcome is Outcome.VIOLATED) != bool(self.findings):
            raise ValueError(f"{self.name}: findings and a violation come together")
