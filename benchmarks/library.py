"""The engine over facts of the benchmarks' guest: the packaged library, and 200 rules made of it.

By the clock, worker included, the least and the median of many rounds. Reading the facts does not count,
turning them into JSON does. "Each rule judged" is what a round costs in which everything is new; in a
steady kernel most facts are the same as before, and verdicts that hold stand for some rounds.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

from affiant.assertions.bundle import Bundle, make_bundle, packaged_library
from affiant.assertions.engine import Engine
from affiant.assertions.limits import DEFAULT_LIMITS, Limits
from affiant.kernel.facts.registry import collect
from affiant.kernel.queries.answers import answer_queries
from affiant.model.outcome import Outcome
from benchmarks.guest import shared_guest
from benchmarks.table import Row

_RULES, _ROUNDS = 200, 40
_EACH_JUDGED = replace(DEFAULT_LIMITS, kept_rounds=0)


def rows() -> list[Row]:
    """The library, then 200 rules, each with all verdicts new and with a steady kernel's."""
    guest, library = shared_guest().guest, packaged_library()
    seen = collect(guest, library.facts) | answer_queries(guest, library.queries)
    facts = {name: fact.to_json() for name, fact in seen.items()}
    many = _many(library)
    for name in many.queries:
        script, _, query = name.rpartition(".")
        facts[name] = facts[f"{_original(script)}.{query}"]
    found: list[Row] = []
    for bundle, most_ms in ((library, 15.0), (many, 60.0)):
        what = f"{len(bundle.scripts)} rules"
        for how, limits in (("each rule judged", _EACH_JUDGED), ("steady", DEFAULT_LIMITS)):
            least, median = _rounds(bundle, facts, limits)
            goal = f"goal {most_ms:.0f} ms"
            found.append(Row(f"{what}, {how}, least round", least, goal, most_ms))
            found.append(Row(f"{what}, {how}, median", median, goal, most_ms))
    return found


def _many(library: Bundle) -> Bundle:
    """Repeat the library's rules under other names, with the queries that each of them asks."""
    sources: dict[str, str] = {}
    for number in range(_RULES):
        script = library.scripts[number % len(library.scripts)]
        name = f"{script.name}_{number}"
        sources[name] = script.source.replace(f'NAME = "{script.name}"', f'NAME = "{name}"')
    return make_bundle("many", 1, sources)


def _original(script: str) -> str:
    return re.sub(r"_\d+$", "", script)


def _rounds(bundle: Bundle, facts: Mapping[str, object], limits: Limits) -> tuple[float, float]:
    blind = {name for name, fact in facts.items() if isinstance(fact, dict) and "unavailable" in fact}
    took: list[float] = []
    with Engine(bundle, limits=limits) as engine:
        engine.judge(facts)  # the worker starts and compiles
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            results = engine.judge(facts)
            took.append(1_000 * (time.perf_counter() - started))
    for script, result in zip(bundle.scripts, results, strict=True):
        if result.outcome is not Outcome.HOLDS and not blind & set(script.reads.values()):
            raise AssertionError(f"{result.name} does not hold: {result.reason or result.findings}")
    return min(took), statistics.median(took)
