"""What is not as it must be on one virtual processor."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deviation"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """`subject` is `IDT gate 14 of CPU 0` and the like; `topic` is `control`, `interrupts`, `segments`,
    `breakpoints`, `system calls`, `per-CPU data` or `memory types`. Texts are for people; addresses are
    hexadecimal.
    """

    cpu: int
    topic: str
    subject: str
    expected: str
    found: str

    def to_json(self) -> dict[str, int | str]:
        """Return it as facts tell it."""
        return {
            "cpu": self.cpu,
            "topic": self.topic,
            "subject": self.subject,
            "expected": self.expected,
            "found": self.found,
        }
