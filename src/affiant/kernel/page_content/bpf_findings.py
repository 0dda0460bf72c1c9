"""What a look at code of BPF has found so far, to be claimed with the memory around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from affiant.kernel.page_content.claim import Claim, Fault

__all__ = ["MOST_FAULTS", "BpfFindings"]

MOST_FAULTS: Final = 64
"""Faults that are told of one claim."""


@dataclass(slots=True)
class BpfFindings:
    """What a look at one claim has found so far."""

    owner: str
    faults: list[Fault] = field(default_factory=list)
    pieces: int = 0
    trusted: int = 0
    reasons: dict[str, None] = field(default_factory=dict)
    leaving: list[Fault] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)

    def blame(self, address: int, reason: str, code: bytes) -> None:
        """Note code that its owner must not have."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(Fault.at(address, self.owner, reason, code))

    def leave(self, address: int, reason: str, code: bytes, *, waits: bool) -> None:
        """Note code that may be about to go; it `waits` if the kernel's queues lead to it."""
        if len(self.leaving) < MOST_FAULTS:
            self.leaving.append(Fault.at(address, self.owner, reason, code))
            self.waiting |= {address} if waits else set()

    def add(self, other: BpfFindings) -> None:
        """Note all that another has found; of what is leaving, nothing."""
        self.faults += other.faults[: MOST_FAULTS - len(self.faults)]
        self.pieces += other.pieces
        self.trusted += other.trusted
        self.reasons |= other.reasons

    def trust(self, reason: str) -> None:
        """Note that something was taken on trust."""
        self.trusted += 1
        self.reasons[reason] = None

    def claim(self, start: int, end: int) -> Claim:
        """Return the claim on [start, end) with what was found there."""
        faults = tuple(self.faults)
        trust = "; ".join(self.reasons)
        return Claim(
            start,
            end,
            self.owner,
            faults,
            self.pieces,
            self.trusted,
            trust,
            leaving=tuple(self.leaving),
            waiting=frozenset(self.waiting),
        )
