"""What a fact is: something seen, or the reason why it was not to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from affiant.kernel.facts.as_json import Json

__all__ = ["Fact", "Unavailable"]


class Fact(Protocol):
    """Something seen; every fact is a frozen value of one moment."""

    def to_json(self) -> dict[str, Json]:
        """Return the fact as an assertion script reads it."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A fact that could not be established; `reason` is one sentence."""

    reason: str

    def to_json(self) -> dict[str, Json]:
        """Return exactly `{"unavailable": reason}`."""
        return {"unavailable": self.reason}
