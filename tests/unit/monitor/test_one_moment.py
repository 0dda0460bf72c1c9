"""What seems violated is judged by one moment: by copies of what the guest held while it stood still."""

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
from affiant.kernel.machine.memory import GuestMemory
from affiant.model.errors import AffiantError, SetupError, UnavailableError
from affiant.model.outcome import Outcome
from affiant.monitor import one_moment
from affiant.monitor.launcher_client import PauseOverError
from affiant.monitor.watch import KernelWatch
from affiant.wire.launcher_requests import Copied, Copy, Cpus, ForgetCopy
from tests.unit.kernel.queries.things import LIST, THING_SIZE, ThingGuest
from tests.unit.kernel.synthetic_guest import LINK, PROCESS_ROOT, RAM_SIZE, SYMBOLS, registers
from tests.unit.monitor.test_watch_queries import RULE, enlarge

PAGE = 4096
FAR = 0x180_0000  # in RAM that nothing else uses


@dataclass
class CopyingLauncher:
    """Copies pages as a launcher does; the guest acts before it stands still, and once it runs on."""

    guest: ThingGuest
    copies: bytearray = field(default_factory=lambda: bytearray(RAM_SIZE))
    told: list[str] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    asked: Callable[[], None] = lambda: None
    failure: AffiantError | None = None
    overslept: bool = False
    pages: int = 0
    root: int = PROCESS_ROOT
    roots: tuple[int, ...] = (PROCESS_ROOT // PAGE,)

    def listing(self) -> str:
        return registers(cr3=self.root, cr4=0x1020, rip=LINK + self.guest.slide)

    def ask(self, request: object) -> object:
        match request:
            case Cpus():
                self.asked()
                return (self.listing(),)
            case Copy(runs, device_state):
                assert not device_state, "no rule here reads what QEMU saves"
                self.told.append("copy")
                if self.failure is not None:
                    raise self.failure
                self.before()
                self.copies[:] = b"\xee" * RAM_SIZE
                for first, count in (*runs, *((page, 1) for page in self.roots)):
                    self.pages += count
                    place = slice(first * PAGE, (first + count) * PAGE)
                    self.copies[place] = self.guest.ram[place]
                copied = Copied((self.listing(),), b"", self.roots)
                self.after()
                return copied
            case ForgetCopy():
                self.told.append("forget")
                return None
        raise AssertionError(request)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.told.append("pause")
        self.before()
        yield
        self.after()
        if self.overslept:
            raise PauseOverError("it has run on since")


class SyntheticWatch(KernelWatch):
    """The watch, with the reference of the synthetic guest."""

    def _recognised(self, cpus):
        return Guest.open(self._memory, self._launcher.guest.reference, cpus)


TEXT_RULE = '''"""Text is as it was built."""
load("affiant", "bad", "ok")
NAME = "text"
VERSION = 1
SENTENCE = "Text is as it was built."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "enforce"
FACTS = ["kernel_text"]
def check(facts):
    wrong = facts["kernel_text"]["unexplained"]
    return [bad(run["symbol"], run["expected"], run["found"]) for run in wrong] or [ok("text")]
'''


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    with (
        Engine(make_bundle("test", 1, {"small_things": RULE})) as things,
        Engine(make_bundle("test", 1, {"text": TEXT_RULE})) as text,
    ):
        yield {"things": things, "text": text}


@pytest.fixture
def launcher() -> CopyingLauncher:
    return CopyingLauncher(ThingGuest())


@pytest.fixture
def watch(launcher: CopyingLauncher, engines: dict[str, Engine], tmp_path: Path) -> KernelWatch:
    return make_watch(launcher, engines["things"], tmp_path)


def make_watch(launcher: CopyingLauncher, engine: Engine, folder: Path) -> KernelWatch:
    memory = GuestMemory(launcher.guest.ram, below_4g_bytes=RAM_SIZE, copies=launcher.copies)
    return SyntheticWatch(memory=memory, launcher=launcher, references=folder, engine=engine)


def look(watch: KernelWatch) -> tuple[Outcome, list[str]]:
    (result,) = watch.look().results
    return result.outcome, [finding.subject for finding in result.findings]


def move_away(guest: ThingGuest, place: int) -> None:
    """Put the thing 11 elsewhere, where the list leads from now on."""
    old, new = guest.made[11], place
    guest.ram[new : new + THING_SIZE] = guest.ram[old : old + THING_SIZE]
    step = new - old
    following = int.from_bytes(guest.ram[old + LIST : old + LIST + 8], "little")
    before = int.from_bytes(guest.ram[old + LIST + 8 : old + LIST + 16], "little")
    here = int.from_bytes(guest.ram[guest.resolve(before) :][:8], "little") + step
    guest.word(guest.resolve(before), here)
    guest.word(guest.resolve(following) + 8, here)
    guest.made[11] = new


def test_a_healthy_guest_is_neither_copied_nor_paused(watch, launcher):
    assert look(watch) == (Outcome.HOLDS, [])
    assert launcher.told == []


def test_a_tampered_structure_is_told_from_copies_and_nobody_pauses_the_guest_for_it(watch, launcher):
    enlarge(launcher.guest)
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["copy"]
    assert launcher.pages < 100


def test_nobody_is_stopped_for_what_a_second_look_does_not_find(watch, launcher):
    """A process that went while the first look came to it is gone before the second begins."""
    watch.recognise()
    enlarge(launcher.guest)
    looks = itertools.count()
    launcher.asked = lambda: enlarge(launcher.guest, 7000 if next(looks) == 0 else 11)
    seen = watch.look()
    assert [result.outcome for result in seen.results] == [Outcome.HOLDS]
    assert (seen.suspected, launcher.told) == (("small_things",), [])


def test_what_a_second_look_does_not_find_is_passed_over_once_at_most_in_a_row(watch, launcher):
    """Whoever happens to be clean at each second look is caught by the copies of the second time."""
    watch.recognise()
    enlarge(launcher.guest)
    looks = itertools.count()
    launcher.asked = lambda: enlarge(launcher.guest, 11 if next(looks) % 2 else 7000)
    launcher.before = lambda: enlarge(launcher.guest)
    assert look(watch) == (Outcome.HOLDS, [])
    assert launcher.told == []
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["copy"]


def test_blindness_in_the_second_look_clears_nobody(watch, launcher):
    watch.recognise()
    enlarge(launcher.guest)
    looks = itertools.count()

    def blind() -> None:
        if next(looks) == 1:
            launcher.guest.word(launcher.guest.place("things"), 0xDEAD_0000_0000_0100)

    launcher.asked = blind
    launcher.before = lambda: launcher.guest.word(launcher.guest.place("things"), first)
    place = launcher.guest.place("things")
    first = int.from_bytes(launcher.guest.ram[place : place + 8], "little")
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert "copy" in launcher.told


def test_copies_are_kept_while_something_is_wrong_and_forgotten_then(watch, launcher):
    enlarge(launcher.guest)
    look(watch)
    look(watch)
    enlarge(launcher.guest, 11)
    look(watch)
    look(watch)
    assert launcher.told == ["copy", "copy", "forget"]


def test_what_is_undone_before_the_guest_stands_still_was_no_violation(watch, launcher):
    enlarge(launcher.guest)
    launcher.before = lambda: enlarge(launcher.guest, 11)
    assert look(watch) == (Outcome.HOLDS, [])
    assert launcher.told == ["copy"]


def test_what_is_undone_once_the_guest_runs_on_is_told_as_it_stood(watch, launcher):
    """The look at the copies comes after that: RAM holds nothing wrong any more."""
    enlarge(launcher.guest)
    launcher.after = lambda: enlarge(launcher.guest, 11)
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    launcher.after = lambda: None
    assert look(watch) == (Outcome.HOLDS, [])


def test_what_is_done_once_the_guest_runs_on_is_not_mixed_into_the_moment(watch, launcher):
    enlarge(launcher.guest)
    launcher.before = lambda: enlarge(launcher.guest, 11)
    launcher.after = lambda: enlarge(launcher.guest, 8000)
    assert look(watch) == (Outcome.HOLDS, [])


def test_a_structure_that_has_moved_is_copied_at_another_moment(watch, launcher):
    enlarge(launcher.guest)
    places = iter([FAR])
    launcher.before = lambda: [move_away(launcher.guest, place) for place in [next(places, 0)] if place]
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["copy", "copy"]


def test_a_structure_that_moves_each_time_is_looked_at_with_the_guest_paused(watch, launcher):
    """A guest that flees from the copies is stopped for longer, and told all the same."""
    enlarge(launcher.guest)
    places = iter(range(FAR, FAR + 100 * PAGE, 16 * PAGE))
    launcher.before = lambda: move_away(launcher.guest, next(places))
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["copy", "copy", "copy", "pause"]


@pytest.mark.parametrize("moves", [1, 9])
def test_a_guest_that_hides_once_it_was_stopped_is_paused_at_once_the_next_time(watch, launcher, moves):
    """It makes the first copies miss what it moved, and puts it right before the next are made."""
    places = iter(range(FAR, FAR + moves * 16 * PAGE, 16 * PAGE))
    launcher.before = lambda: [move_away(launcher.guest, place) for place in [next(places, 0)] if place]
    launcher.after = lambda: enlarge(launcher.guest, 11)
    enlarge(launcher.guest)
    assert look(watch) == (Outcome.HOLDS, [])
    stops = len(launcher.told)
    assert stops > 1
    enlarge(launcher.guest)
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told[stops:] == ["pause"]
    enlarge(launcher.guest)
    launcher.before = lambda: None
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told[stops + 1 :] == ["copy"], "and as ever after that"


@pytest.mark.parametrize("failure", [SetupError("not here"), UnavailableError("not now")])
def test_without_copies_the_guest_is_paused_for_the_look(watch, launcher, failure):
    enlarge(launcher.guest)
    launcher.failure = failure
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["copy", "pause"]


def test_a_look_that_outlasts_its_pause_accuses_nobody(watch, launcher):
    """The guest ran in the middle of it: what seems wrong may be the look's own doing."""
    enlarge(launcher.guest)
    launcher.failure, launcher.overslept = UnavailableError("not now"), True
    (result,) = watch.look().results
    assert (result.outcome, result.findings) == (Outcome.INCONCLUSIVE, ())
    assert "did not stand still" in result.reason
    launcher.overslept = False
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])


