"""A fact record: everything that one look at a kernel saw, kept for rules that are written later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affiant.model.runtime_report import RulesUsed

__all__ = ["FactRecord"]


@dataclass(frozen=True, slots=True)
class FactRecord:
    """The facts of one look, as scripts read them, and who looked when.

    `device` is the machine, `taken_at` the service's time in seconds since the epoch. `chain` is
    random, one for each start of a monitor; in it records are numbered from 1, and `previous` is the
    digest of the one before (zeros for the first), so that a record taken out of the middle is missed.
    `rules` judged this look, `reference` is the reference image it was compared with.

    `facts` maps names to JSON values. `origins` tells what each is: "fact VERSION" for a built-in one,
    "query DIGEST" for an answer, so that a rule that asks the same finds it. `left_out` names facts that
    were too large to keep. `digest` is that of the signed message.
    """

    device: bytes
    taken_at: int
    chain: bytes
    sequence: int
    previous: bytes
    rules: RulesUsed
    reference: bytes | None
    facts: Mapping[str, Any]
    origins: Mapping[str, str]
    left_out: tuple[str, ...]
    digest: bytes
