"""A real kernel at work, changed and put right at moments of choice: what stood at the moment is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome
from affiant.monitor.registers import Moment
from lab.guests import LabGuest
from lab.live_guest import LiveGuest, open_live_guest
from lab.looking import WaitingClock, judge_one_moment, judge_twice
from lab.references import reference_of

HOOK = bytes.fromhex("48b88877665544332211ffe0")  # movabs $0x1122334455667788, %rax; jmp *%rax
TAMPERINGS = {
    "kernel_text_intact": ("tcp4_seq_show", 5, HOOK),
    "syscall_table_intact": ("sys_call_table", 8 * 62, b"\x01"),
}


@dataclass
class Steered:
    """A guest that acts just before its pages are copied, and once it runs on."""

    live: LiveGuest
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    told: list[str] = field(default_factory=list)

    def copied(self, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Moment:
        self.told.append("copied")
        self.before()
        moment = self.live.copied(runs, device_state=device_state)
        self.after()
        return moment

    def paused(self) -> AbstractContextManager[None]:
        self.told.append("paused")
        return self.live.paused()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(packaged_library()) as engine:
        yield engine


@pytest.fixture(scope="module")
def live(direct_guest: LabGuest) -> Iterator[LiveGuest]:
    """The guest while it starts a process after the other."""
    run = direct_guest.console.run
    busy = run("(while :; do ls / >/dev/null; done) & echo $!").strip()
    with open_live_guest(direct_guest, reference_of(direct_guest.kernel)) as live:
        yield live
    run(f"kill {busy}")


@pytest.fixture(params=TAMPERINGS)
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tamper(live: LiveGuest, rule: str) -> Iterator[Callable[[bool], None]]:
    """Set (True) or undo (False) the change that the rule tells."""
    symbol, offset, content = TAMPERINGS[rule]
    address = live.guest.program.address(symbol) + offset
    right = live.guest.program.read(address, len(content))

    def put(wrong: bool) -> None:
        live.write(address, content if wrong else right)

    yield put
    put(False)


def outcome(live: LiveGuest, engine: Engine, rule: str, machine: Steered) -> Outcome:
    (result,) = judge_one_moment(live, engine, [rule], clock=WaitingClock(), machine=machine)
    return result.outcome


def test_tampering_is_confirmed_from_copies_of_one_moment(
    live: LiveGuest, engine: Engine, rule: str, tamper: Callable[[bool], None]
) -> None:
    tamper(True)
    machine = Steered(live)
    assert outcome(live, engine, rule, machine) is Outcome.VIOLATED
    assert machine.told == ["copied"]
    violated = {each.name for each in judge_twice(live, engine, clock=WaitingClock()) if each.findings}
    assert rule in violated


def test_what_is_put_right_once_the_guest_runs_on_is_told(
    live: LiveGuest, engine: Engine, rule: str, tamper: Callable[[bool], None]
) -> None:
    tamper(True)
    assert outcome(live, engine, rule, Steered(live, after=lambda: tamper(False))) is Outcome.VIOLATED
    assert outcome(live, engine, rule, Steered(live)) is Outcome.HOLDS


def test_what_is_wrong_only_before_and_after_is_not_told(
    live: LiveGuest, engine: Engine, rule: str, tamper: Callable[[bool], None]
) -> None:
    tamper(True)
    machine = Steered(live, before=lambda: tamper(False), after=lambda: tamper(True))
    assert outcome(live, engine, rule, machine) is Outcome.HOLDS


def test_every_rule_holds_at_one_moment_of_a_guest_at_work(live: LiveGuest, engine: Engine) -> None:
    """Those about processes may need the guest paused: it starts some while they look."""
    names = [script.name for script in engine.bundle.scripts]
    machine = Steered(live)
    results = judge_one_moment(live, engine, names, clock=WaitingClock(), machine=machine)
    wrong = {each.name: (each.outcome, each.reason) for each in results if each.outcome is not Outcome.HOLDS}
    assert wrong == {}
    assert machine.told[0] == "copied"