def test_a_guest_that_outlasts_a_pause_and_is_clean_then_is_paused_at_once_the_next_time(watch, launcher):
    enlarge(launcher.guest)
    launcher.failure, launcher.overslept = UnavailableError("not now"), True
    launcher.before = lambda: enlarge(launcher.guest, 11)
    assert look(watch) == (Outcome.HOLDS, [])
    for told in (["pause"], ["copy", "pause"]):  # but not each time, on a host that is always slow
        launcher.told.clear()
        enlarge(launcher.guest)
        assert look(watch) == (Outcome.HOLDS, [])
        assert launcher.told == told


@pytest.mark.parametrize("bound", ["MOST_RUNS", "MOST_COPIED_PAGES"])
def test_a_look_that_reads_too_much_to_be_copied_is_made_with_the_guest_paused(
    watch, launcher, bound, monkeypatch
):
    enlarge(launcher.guest)
    monkeypatch.setattr(one_moment, bound, 3)
    assert look(watch) == (Outcome.VIOLATED, ["thing 7000"])
    assert launcher.told == ["pause"]


@pytest.mark.parametrize(("roots", "copies"), [((FAR // PAGE,), 1), ((), 2)])
def test_a_process_that_a_vcpu_is_on_only_then_needs_no_other_moment(
    launcher, engines, tmp_path, roots, copies
):
    """The launcher copies the table that CR3 names; a page that was not copied is never read unnoticed."""
    guest, watch = launcher.guest, make_watch(launcher, engines["text"], tmp_path)
    guest.poke(guest.physical(SYMBOLS["victim"]) + 0x40, b"\xcc")
    guest.ram[FAR : FAR + PAGE] = guest.ram[PROCESS_ROOT : PROCESS_ROOT + PAGE]

    def switch() -> None:
        launcher.root, launcher.roots = FAR, roots

    launcher.before = switch
    assert look(watch) == (Outcome.VIOLATED, ["victim+0x40"])
    assert launcher.told == ["copy"] * copies
