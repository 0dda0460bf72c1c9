"""Programs that wait to be freed are found by what waits for RCU or for a worker, wherever that is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from affiant.kernel.page_content import bpf_freeing
from affiant.kernel.page_content.bpf_freeing import functions_being_freed
from tests.unit.kernel.queues_world import (
    FREE,
    FUNCTIONS,
    PER_CPU,
    PUT_LATER,
    RCU,
    SRCU_PER_CPU,
    SYMBOLS,
    TASKS_PER_CPU,
    Queues,
    queue_types,
)
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, SyntheticGuest, kernel_types, make_reference


def found(queues: Queues) -> frozenset[int] | None:
    return functions_being_freed(queues.guest.open())


PLACES: dict[str, Callable[[Queues], None]] = {
    "for RCU": lambda queues: queues.call_back(queues.cpu + PER_CPU["rcu_data"]),
    "for RCU, beside the processor": lambda queues: queues.call_back(queues.cpu + PER_CPU["rcu_data"] + 8),
    "for RCU of tasks": lambda queues: queues.call_back(queues.cpu + TASKS_PER_CPU + 8),
    "for sleepable RCU": lambda queues: queues.call_back(queues.cpu + SRCU_PER_CPU + 8),
    "for a worker": lambda queues: queues.work(queues.pool),
    "for a worker, put in an interrupt": lambda queues: queues.work(queues.pool, PUT_LATER),
    "for a worker that took it": lambda queues: queues.work(queues.worker() + 32),
    "for its turn": lambda queues: queues.work(queues.inactive()),
    "nothing: a worker frees it": lambda queues: queues.at_work(FREE),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_program_is_found_where_it_waits(place: str) -> None:
    queues = Queues()
    assert found(queues) == frozenset()
    PLACES[place](queues)
    assert found(queues) == set(FUNCTIONS)


def test_functions_that_are_freed_already_hide_no_others() -> None:
    queues = Queues()
    queues.work(queues.pool)
    queues.word(queues.aux + 16, 0x10)
    functions = queues.add(16, {0: 0x10, 8: queues.add(16, {8: FUNCTIONS[1]})})
    queues.word(queues.aux + 8, functions)
    assert found(queues) == {FUNCTIONS[1]}


def test_where_queues_cannot_be_followed_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circle of callbacks, work that leads nowhere, no time."""
    circle = Queues()
    circle.call_back(circle.cpu + PER_CPU["rcu_data"])
    circle.word(circle.aux + RCU, circle.aux + RCU)
    assert found(circle) is None
    wild = Queues()
    wild.word(wild.pool, DIRECT_MAP + (1 << 40))
    assert found(wild) is None
    monkeypatch.setattr(bpf_freeing, "_SECONDS", -1.0)
    assert found(Queues()) is None


@pytest.mark.parametrize("unknown", ["rcu_data", "bpf_prog_free_deferred", "cpu_worker_pools"])
def test_a_kernel_that_frees_in_another_way_does_not_tell(unknown: str) -> None:
    known = {name: place for name, place in SYMBOLS.items() if name != unknown}
    guest = SyntheticGuest(reference=make_reference(types=kernel_types(queue_types), further_symbols=known))
    assert functions_being_freed(guest.open()) is None
