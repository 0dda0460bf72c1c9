"""Which registers the monitor asks for, when, and what it makes of a launcher that has none."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from affiant.kernel.machine.cpu import parse_registers
from affiant.model.errors import MalformedError, UnavailableError
from affiant.monitor.registers import Registers
from affiant.wire.launcher_requests import Cpus, DeviceState, MachineState
from tests.unit.kernel.device_stream_builder import SystemRegisters, device_stream
from tests.unit.kernel.synthetic_guest import registers as listing

LISTING = listing(cr3=0x1000)
CPU = parse_registers(LISTING)


@dataclass
class Launcher:
    """Answers, at a time of the test's choice."""

    now: float = 100.0
    asked: list[str] = field(default_factory=list)
    lstar: int = 1
    failure: Exception | None = None

    def ask(self, request: object) -> object:
        self.asked.append(type(request).__name__)
        if isinstance(request, Cpus):
            return (LISTING,)
        assert isinstance(request, DeviceState)
        if self.failure is not None:
            raise self.failure
        return MachineState((LISTING,), device_stream([CPU], [SystemRegisters(lstar=self.lstar)]))


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture
def registers(launcher: Launcher) -> Registers:
    """A source whose lot always falls on the shortest interval."""
    return Registers(launcher, clock=lambda: launcher.now, below=lambda most: 0)  # type: ignore[arg-type]


def test_saved_registers_are_asked_for_now_and_then(launcher: Launcher, registers: Registers) -> None:
    first = registers.saved(fresh=False)
    assert (first.taken_at, first.cpus[0].lstar) == (100.0, 1)
    launcher.now, launcher.lstar = 102.9, 2
    assert registers.saved(fresh=False) is first
    launcher.now = 103.0
    assert registers.saved(fresh=False).cpus[0].lstar == 2
    assert launcher.asked == ["DeviceState", "DeviceState"]


def test_the_moment_of_the_next_is_drawn_by_lot(launcher: Launcher) -> None:
    drawn: list[int] = []

    def longest(most: int) -> int:
        drawn.append(most)
        return most - 1

    registers = Registers(launcher, clock=lambda: launcher.now, below=longest)  # type: ignore[arg-type]
    registers.saved(fresh=False)
    launcher.now += 14.9
    registers.saved(fresh=False)
    assert launcher.asked == ["DeviceState"]
    launcher.now += 0.1
    registers.saved(fresh=False)
    assert launcher.asked == ["DeviceState", "DeviceState"]
    assert drawn == [12_001, 12_001]


def test_under_pause_they_are_those_of_now(launcher: Launcher, registers: Registers) -> None:
    registers.saved(fresh=False)
    launcher.lstar = 2
    assert registers.saved(fresh=True).cpus[0].lstar == 2


def test_a_launcher_that_cannot_save_for_a_moment_leaves_the_last_state(
    launcher: Launcher, registers: Registers
) -> None:
    """The guest's TPM works: what was saved a moment ago is told with its age, and asked for anew soon."""
    first = registers.saved(fresh=False)
    launcher.failure = UnavailableError("the guest keeps its TPM busy")
    launcher.now += 20
    assert registers.saved(fresh=False) is first
    launcher.now += 1
    registers.saved(fresh=False)
    assert launcher.asked == ["DeviceState"] * 3
    launcher.now += 10
    late = registers.saved(fresh=False)
    assert (late.cpus, late.reason) == ((), "the guest keeps its TPM busy")


@pytest.mark.parametrize("failure", [UnavailableError("QEMU is gone"), MalformedError("no answer")])
def test_without_a_state_there_is_a_reason(
    launcher: Launcher, registers: Registers, failure: Exception
) -> None:
    launcher.failure = failure
    assert registers.saved(fresh=False).reason == str(failure)
    launcher.failure = None
    assert registers.saved(fresh=False).cpus


def test_a_state_of_another_kernel_is_forgotten(launcher: Launcher, registers: Registers) -> None:
    registers.saved(fresh=False)
    registers.forget()
    registers.saved(fresh=False)
    assert launcher.asked == ["DeviceState", "DeviceState"]


def test_a_stream_that_disagrees_with_its_listing_is_no_state(
    launcher: Launcher, registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = parse_registers(listing(cr3=0x2000))
    stream = device_stream([other], [SystemRegisters()])
    monkeypatch.setattr(launcher, "ask", lambda request: MachineState((LISTING,), stream))
    assert "differ in CR3" in registers.saved(fresh=False).reason


def test_listed_registers_are_asked_for_at_each_look(launcher: Launcher, registers: Registers) -> None:
    assert registers.listed() == [CPU]
    assert registers.listed() == [CPU]
    assert launcher.asked == ["Cpus", "Cpus"]
