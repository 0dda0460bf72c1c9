"""Looks at a running guest as a monitor does: facts, and what the rules say of them.

Without session and signature: what a whole monitor adds is tested with a whole monitor.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

from affiant.assertions.engine import Engine
from affiant.assertions.script import Script
from affiant.kernel.facts.registry import collect
from affiant.kernel.queries.answers import answer_queries
from affiant.model.outcome import AssertionResult, Outcome
from affiant.monitor.one_moment import Machine, Moments
from affiant.monitor.registers import Moment
from lab.live_guest import LiveGuest

__all__ = ["Clock", "SkippingClock", "WaitingClock", "facts_of", "judge_one_moment", "judge_twice", "looks"]

_SPACING, _LATER_SPACING = 1.0, 10.0  # seconds between two looks
_CLOSE_LOOKS = 10
_QUERY_SECONDS = 2.0


class Clock(Protocol):
    """The monotonic time that looks are made at."""

    def now(self) -> float:
        """Return seconds."""
        ...

    def rest(self, seconds: float) -> None:
        """Let the time between two looks pass."""
        ...


class WaitingClock:
    """Time as it is."""

    def now(self) -> float:
        """Return monotonic time."""
        return time.monotonic()

    def rest(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class SkippingClock:
    """Time that jumps from one look to the next, so that nobody waits for what only time tells.

    What a monitor believes for a while, it believes by its own clock, not by the guest's.
    """

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        """Return monotonic time, and all that was skipped."""
        return time.monotonic() + self._skipped

    def rest(self, seconds: float) -> None:
        """Skip the time between two looks."""
        self._skipped += seconds


def facts_of(
    live: LiveGuest,
    scripts: Sequence[Script],
    *,
    now: float | None = None,
    moment: Moment | None = None,
    at_rest: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return what scripts read, at a moment or now; answers to their queries among it."""
    guest = live.refreshed(moment)
    guest = guest.at_rest() if at_rest else guest
    names = sorted({fact for script in scripts for fact in script.facts})
    queries = {name: query for script in scripts for name, query in script.asked.items()}
    seen = collect(guest, names, now=now)
    # Counted as a monitor counts it: this thread's processor time, whatever else the host does.
    seen |= answer_queries(guest, queries, seconds=_QUERY_SECONDS, clock=time.thread_time)
    return {name: fact.to_json() for name, fact in seen.items()}


def judge_twice(live: LiveGuest, engine: Engine, *, clock: Clock) -> tuple[AssertionResult, ...]:
    """Look, and look again at one moment where something seems violated: only what still stands is told."""
    scripts = engine.bundle.scripts
    results = engine.judge(facts_of(live, scripts, now=clock.now()))
    suspects = [result.name for result in results if result.outcome is Outcome.VIOLATED]
    if not suspects:
        return results
    confirmed = {result.name: result for result in judge_one_moment(live, engine, suspects, clock=clock)}
    return tuple(confirmed.get(result.name, result) for result in results)


def judge_one_moment(
    live: LiveGuest,
    engine: Engine,
    names: Collection[str],
    *,
    clock: Clock,
    machine: Machine | None = None,
) -> tuple[AssertionResult, ...]:
    """Return what the named rules say of one moment, as a monitor confirms what seems violated.

    `machine` stops the guest in the place of its own launcher.
    """
    scripts = [script for script in engine.bundle.scripts if script.name in names]
    look = partial(facts_of, live, scripts, at_rest=True)
    facts = Moments(live.memory, machine or live).look(
        lambda moment: look(now=clock.now(), moment=moment),
        paused=lambda: look(now=clock.now()),
        device_state=True,
    )
    return engine.judge(facts, only=names)


def looks(
    live: LiveGuest, engine: Engine, rule: str, *, clock: Clock, seconds: float
) -> Iterator[tuple[AssertionResult, dict[str, dict[str, Any]]]]:
    """Look again and again, as a monitor does; yield what one rule says and the facts it read.

    The first ten looks are a second apart, later ones ten.
    """
    (script,) = (script for script in engine.bundle.scripts if script.name == rule)
    deadline = clock.now() + seconds
    for number in count():
        facts = facts_of(live, [script], now=clock.now())
        (result,) = engine.judge(facts, only=[rule])
        yield result, facts
        if clock.now() > deadline:
            return
        clock.rest(_SPACING if number < _CLOSE_LOOKS else _LATER_SPACING)
