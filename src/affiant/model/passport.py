"""The passport: what a machine shows to a relying party."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Passport"]


@dataclass(frozen=True, slots=True)
class Passport:
    """Unverified: two signed messages (COSE_Sign1 bytes), decoded from one CMW collection."""

    session_report: bytes
    runtime_report: bytes
