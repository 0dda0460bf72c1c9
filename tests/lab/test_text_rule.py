"""The rule on kernel text, judged from the first moment of a boot on: health never violates it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.guest import Guest
from affiant.kernel.memory import GuestMemory
from affiant.launcher.qemu_monitor import QemuMonitor
from affiant.model.errors import AffiantError
from affiant.model.outcome import Outcome
from affiant.vm.initramfs import READY_LINE
from lab.console import Console, ConsoleTimeoutError
from lab.guests import GuestPlan, LabGuest, plan_machine
from lab.live_guest import LiveGuest, registers
from lab.looking import facts_of
from lab.plain import run_plain
from lab.references import reference_of
from lab.tamper.technique import SUITES

RULE = "kernel_text_intact"
LOOKS_UNDER_LOAD = 40
QMP_SECONDS = 60.0


@contextmanager
def _booting(
    plan: GuestPlan,
) -> Iterator[tuple[LabGuest, QEMUMonitorProtocol, QemuMonitor, GuestMemory, mmap.mmap]]:
    """Start a guest and do not wait for it."""
    with ExitStack() as stack:
        machine = plan_machine(plan, Path(stack.enter_context(TemporaryDirectory(prefix="affiant-guest-"))))
        process = stack.enter_context(run_plain(machine))
        console = stack.enter_context(process.console())
        assert machine.operator_qmp is not None
        monitor = QEMUMonitorProtocol(str(machine.operator_qmp))
        monitor.connect()
        stack.callback(monitor.close)
        launcher = QemuMonitor()
        stack.callback(launcher.close)
        launcher.connect(process.launcher_qmp, timeout=QMP_SECONDS, alive=lambda: True)
        memory = stack.enter_context(GuestMemory.open(machine.ram, memory_bytes=machine.memory_bytes))
        file = stack.enter_context(machine.ram.open("r+b"))
        ram = stack.enter_context(mmap.mmap(file.fileno(), 0))
        yield LabGuest(plan, machine, plan.kernel(), process, console), monitor, launcher, memory, ram


def _ready(console: Console) -> bool:
    try:
        console.wait(READY_LINE, timeout=0.02)
    except ConsoleTimeoutError:
        return False
    return True


@pytest.mark.parametrize("suite", SUITES)
def test_health_is_never_taken_for_tampering(suite: str) -> None:
    """While the kernel boots the rule is inconclusive, and from then on it holds; under load, too."""
    plan = GuestPlan(suite=suite, firmware=False, tpm=False)
    reference = reference_of(plan.kernel())
    with _booting(plan) as (guest, monitor, launcher, memory, ram), Engine(packaged_library()) as engine:
        (script,) = (script for script in engine.bundle.scripts if script.name == RULE)
        live: LiveGuest | None = None
        outcomes: list[Outcome] = []

        def look() -> None:
            assert live is not None
            (result,) = engine.judge(facts_of(live, [script]), only=[RULE])
            if result.outcome is Outcome.VIOLATED:  # as a monitor does: what no longer stands is not told
                with live.paused():
                    (result,) = engine.judge(facts_of(live, [script], at_rest=True), only=[RULE])
            assert result.outcome is not Outcome.VIOLATED, result.findings
            outcomes.append(result.outcome)

        while not _ready(guest.console):
            if live is None:
                try:
                    seen = Guest.open(memory, reference, registers(monitor))
                    live = LiveGuest(seen, memory, ram, monitor, launcher, guest)
                except AffiantError:
                    continue  # the kernel does not run yet
            look()
        assert live is not None
        assert Outcome.INCONCLUSIVE in outcomes, "no look was early enough to see the kernel boot"
        guest.console.wait("guest# ", timeout=120)
        guest.console.run("load all 2")
        outcomes.clear()
        for _ in range(LOOKS_UNDER_LOAD):
            look()
        assert set(outcomes) == {Outcome.HOLDS}
        guest.console.run("load stop", timeout=120)
