"""Real kernels' memory, with lies wherever looks read it: they end in values, in their time and memory."""

from __future__ import annotations

import gc
import json
import mmap
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.kernel.facts.registry import FACTS, collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.ram_layout import q35_below_4g_bytes
from affiant.kernel.queries.answers import answer_queries
from affiant.model.errors import AffiantError
from affiant.model.query import Query
from lab.guests import load_modules, unload_modules
from lab.live_guest import LiveGuest
from tests.hostile_memory import Trace, TracedMemory, lies, told, traced

SEEDS = 150
SECONDS = 5.0
"""One fact's processor time, on a kernel that lies; a healthy one takes a tenth of a second at most."""

QUERY_SECONDS = 0.5
MOST_WORDS = 20_000
MEMORY = 768 << 20
"""What looking may take beyond what it has when it begins."""

Look = Callable[[Guest, float], str]


def looks() -> dict[str, Look]:
    """Each fact, and each query of the library, by name."""

    def fact(name: str) -> Look:
        return lambda seen, now: json.dumps(collect(seen, [name], now=now)[name].to_json())

    def query(name: str, asked: Query) -> Look:
        return lambda seen, now: json.dumps(
            answer_queries(seen, {name: asked}, seconds=QUERY_SECONDS, clock=time.thread_time)[name].to_json()
        )

    asked = packaged_library().queries
    return {name: fact(name) for name in FACTS} | {name: query(name, asked[name]) for name in asked}


@contextmanager
def frozen(live: LiveGuest) -> Iterator[tuple[mmap.mmap, TracedMemory, Guest]]:
    """Pause a guest, and map its memory so that what is written to it is ours alone."""
    machine = live.lab.machine
    with live.paused(), Path(machine.ram).open("rb") as file:
        guest = live.refreshed()
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        ram = mmap.mmap(file.fileno(), machine.memory_bytes, flags=mmap.MAP_PRIVATE, prot=protection)
        memory = TracedMemory(ram, below_4g_bytes=q35_below_4g_bytes(machine.memory_bytes))
        yield ram, memory, Guest.open(memory, guest.reference, guest.cpus)


def in_a_child(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Do work in a process of its own, with a bound on memory; fails when it does not survive."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        sender.send(work())

    child = context.Process(target=run)
    child.start()
    sender.close()
    try:
        answer: dict[str, object] = receiver.recv()
    except EOFError:
        answer = {}
    child.join()
    assert child.exitcode == 0, f"looking at lies ended with {child.exitcode}"
    return answer


@pytest.fixture(scope="module")
def live(supported: LiveGuest) -> Iterator[LiveGuest]:
    load_modules(supported.lab)
    yield supported
    unload_modules(supported.lab)


def test_looks_at_lies_end_in_values(live: LiveGuest) -> None:
    with frozen(live) as (ram, memory, seen):
        healthy, traces = _traced(seen)
        slowest = in_a_child(lambda: _lied_to(ram, memory, seen, healthy, traces))
    assert slowest
    print({name: f"{seconds:.2f} s" for name, seconds in slowest.items()})
    assert not {name: seconds for name, seconds in slowest.items() if seconds > SECONDS}  # type: ignore[operator]


def _traced(seen: Guest) -> tuple[dict[str, str], dict[str, Trace]]:
    """Return what each look says of the guest as it is, and what it reads for that."""
    healthy, traces = {}, {}
    for name, look in looks().items():
        look(seen, 0.0)  # what is prepared once is not read again
        with traced(seen) as trace:
            healthy[name] = look(seen, 0.0)
        traces[name] = trace.thinned(MOST_WORDS)
    return healthy, traces


def _lied_to(
    ram: mmap.mmap, memory: TracedMemory, seen: Guest, healthy: dict[str, str], traces: dict[str, Trace]
) -> dict[str, object]:
    """Return the longest that each look took, in processor time."""
    slowest: dict[str, object] = {}
    for name, look in looks().items():
        longest, believed = 0.0, 0
        for seed in range(SEEDS):
            with told(ram, lies(traces[name], memory, seed, most=6)):
                began = time.thread_time()
                believed += look(seen, float(seed)) != healthy[name]
                longest = max(longest, time.thread_time() - began)
        slowest[name] = longest
        says_nothing = "absent" in healthy[name] or "unavailable" in healthy[name]
        assert believed or says_nothing or not traces[name].words, (name, healthy[name][:200])
        assert "unavailable" not in look(seen, 1000.0) or says_nothing, name
    everything = Trace(
        set().union(*(trace.words for trace in traces.values())),
        set().union(*(trace.tables for trace in traces.values())),
    )
    for seed in range(SEEDS):
        gc.collect()  # of each kernel found, megabytes of types hang together in circles
        with told(ram, lies(everything, memory, seed, most=12)):
            try:
                Guest.open(memory, seen.reference, seen.cpus)
                seen.refresh(seen.cpus)
            except AffiantError:
                continue
    return slowest
