"""Whatever guest memory says where it is read: a look ends in values, soon, and in little memory."""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.facts.registry import FACTS, collect
from affiant.kernel.guest import Guest
from affiant.kernel.reference.module_files import module_files_beside, pack_module_files
from affiant.model.errors import AffiantError
from tests.hostile_memory import Trace, TracedMemory, lies, told, traced
from tests.unit.kernel.synthetic_guest import RAM_SIZE, SyntheticGuest, make_reference

SECONDS = 5.0
MEMORY_KIB = 256 << 10
LOOKS = 3


class World:
    """A made-up guest, and what each fact reads of it while it is healthy."""

    def __init__(self, folder: Path) -> None:
        reference = make_reference()
        reference.path = folder / "kernel.reference"
        module_files_beside(reference.path).write_bytes(pack_module_files([]))
        self.made = SyntheticGuest(reference=reference)
        self.memory = TracedMemory(self.made.ram, below_4g_bytes=RAM_SIZE)
        self.seen = self.open()
        self.healthy = {name: self.look(name) for name in FACTS}
        self.traces: dict[str, Trace] = {}
        for name in FACTS:
            with traced(self.seen) as trace:
                self.look(name)
            self.traces[name] = trace

    def open(self) -> Guest:
        return Guest.open(self.memory, self.made.reference, self.made.cpus)

    def look(self, name: str, now: float = 0.0) -> str:
        return json.dumps(collect(self.seen, [name], now=now)[name].to_json())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield World(tmp_path_factory.mktemp("reference"))


def test_what_looks_read_is_traced(world: World) -> None:
    for name in ("modules", "tasks", "page_rights", "cpu_state"):
        assert world.traces[name].words, name
    assert world.traces["page_rights"].tables
    assert world.traces["modules"].tables


@pytest.mark.parametrize("name", FACTS)
def test_a_look_at_lies_ends_in_values(world: World, name: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 1 << 32))
    def look(seed: int) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.thread_time()
        with told(world.made.ram, lies(world.traces[name], world.memory, seed, most=6)):
            for number in range(LOOKS):
                world.look(name, now=float(10 * number))
        assert time.thread_time() - began < SECONDS * LOOKS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB

    look()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_kernel_that_lies_about_its_place_is_found_or_is_not(world: World, seed: int) -> None:
    everything = Trace(
        set().union(*(trace.words for trace in world.traces.values())),
        set().union(*(trace.tables for trace in world.traces.values())),
    )
    with told(world.made.ram, lies(everything, world.memory, seed, most=12)):
        try:
            world.open()
            world.seen.refresh(world.made.cpus)
        except AffiantError as error:
            assert str(error)


def test_lies_are_believed_and_leave_nothing_behind(world: World) -> None:
    """They change what most looks say; and the same guest object tells the truth again when memory does."""
    believed = {name: 0 for name in FACTS if world.traces[name].words}
    for name in believed:
        for seed in range(20):
            with told(world.made.ram, lies(world.traces[name], world.memory, seed, most=6)):
                believed[name] += world.look(name) != world.healthy[name]
    # Whoever once said that tables come in pairs goes on having both looked at: that is not taken back.
    pairs = re.compile(r'"user halves": [0-9]+')
    for name in FACTS:
        after, before = (pairs.sub("", text) for text in (world.look(name, now=1000.0), world.healthy[name]))
        assert after == before, name
    assert all(believed[name] > 4 for name in ("modules", "tasks", "page_rights", "module_code")), believed
