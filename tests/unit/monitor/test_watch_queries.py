"""The watch asks the kernel what rules ask, and believes a violation only if it stands under pause."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.kernel.guest import Guest
from affiant.model.outcome import Outcome
from affiant.monitor.watch import KernelWatch
from tests.unit.kernel.queries.things import NUMBER, ThingGuest
from tests.unit.kernel.synthetic_guest import SYMBOLS

RULE = '''"""Numbers of things are below 100."""
load("affiant", "bad", "ok")
NAME = "small_things"
VERSION = 1
SENTENCE = "Every thing is small."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "enforce"
FACTS = []
QUERIES = {
    "things": {
        "walk": "list", "at": "things", "type": "struct list_head",
        "of": "struct thing", "by": "list", "most": 100,
        "each": {"number": {"path": "number"}},
    },
}
def check(facts):
    return [
        ok("a thing") if thing["number"] < 100 else bad("thing %d" % thing["number"], "small", "large")
        for thing in facts["things"]["elements"]
    ]
'''


@dataclass
class PausingLauncher:
    """Counts pauses; `on_pause` is what the guest does just before it stands still."""

    guest: ThingGuest
    pauses: int = 0
    on_pause: Callable[[], None] = field(default=lambda: None)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pauses += 1
        self.on_pause()
        yield


class SyntheticWatch(KernelWatch):
    """The watch, with the registers and the reference of the synthetic guest."""

    def _cpus(self):
        return self._launcher.guest.cpus

    def _recognised(self, cpus):
        guest = self._launcher.guest
        return Guest.open(guest.memory, guest.reference, cpus, before=self._lost)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(make_bundle("test", 1, {"small_things": RULE})) as engine:
        yield engine


@pytest.fixture
def launcher() -> PausingLauncher:
    return PausingLauncher(ThingGuest())


@pytest.fixture
def watch(launcher, engine, tmp_path: Path) -> KernelWatch:
    return SyntheticWatch(memory=launcher.guest.memory, launcher=launcher, references=tmp_path, engine=engine)


def enlarge(guest: ThingGuest, size: int = 7000) -> None:
    guest.poke(guest.made[11] + NUMBER, size.to_bytes(4, "little"))


def test_a_healthy_structure_holds_without_a_pause(watch, launcher):
    (result,) = watch.look().results
    assert (result.outcome, result.looked_at, launcher.pauses) == (Outcome.HOLDS, 3, 0)


def test_a_tampered_structure_is_violated_once_it_was_seen_under_pause(watch, launcher):
    enlarge(launcher.guest)
    (result,) = watch.look().results
    assert (result.outcome, launcher.pauses) == (Outcome.VIOLATED, 1)
    assert [finding.subject for finding in result.findings] == ["thing 7000"]


def test_what_is_gone_under_pause_was_no_violation(watch, launcher):
    enlarge(launcher.guest)
    launcher.on_pause = lambda: enlarge(launcher.guest, 11)
    look = watch.look()
    (result,) = look.results
    assert (result.outcome, launcher.pauses) == (Outcome.HOLDS, 1)
    assert look.suspected == ("small_things",)
    assert watch.look().suspected == ()


def test_a_structure_that_cannot_be_read_is_inconclusive(watch, launcher):
    launcher.guest.word(launcher.guest.place("things"), 0xDEAD_0000_0000_0100)
    (result,) = watch.look().results
    assert (result.outcome, launcher.pauses) == (Outcome.INCONCLUSIVE, 0)
    assert "small_things.things is unavailable" in result.reason


def test_a_guest_without_a_known_kernel_leaves_queries_inconclusive(launcher, engine, tmp_path):
    watch = KernelWatch(memory=launcher.guest.memory, launcher=launcher, references=tmp_path, engine=engine)
    watch._cpus = lambda: launcher.guest.cpus
    (result,) = watch.look().results
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "there is no reference image" in result.reason


def test_what_was_verified_is_forgotten_at_moments_within_bounds(watch, monkeypatch):
    done: list[int] = []
    forgotten: list[int] = []
    monkeypatch.setattr(Guest, "forget_verified", lambda guest: forgotten.append(len(done)))
    for number in range(200):
        watch.look()
        done.append(number)
    gaps = [later - earlier for earlier, later in itertools.pairwise(forgotten)]
    assert 3 <= len(forgotten) <= 25
    assert all(8 <= gap <= 64 for gap in gaps)


class CountedRegisters:
    """Remembers how often a saved state was forgotten."""

    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1

    def forget_copies(self) -> None:
        """There are none."""


def test_registers_saved_while_the_kernel_boots_are_not_told_of_later(watch, launcher):
    """Its processors are still being set up: of them nothing could be sworn, some seconds after."""
    watch.look()  # the kernel is recognised
    watch._registers = registers = CountedRegisters()
    watch.look()
    assert registers.forgotten == 0
    launcher.guest.word(launcher.guest.physical(SYMBOLS["system_state"]), 0)
    watch.look()
    assert registers.forgotten == 1


@pytest.mark.parametrize(("counted", "kept"), [(True, True), (False, False)])
def test_a_kernel_that_hid_for_a_look_is_not_seen_for_the_first_time_again(watch, launcher, counted, kept):
    """Whoever changes meanwhile what its first look found would gain by hiding."""
    watch.forget_boot(counted=counted)
    watch.look()
    first = watch._guest.patience
    cpus = launcher.guest.cpus
    launcher.guest.cpus = []  # none of them leads to it
    assert watch.look().results[0].outcome is Outcome.INCONCLUSIVE
    assert watch.reference is None
    launcher.guest.cpus = cpus
    assert watch.look().results[0].outcome is Outcome.HOLDS
    assert (watch._guest.patience is first) == kept


def test_a_guest_that_is_started_anew_is_looked_at_for_the_first_time(watch, launcher):
    watch.forget_boot(counted=True)
    watch.look()
    first = watch._guest.patience
    watch.forget_boot(counted=True)
    watch.look()
    assert watch._guest.patience is not first
