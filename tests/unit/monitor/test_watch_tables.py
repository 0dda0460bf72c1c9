"""A process that ends while a look begins leaves its page tables on a processor: nobody is accused of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from affiant.assertions.bundle import make_bundle, packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.guest import Guest
from affiant.model.outcome import Outcome
from affiant.monitor.watch import KernelWatch
from tests.unit.kernel.synthetic_guest import PROCESS_ROOT, SyntheticGuest

RULE = "page_tables_shared"


class Launcher:
    """Pauses the guest, which does nothing by itself."""

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class Watch(KernelWatch):
    """The watch, with a guest for which something happens right after its registers were read."""

    def __init__(self, guest: SyntheticGuest, engine: Engine, then: Callable[[], None]) -> None:
        super().__init__(memory=guest.memory, launcher=Launcher(), references=None, engine=engine)
        self._synthetic, self._then = guest, then

    def _cpus(self):
        cpus = list(self._synthetic.cpus)
        if self._guest is not None:
            self._then()
        return cpus

    def _recognised(self, cpus):
        return Guest.open(self._synthetic.memory, self._synthetic.reference, cpus, before=self._lost)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    script = next(script for script in packaged_library().scripts if script.name == RULE)
    with Engine(make_bundle("test", 1, {RULE: script.source})) as engine:
        yield engine


def test_a_process_that_ends_after_the_registers_were_read_is_no_suspect(engine: Engine) -> None:
    guest = SyntheticGuest()

    def end() -> None:
        for task in guest.tasks:
            guest.word(task + 0x38, 0)
        guest.poke(PROCESS_ROOT, b"\x67" * 4096)

    watch = Watch(guest, engine, end)
    assert watch.recognise()
    look = watch.look()
    assert look.suspected == ()
    (result,) = look.results
    assert result.outcome is Outcome.HOLDS


def test_a_processor_on_tables_of_nobody_is_told_of(engine: Engine) -> None:
    guest = SyntheticGuest()
    stranger = 0x1A0_0000
    guest.poke(stranger, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.cpus = [guest.cpu(stranger)]
    watch = Watch(guest, engine, lambda: None)
    assert watch.recognise()
    look = watch.look()
    assert look.suspected == (RULE,)
    assert [result.outcome for result in look.results] == [Outcome.VIOLATED]
