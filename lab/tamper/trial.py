"""Tries a technique on a live guest: told by its rule, undone, the guest alive, everything as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from affiant.assertions.engine import Engine
from affiant.model.outcome import AssertionResult, Outcome
from lab.live_guest import LiveGuest
from lab.looking import Clock, judge_one_moment, judge_twice, looks
from lab.tamper.technique import Technique

__all__ = ["MOST_SECONDS", "Sighting", "assert_healthy", "try_technique"]

MOST_SECONDS: Final = 220.0
"""What a monitor believes for a while, it believes for two minutes; what it counts takes two dozen looks."""

_ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class Sighting:
    """How a technique was told: in which look, after how many seconds, and in which words."""

    technique: Technique
    looks: int
    seconds: float
    told: str


def try_technique(live: LiveGuest, engine: Engine, technique: Technique, *, clock: Clock) -> Sighting:
    """Tamper until it is told, undo it, and see the guest healthy again; raises AssertionError if it is not.

    When it returns, the technique's rule told it in a finding about the right subject (or was made
    inconclusive for the reason given), the guest's shell answers, and every rule holds.
    """
    with technique.tamper(live) as subject:
        assert subject, f"{technique.name} names no subject"
        sighting = _sight(live, engine, technique, subject, clock=clock)
    assert_healthy(live, engine, clock=clock)
    return sighting


def assert_healthy(live: LiveGuest, engine: Engine, *, clock: Clock) -> None:
    """See that a command at the guest's console answers, and that every rule holds."""
    assert live.lab.console.run(f"echo {_ALIVE}").strip() == _ALIVE
    for result in judge_twice(live, engine, clock=clock):
        assert result.outcome is Outcome.HOLDS, (result.name, result.outcome, result.reason, result.findings)


def _sight(live: LiveGuest, engine: Engine, technique: Technique, subject: str, *, clock: Clock) -> Sighting:
    began = clock.now()
    unconfirmed: list[str] = []
    seen = looks(live, engine, technique.rule, clock=clock, seconds=MOST_SECONDS)
    for number, (result, facts) in enumerate(seen, start=1):
        told = _telling(technique, subject, result)
        if told is not None and _at_its_site(technique, subject, facts):
            (again,) = judge_one_moment(live, engine, [technique.rule], clock=clock)
            if _telling(technique, subject, again) is not None:
                return Sighting(technique, number, clock.now() - began, told)
            unconfirmed.append(f"look {number} told it, and at one moment it was {_verdict(again)}")
    raise AssertionError(
        f"{technique.name}: {technique.rule} does not tell {subject!r} within {MOST_SECONDS:.0f} s, "
        f"but is {_verdict(result)} {unconfirmed}"
    )


def _verdict(result: AssertionResult) -> str:
    return f"{result.outcome.value}: {result.reason or result.findings}"


def _telling(technique: Technique, subject: str, result: AssertionResult) -> str | None:
    """Return the words in which a result tells of a technique's subject, None if it does not."""
    if result.outcome is not technique.outcome:
        return None
    if technique.outcome is Outcome.INCONCLUSIVE:
        return result.reason if subject in result.reason else None
    return next((finding.subject for finding in result.findings if finding.subject.startswith(subject)), None)


def _at_its_site(technique: Technique, subject: str, facts: dict[str, Any]) -> bool:
    """Tell whether the fact names the patch site that a technique changes, where it changes one."""
    if not technique.site:
        return True
    return (subject, technique.site) in {
        (run["symbol"], run["site"]) for run in facts["kernel_text"]["unexplained"]
    }
