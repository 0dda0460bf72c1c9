"""What a benchmark gives: rows of ours against a limit, and a way to time fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Row", "in_turn", "least_in_turn", "print_table"]

_SMALL = 0.02  # below, a ratio is told as a fraction


@dataclass(frozen=True, slots=True)
class Row:
    """Two times in milliseconds, medians or the least of many runs; `limit` names what is compared with."""

    what: str
    ours_ms: float
    limit: str
    limit_ms: float

    @property
    def ratio(self) -> float:
        """How many times the limit ours takes."""
        return self.ours_ms / self.limit_ms


def in_turn(ours: Callable[[], object], limit: Callable[[], object], *, runs: int) -> tuple[float, float]:
    """Return the medians in milliseconds of two functions run in turn, after one run that is not counted.

    In turn, so that a machine that becomes slower becomes so for both.
    """
    ours_took, limit_took = _timed(ours, limit, runs, time.perf_counter)
    return statistics.median(ours_took), statistics.median(limit_took)


def least_in_turn(
    ours: Callable[[], object], limit: Callable[[], object], *, runs: int
) -> tuple[float, float]:
    """Return the least CPU time of a run of two functions in milliseconds, as `in_turn` runs them.

    The time of this thread, and the least, since whatever else the machine does only adds.
    """
    ours_took, limit_took = _timed(ours, limit, runs, time.thread_time)
    return min(ours_took), min(limit_took)


def _timed(
    ours: Callable[[], object], limit: Callable[[], object], runs: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for function, into in zip((ours, limit), times, strict=True):
            started = clock()
            function()
            if run:
                into.append(1_000 * (clock() - started))
    return times


def print_table(title: str, rows: list[Row]) -> None:
    """Print rows as a Markdown table."""
    print(f"\n## {title}\n")
    print("| what | ours | beside it | takes | ratio |")
    print("|---|---:|---|---:|---:|")
    for row in rows:
        times = f"{row.ours_ms:.3f} ms | {row.limit} | {row.limit_ms:.3f} ms"
        print(f"| {row.what} | {times} | {_told(row.ratio)} |")


def _told(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= _SMALL else f"1/{1 / ratio:,.0f}"
