"""What an owner of executable pages says of them: where they are, and whether they hold what it may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE

__all__ = ["Claim", "Fault", "is_filler", "pages_around"]

_FILLERS: Final = (b"\x00", b"\xcc")
_SHOWN: Final = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """Code at `address` that its owner is not entitled to; `found` is what stands there, at most 64 bytes."""

    address: int
    owner: str
    reason: str
    found: bytes

    @classmethod
    def at(cls, address: int, owner: str, reason: str, code: bytes) -> Fault:
        """Return a fault whose code begins with `code`."""
        return cls(address, owner, reason, code[:_SHOWN])


@dataclass(frozen=True, slots=True)
class Claim:
    """[start, end), whole pages, belong to `owner`.

    `pieces` counts what was looked at in them (programs, slots, trampolines, templates); `trusted` those
    of which a part was taken on trust, for the reason in `trust`. `leaving` is code that
    its owner may have had, and that nobody has freed yet; `waiting` are the addresses of that which the
    kernel says it will free.
    """

    start: int
    end: int
    owner: str
    faults: tuple[Fault, ...] = ()
    pieces: int = 1
    trusted: int = 0
    trust: str = ""
    leaving: tuple[Fault, ...] = ()
    waiting: frozenset[int] = frozenset()


def is_filler(code: bytes) -> bool:
    """Tell whether memory holds no code: nothing but zeros, or nothing but INT3 (or is empty)."""
    return not code or (code == code[:1] * len(code) and code[:1] in _FILLERS)


def pages_around(start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the pages that [start, end) lies in."""
    return start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
