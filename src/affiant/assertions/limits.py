"""How much an assertion script may use: every bound of this package in one value."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on scripts, facts and the worker; the defaults are those of a monitor.

    `source_bytes`: one script, UTF-8. `fact_bytes`: one fact as JSON; `facts_bytes`: all facts of
    one round. `answer_bytes`: what the worker may say about one script. `fuel`: steps of the
    evaluator for one script, in thousands, counted exactly, so that the same facts always end the
    same way. `cpu_seconds`: processor time of one script, for single operations that fuel cannot
    interrupt. `wall_seconds`: the same by the wall clock, far longer because a busy host is no
    fault of the script. `round_seconds`: one whole round; scripts that it leaves no time for
    are inconclusive. `memory_bytes`: address space of the worker. `call_depth`: nested calls.
    `life_cpu_seconds` (processor time) and `life_rounds`: beyond, an idle worker is replaced.
    `kept_rounds`: a verdict that holds stands for at most so many rounds in which its facts are the same.
    """

    source_bytes: int = 64 * 1024
    fact_bytes: int = 4 * 1024 * 1024
    facts_bytes: int = 12 * 1024 * 1024
    answer_bytes: int = 256 * 1024
    fuel: int = 3000
    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    round_seconds: float = 30.0
    memory_bytes: int = 256 * 1024 * 1024
    call_depth: int = 64
    life_cpu_seconds: int = 60
    life_rounds: int = 1000
    kept_rounds: int = 32


DEFAULT_LIMITS = Limits()
"""What a monitor works under."""
