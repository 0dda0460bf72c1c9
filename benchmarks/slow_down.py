"""How much slower a healthy guest's own work becomes when its kernel is looked at once a second.

Three parts, told apart and summed. Two are processor time: what a fixed piece of work in the guest costs the
threads of its vCPUs (the host's kernel counts it in nanoseconds) while it is looked at, and while the state
of its devices is saved, beside what it costs without. That holds all that either does to vCPUs that run:
interruptions while registers are listed, cold caches, translations and mappings made again. The third is the
time for which the vCPUs stood still, as a share of all time.

What a look does to its neighbour on the host is told beside what any other program does to it that compares
memory for as long, on the same processors: they share memory and caches, and no reader gets around that.

Neither holds that looks take processor time of the host, of which the guest has less where it has no
processors of its own. The clock would tell all at once, and on a busy host tells mostly of the others.

One look a second is too little to be told from noise. So looks follow each other without a pause, and so do
saves; the cost of each is what counts, times how many there are in a second. Blocks are short, and each round
has two of each kind in an order that reads the same backwards: what drifts falls out of their difference.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome
from affiant.monitor.watch import KernelWatch
from benchmarks.guest import shared_guest
from benchmarks.stops import Stop, Stops
from benchmarks.table import Row
from lab.live_guest import LiveGuest
from lab.monitoring import watch_over

_MOST_ROUNDS, _MOST_SECONDS = 120, 150.0  # of each work: a busy machine comes to fewer rounds
_RESAMPLED = 4000
_STOPS_SECONDS = 75.0
_LOOKS_TIMED = 40
_COMPARED_BYTES = 8 << 20  # at once: some milliseconds' worth, more than a processor's own cache holds
_MOST = 0.5  # percent
_WORK = {
    "arithmetic of a shell": "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
    "system calls: reads and writes of one byte": (
        "dd if=/dev/zero of=/dev/null bs=1 count=200000 2>/dev/null"
    ),
}


@dataclass(frozen=True, slots=True)
class _Block:
    """One run of the work: processor time of all vCPUs in seconds, and how often something else was done."""

    processor: float
    times: float


@dataclass(frozen=True, slots=True)
class _Round:
    """Two blocks of each kind: nothing meanwhile, look after look, save after save, memory compared."""

    without: tuple[_Block, _Block]
    looks: tuple[_Block, _Block]
    saves: tuple[_Block, _Block]
    neighbour: tuple[_Block, _Block]

    def cost_ms(self, blocks: tuple[_Block, _Block]) -> float:
        """Return what one look or save cost, in milliseconds of processor time."""
        more = sum(block.processor for block in blocks) - sum(block.processor for block in self.without)
        return 1_000 * more / sum(block.times for block in blocks)


_rounds: dict[str, list[_Round]] = {}
_stops: list[Stop] = []
_watched: list[tuple[float, int]] = []
"""Seconds for which the guest was looked at once a second, and looks."""


def rows() -> list[Row]:
    """Measure; processor time of the work, medians."""
    live = shared_guest()
    with Engine(packaged_library()) as engine, watch_over(live, engine) as watch:
        look = _healthy(watch)
        look()  # finds the kernel
        neighbour = _Neighbour(look)
        stops = Stops(live)
        for what, work in _WORK.items():
            _block(live, work, None)  # the first only warms up
            rounds, end = _rounds.setdefault(what, []), time.monotonic() + _MOST_SECONDS
            while len(rounds) < _MOST_ROUNDS and time.monotonic() < end:
                rounds.append(_round(live, work, look, neighbour, backwards=bool(len(rounds) % 2)))
        stops.taken()
        _count_stops(live, look, stops)
    return [
        Row(
            f"{what}, {name}",
            _median_ms(rounds, kind),
            "processor time without",
            _median_ms(rounds, "without"),
        )
        for what, rounds in _rounds.items()
        for kind, name in (
            ("looks", "look after look"),
            ("saves", "devices' state saved again and again"),
            ("neighbour", "another program compares memory"),
        )
    ]


def notes() -> list[str]:
    """Return the slow-down in percent, with what it is not known better than."""
    seconds, looks = _watched[0]
    stood = 100 * sum(stop.asked_ms for stop in _stops) / 1_000 / seconds
    every = len(_stops) / seconds
    lines = ["| slow-down at one look a second | percent | 95 % of resamples |", "|---|---:|---:|"]
    for what, rounds in _rounds.items():
        parts = [
            (f"{what}: processor time, by looks", lambda each: each.cost_ms(each.looks) / 10),
            (f"{what}: processor time, by saves", lambda each: every * each.cost_ms(each.saves) / 10),
        ]
        for name, part in parts:
            low, high = _interval(rounds, lambda chosen, part=part: statistics.median(map(part, chosen)))
            lines.append(f"| {name} | {statistics.median(map(part, rounds)):.3f} | {low:.3f} to {high:.3f} |")

        def whole(chosen: Sequence[_Round], parts=parts) -> float:
            return stood + sum(statistics.median(map(part, chosen)) for _, part in parts)

        low, high = _interval(rounds, whole)
        lines.append(f"| {what}: both and standing still | {whole(rounds):.3f} | {low:.3f} to {high:.3f} |")
        low, high = _interval(rounds, _neighbours)
        lines.append(
            f"| for comparison, not counted: {what}: by another program that compares memory for as long "
            f"| {_neighbours(rounds):.3f} | {low:.3f} to {high:.3f} |"
        )
    lines.append(f"| standing still, {len(_stops)} stops at {looks} looks | {stood:.3f} | |")
    return [
        *lines,
        "",
        f"Goal: {_MOST} percent. One percent is 10 ms of a vCPU in a second. "
        f"{' and '.join(str(len(rounds)) for rounds in _rounds.values())} rounds, "
        f"{_rate('looks'):.1f} looks or {_rate('saves'):.1f} saves in each second of its processor time.",
        f"A stop lasted {statistics.median(stop.asked_ms for stop in _stops):.1f} ms in the median, from the "
        "command to stop until the guest ran on.",
    ]


def _healthy(watch: KernelWatch) -> Callable[[], None]:
    def look() -> None:
        wrong = {each.name for each in watch.look().results if each.outcome is Outcome.VIOLATED}
        if wrong:
            raise AssertionError(f"the guest is not healthy: {sorted(wrong)}")

    return look


class _Neighbour:
    """Compares memory, which is none of the guest's, for as long as a look takes."""

    def __init__(self, look: Callable[[], None]) -> None:
        took: list[float] = []
        for _ in range(_LOOKS_TIMED):
            began = time.perf_counter()
            look()
            took.append(time.perf_counter() - began)
        self._seconds = statistics.median(took)
        self._one = np.ones(_COMPARED_BYTES // 8, dtype=np.uint64)
        self._other = self._one.copy()

    def __call__(self) -> None:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            np.array_equal(self._one, self._other)


def _round(
    live: LiveGuest, work: str, look: Callable[[], None], neighbour: _Neighbour, *, backwards: bool
) -> _Round:
    done = {"without": None, "looks": look, "saves": live.launcher.machine_state, "neighbour": neighbour}
    order = sorted(done, reverse=backwards)
    found: dict[str, list[_Block]] = {kind: [] for kind in done}
    for kind in (*order, *reversed(order)):
        found[kind].append(_block(live, work, done[kind]))
    return _Round(**{kind: (blocks[0], blocks[1]) for kind, blocks in found.items()})


def _block(live: LiveGuest, work: str, done: Callable[[], object] | None) -> _Block:
    threads = [int(cpu["thread-id"]) for cpu in live.monitor.cmd("query-cpus-fast")]
    with _again_and_again(done) as spans:
        used, began = _processor_time(threads), time.perf_counter()
        live.lab.console.run(work)
        used, ended = _processor_time(threads) - used, time.perf_counter()
    # What had begun before, or was not over yet, counts by its part.
    times = sum(
        max(0.0, min(end, ended) - max(start, began)) / (end - start) for start, end in spans if end > start
    )
    return _Block(used, times)


def _processor_time(threads: Sequence[int]) -> float:
    """Return what threads have used, in seconds (Documentation/scheduler/sched-stats.rst)."""
    return sum(int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def _again_and_again(done: Callable[[], object] | None) -> Iterator[list[tuple[float, float]]]:
    """Have something done without a pause meanwhile; the list is whole when the block has ended."""
    spans: list[tuple[float, float]] = []
    if done is None:
        yield spans
        return
    over, begun = threading.Event(), threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                start = time.perf_counter()
                done()
                spans.append((start, time.perf_counter()))
                begun.set()
        finally:
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            begun.wait()
            yield spans
        finally:
            over.set()
        running.result()


def _count_stops(live: LiveGuest, look: Callable[[], None], stops: Stops) -> None:
    """Look once a second at a guest that works, for a while in which its stops are noted."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for each in _WORK.values():
                live.lab.console.run(each)

    thread = threading.Thread(target=work)
    thread.start()
    looks, began = 0, time.perf_counter()
    try:
        while (due := began + looks) < began + _STOPS_SECONDS:
            time.sleep(max(0.0, due - time.perf_counter()))
            look()
            looks += 1
    finally:
        seconds = time.perf_counter() - began
        over.set()
        thread.join()
    _stops.extend(stops.taken())
    _watched.append((seconds, looks))


def _neighbours(rounds: Sequence[_Round]) -> float:
    return statistics.median(each.cost_ms(each.neighbour) / 10 for each in rounds)


def _rate(kind: str) -> float:
    """Return how often something was done in each second of the work's processor time."""
    blocks = [block for rounds in _rounds.values() for each in rounds for block in getattr(each, kind)]
    return sum(block.times for block in blocks) / sum(block.processor for block in blocks)


def _median_ms(rounds: Sequence[_Round], kind: str) -> float:
    return 1_000 * statistics.median(block.processor for each in rounds for block in getattr(each, kind))


def _interval(rounds: Sequence[_Round], measure: Callable[[Sequence[_Round]], float]) -> tuple[float, float]:
    """Return the bounds of 95 % of a measure of resampled rounds (bootstrap)."""
    draw = random.Random(1)
    found = sorted(measure(draw.choices(rounds, k=len(rounds))) for _ in range(_RESAMPLED))
    return found[int(0.025 * _RESAMPLED)], found[int(0.975 * _RESAMPLED)]
