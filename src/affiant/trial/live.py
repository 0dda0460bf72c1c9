"""A machine that runs now, judged by scripts that nobody has published yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affiant.model.outcome import AssertionResult, Outcome

if TYPE_CHECKING:
    from affiant.assertions.engine import Engine
    from affiant.assertions.script import Script
    from affiant.inspect.look import Target

__all__ = ["LiveMachine", "judge_until", "open_machine"]

Facts = Mapping[str, Mapping[str, Any]]
_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class LiveMachine:
    """A running machine whose kernel was recognised; `facts_of` looks at it now."""

    name: str
    release: str
    facts_of: Callable[[Sequence[Script]], Facts]


@contextmanager
def open_machine(target: Target) -> Iterator[LiveMachine]:
    """Open a machine for looks, which remember what they have seen before (`affiant.kernel.transient`).

    Raises `UnavailableError` if it does not run the reference's kernel, and what opening its memory and
    asking for its registers raise.
    """
    from affiant.inspect.registers import read_register_listings
    from affiant.inspect.saved_registers import read_saved_registers
    from affiant.kernel.facts.registry import collect
    from affiant.kernel.guest import Guest
    from affiant.kernel.machine.cpu import CpuState, parse_registers
    from affiant.kernel.machine.memory import GuestMemory
    from affiant.kernel.queries.answers import answer_queries
    from affiant.kernel.reference import ReferenceImage

    def cpus() -> list[CpuState]:
        listings = read_register_listings(target.qmp)
        return [parse_registers(text, index=index) for index, text in enumerate(listings)]

    reference = ReferenceImage.load(target.reference)
    with GuestMemory.open(
        target.ram, memory_bytes=target.memory_bytes, below_4g_bytes=target.below_4g_bytes
    ) as memory:
        guest = Guest.open(memory, reference, cpus())

        def facts_of(scripts: Sequence[Script]) -> Facts:
            nonlocal guest
            guest = guest.refresh(cpus())
            names = sorted({fact for script in scripts for fact in script.facts})
            if "system_registers" in names:
                guest = guest.with_saved(read_saved_registers(target.saved_cpus))
            queries = {name: query for script in scripts for name, query in script.asked.items()}
            # Counted as a monitor counts it: a host that is busy makes no rule inconclusive.
            seen = collect(guest, names) | answer_queries(guest, queries, clock=time.thread_time)
            return {name: fact.to_json() for name, fact in seen.items()}

        yield LiveMachine(target.name, reference.release, facts_of)


def judge_until(
    machine: LiveMachine,
    engine: Engine,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[tuple[AssertionResult, ...], Facts]:
    """Look again and again for `seconds` (0: once), until a rule is violated; return verdicts and facts.

    A violation counts if a second look has it too: a kernel that runs is caught in the middle of things
    now and then. The facts are those of the last look.
    """
    scripts = engine.bundle.scripts
    end = clock() + seconds
    while True:
        facts = machine.facts_of(scripts)
        results = engine.judge(facts)
        if _violated(results):
            facts = machine.facts_of(scripts)
            results = engine.judge(facts)
            if _violated(results):
                return results, facts
        if clock() + _BETWEEN_LOOKS > end:
            return results, facts
        wait(_BETWEEN_LOOKS)


def _violated(results: Sequence[AssertionResult]) -> bool:
    return any(result.outcome is Outcome.VIOLATED for result in results)
