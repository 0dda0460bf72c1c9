"""Text of a module's init that waits to be freed: known by the work that frees it, and by nothing else."""

from __future__ import annotations

import pytest

from affiant.kernel.guest import Guest
from affiant.kernel.modules.loaded import read_modules
from affiant.kernel.transient import init_freeing
from affiant.kernel.transient.init_freeing import is_freeing_init
from tests.unit.kernel.queues_world import FREE, FREE_INIT, SYMBOLS, Queues, queue_types
from tests.unit.kernel.synthetic_guest import (
    DIRECT_MAP,
    MODULE_AREA,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

LEFT = MODULE_AREA + 0x40_0000


def says(queues: Queues) -> bool:
    return is_freeing_init(queues.guest.open().program, vcpus=1)


def test_the_work_is_found_while_it_waits_and_while_it_is_done() -> None:
    waits, works = Queues(), Queues()
    assert not says(waits)
    waits.work(waits.pool, FREE_INIT)
    works.at_work(FREE_INIT)
    assert says(waits)
    assert says(works)


def test_other_work_is_no_excuse() -> None:
    queues = Queues()
    queues.work(queues.pool, FREE)
    queues.at_work(FREE)
    assert not says(queues)


def test_where_nobody_can_tell_there_is_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that leads nowhere, no time, a kernel that frees in another way."""
    wild = Queues()
    wild.word(wild.pool, DIRECT_MAP + (1 << 40))
    assert not says(wild)
    known = {name: place for name, place in SYMBOLS.items() if name != "do_free_init"}
    other = SyntheticGuest(reference=make_reference(types=kernel_types(queue_types), further_symbols=known))
    assert not is_freeing_init(other.open().program, vcpus=1)
    queues = Queues()
    queues.work(queues.pool, FREE_INIT)
    monkeypatch.setattr(init_freeing, "_SECONDS", -1.0)
    assert not says(queues)


def told_after(queues: Queues) -> int:
    """Return for how many seconds code that nobody owns has to be there until it is told."""
    seen = queues.guest.open()
    return next(second for second in range(200) if lasting(seen, second))


def lasting(seen: Guest, second: int) -> bool:
    view = read_modules(
        seen.memory, seen.kernel_space, seen.program, seen.patience, vcpus=1, now=float(second)
    )
    return any(run.address == LEFT for run in view.unowned)


def test_code_of_nobody_has_a_minute_while_init_text_waits_and_not_longer() -> None:
    freeing, quiet = Queues(), Queues()
    for queues in (freeing, quiet):
        queues.guest.map(LEFT, queues.guest.allocate(4096)[0], 4096, executable=True)
    freeing.work(freeing.pool, FREE_INIT)
    assert told_after(quiet) == 5
    assert 60 <= told_after(freeing) <= 66
