"""Judging what machines looked like by a rule that did not exist then: "were we hit by this last week?"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from affiant.assertions.engine import Engine
from affiant.assertions.query import query_identity
from affiant.assertions.script import Script
from affiant.model.fact_record import FactRecord
from affiant.model.finding import Finding
from affiant.model.outcome import AssertionResult, Outcome
from affiant.trial.kept import KeptRecord

__all__ = ["Episode", "MachineHistory", "facts_for", "rejudge"]


@dataclass(frozen=True, slots=True)
class Episode:
    """Records in a row that violate the rule; times are seconds since the epoch.

    `last_good` is the last record before on which it held, or None: when it began lies between that and
    `first`. `findings` are those of the first.
    """

    last_good: int | None
    first: int
    last: int
    records: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class MachineHistory:
    """What one rule says of one machine's records: how many had each outcome, and the episodes.

    `reasons` counts why records were inconclusive or the rule not applicable. From `first` to `last`, of
    which only the moments of the records are known.
    """

    device: bytes
    first: int
    last: int
    outcomes: Mapping[Outcome, int]
    episodes: tuple[Episode, ...]
    reasons: Mapping[str, int]


def rejudge(
    engine: Engine,
    records: Iterable[KeptRecord],
    *,
    load: Callable[[KeptRecord], FactRecord],
    versions: Mapping[str, int],
) -> tuple[MachineHistory, ...]:
    """Judge records, in order of machine and time, by the one rule of the engine's bundle.

    `load` returns a record with its facts, one at a time. `versions` are those of the built-in facts that
    the rule was written for.
    """
    (script,) = engine.bundle.scripts
    histories = []
    for device, group in groupby(records, key=lambda kept: kept.record.device):
        looks = []
        for kept in group:
            (result,) = engine.judge(facts_for(script, load(kept), versions=versions))
            looks.append((kept.record.taken_at, result))
        histories.append(_history(device, looks))
    return tuple(histories)


def facts_for(script: Script, record: FactRecord, *, versions: Mapping[str, int]) -> dict[str, Any]:
    """Return what a script reads, out of a record; what is not in it is unavailable, and says so.

    A built-in fact must have the version that `versions` names: its meaning may be another otherwise. The
    answer to a query is that of any rule which asked exactly the same.
    """
    facts: dict[str, Any] = {}
    for name in script.facts:
        wanted, origin = f"fact {versions.get(name, 0)}", record.origins.get(name, "")
        if origin == wanted:
            facts[name] = record.facts[name]
        elif origin:
            facts[name] = _unavailable(f"it was recorded as {origin}, and the rule reads {wanted}")
        else:
            facts[name] = _unavailable(_missing(name, record))
    by_origin = {origin: name for name, origin in sorted(record.origins.items(), reverse=True)}
    for name, query in script.asked.items():
        answer = by_origin.get(f"query {query_identity(query)}")
        facts[name] = _unavailable(_missing(name, record)) if answer is None else record.facts[answer]
    return facts


def _missing(name: str, record: FactRecord) -> str:
    return (
        "it was too large to keep"
        if name in record.left_out
        else "nobody asked for it when this was recorded"
    )


def _unavailable(reason: str) -> dict[str, str]:
    return {"unavailable": reason}


def _history(device: bytes, looks: Sequence[tuple[int, AssertionResult]]) -> MachineHistory:
    outcomes: dict[Outcome, int] = {}
    reasons: dict[str, int] = {}
    episodes: list[Episode] = []
    last_good: int | None = None
    running: Episode | None = None
    for taken_at, result in looks:
        outcomes[result.outcome] = outcomes.get(result.outcome, 0) + 1
        if result.outcome is Outcome.VIOLATED:
            running = (
                Episode(last_good, taken_at, taken_at, 1, result.findings)
                if running is None
                else Episode(
                    running.last_good, running.first, taken_at, running.records + 1, running.findings
                )
            )
            continue
        if result.outcome is Outcome.HOLDS:
            last_good = taken_at
            if running is not None:
                episodes.append(running)
                running = None
        else:
            reasons[result.reason] = reasons.get(result.reason, 0) + 1
    if running is not None:
        episodes.append(running)
    return MachineHistory(device, looks[0][0], looks[-1][0], outcomes, tuple(episodes), reasons)
