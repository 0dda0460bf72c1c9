"""How much slower a healthy guest's own work becomes when its kernel is looked at once a second.

Two parts, told apart and summed. The first is processor time: what a fixed piece of work in the guest costs
the threads of its vCPUs (the host's kernel counts it in nanoseconds), with looks and without, in
turn. It holds all that a look does to a vCPU that runs: interruptions while registers are listed, cold
caches, translations made again. The second is the time for which the vCPUs stood still, as a share of
all time.

Neither holds that looks take processor time of the host, of which the guest has less where it has no
processors of its own. The clock would tell all at once, and on a busy host tells mostly of the others.

Looks that follow each other without a pause show many times as much as one a second; their cost for each
look is the same and far easier to tell from noise.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome
from affiant.monitor.watch import KernelWatch
from benchmarks.guest import shared_guest
from benchmarks.stops import Stop, Stops
from benchmarks.table import Row
from lab.live_guest import LiveGuest
from lab.monitoring import watch_over

_ROUNDS, _RESAMPLED = 60, 4000
_MOST = 0.5  # percent
_WORK = {
    "arithmetic of a shell": "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done",
    "system calls: reads and writes of one byte": (
        "dd if=/dev/zero of=/dev/null bs=1 count=400000 2>/dev/null"
    ),
}


@dataclass(frozen=True, slots=True)
class _Block:
    """One run of the work: processor time of all vCPUs, time by the clock (both in seconds), looks made."""

    processor: float
    clock: float
    looks: int


@dataclass(frozen=True, slots=True)
class _Round:
    """The work without looks, with one each second, and with one after the other."""

    without: _Block
    each_second: _Block
    always: _Block


_rounds: dict[str, list[_Round]] = {}
_stops: list[Stop] = []


def rows() -> list[Row]:
    """Measure; processor time of the work, medians."""
    live = shared_guest()
    with Engine(packaged_library()) as engine, watch_over(live, engine) as watch:
        watch.look()  # finds the kernel
        stops = Stops(live)
        for what, work in _WORK.items():
            _measure(live, watch, work)  # the first only warms up
            _rounds[what] = []
            for number in range(_ROUNDS):
                _rounds[what].append(_round(live, watch, work, stops, backwards=bool(number % 2)))
    return [
        Row(
            f"{what}, {name}",
            _median_ms(getattr(each, kind) for each in rounds),
            "processor time without",
            _median_ms(each.without for each in rounds),
        )
        for what, rounds in _rounds.items()
        for kind, name in (("each_second", "a look each second"), ("always", "look after look"))
    ]


def notes() -> list[str]:
    """Return the slow-down in percent, with what it is not known better than."""
    lines = ["| slow-down at one look a second | percent | 95 % of resamples |", "|---|---:|---:|"]
    blocks = [each.each_second for rounds in _rounds.values() for each in rounds]
    stood = 100 * sum(stop.asked_ms for stop in _stops) / 1_000 / sum(block.clock for block in blocks)
    for what, rounds in _rounds.items():
        direct = [100 * (each.each_second.processor / each.without.processor - 1) for each in rounds]
        for_each = [
            100 * (each.always.processor - each.without.processor) / each.always.looks for each in rounds
        ]
        lines.append(_line(f"{what}: processor time, looked at each second", direct))
        lines.append(_line(f"{what}: processor time, from look after look", for_each))
        low, high = _interval(for_each)
        total = statistics.median(for_each) + stood
        lines.append(
            f"| {what}: the same and standing still | {total:.2f} | {low + stood:.2f} to {high + stood:.2f} |"
        )
    looks = sum(block.looks for block in blocks)
    lines.append(f"| standing still, {len(_stops)} stops at {looks} looks | {stood:.3f} | |")
    every = statistics.median(
        each.always.looks / each.always.clock for rounds in _rounds.values() for each in rounds
    )
    return [
        *lines,
        "",
        f"Goal: {_MOST} percent. One percent is 10 ms of a vCPU for each look. "
        f"Look after look means {every:.1f} a second.",
        f"A stop lasted {statistics.median(stop.asked_ms for stop in _stops):.1f} ms in the median, from the "
        "command to stop until the guest ran on.",
    ]


def _round(live: LiveGuest, watch: KernelWatch, work: str, stops: Stops, *, backwards: bool) -> _Round:
    blocks: dict[str, _Block] = {}
    kinds: dict[str, float | None] = {"without": None, "each_second": 1.0, "always": 0.0}
    for kind in sorted(kinds, reverse=backwards):
        stops.taken()
        blocks[kind] = _measure(live, watch, work, every=kinds[kind])
        if kind == "each_second":
            _stops.extend(stops.taken())
    return _Round(**blocks)


def _measure(live: LiveGuest, watch: KernelWatch, work: str, *, every: float | None = None) -> _Block:
    threads = [int(cpu["thread-id"]) for cpu in live.monitor.cmd("query-cpus-fast")]
    with _looks(watch, every) as made:
        used, began = _processor_time(threads), time.perf_counter()
        live.lab.console.run(work)
        return _Block(_processor_time(threads) - used, time.perf_counter() - began, len(made))


def _processor_time(threads: Sequence[int]) -> float:
    """Return what threads have used, in seconds (Documentation/scheduler/sched-stats.rst)."""
    return sum(int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def _looks(watch: KernelWatch, every: float | None) -> Iterator[list[float]]:
    """Look every so many seconds meanwhile (never, if None), the first time at a moment drawn by lot."""
    made: list[float] = []
    if every is None:
        yield made
        return
    done = threading.Event()
    wrong: set[str] = set()

    def look() -> None:
        due = time.perf_counter() + every * random.random()
        while not done.wait(max(0.0, due - time.perf_counter())):
            due = max(due + every, time.perf_counter())
            made.append(due)
            wrong.update(each.name for each in watch.look().results if each.outcome is Outcome.VIOLATED)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield made
    finally:
        done.set()
        thread.join()
    if wrong:
        raise AssertionError(f"the guest is not healthy: {sorted(wrong)}")


def _median_ms(blocks: Iterator[_Block]) -> float:
    return 1_000 * statistics.median(block.processor for block in blocks)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of 95 % of the medians of resamples (bootstrap)."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLED))
    return medians[int(0.025 * _RESAMPLED)], medians[int(0.975 * _RESAMPLED)]


def _line(what: str, values: Sequence[float]) -> str:
    low, high = _interval(values)
    return f"| {what} | {statistics.median(values):.2f} | {low:.2f} to {high:.2f} |"
