"""The rule on kernel text, judged from the first moment of a boot on: health never violates it."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.reference import ReferenceImage
from affiant.launcher.qemu.connection import QemuMonitor
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.model.errors import AffiantError
from affiant.model.outcome import Outcome
from affiant.vm.initramfs import READY_LINE
from lab.console import Console, ConsoleTimeoutError
from lab.guests import GuestPlan, LabGuest, plan_machine
from lab.live_guest import LiveGuest, open_memory, page_copies, registers
from lab.looking import WaitingClock, facts_of, judge_one_moment
from lab.plain import run_plain
from lab.references import reference_of
from lab.tamper.technique import SUITES

RULE = "kernel_text_intact"
LOOKS_UNDER_LOAD = 40
QMP_SECONDS = 60.0
BOOT_SECONDS = 300.0


@dataclass(frozen=True)
class Booting:
    """A guest that nobody waits for, and what looks at it go through."""

    guest: LabGuest
    monitor: QEMUMonitorProtocol
    launcher: QemuMonitor
    memory: GuestMemory
    ram: mmap.mmap
    copies: PageCopies

    def live(self, reference: ReferenceImage) -> LiveGuest | None:
        """Return the guest with its kernel, None while that does not run yet."""
        try:
            seen = Guest.open(self.memory, reference, registers(self.monitor))
        except AffiantError:
            return None
        return LiveGuest(seen, self.memory, self.ram, self.monitor, self.launcher, self.guest, self.copies)


@contextmanager
def _booting(plan: GuestPlan) -> Iterator[Booting]:
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
        size = machine.memory_bytes
        copies = stack.enter_context(page_copies(machine.ram, size))
        memory, ram = stack.enter_context(open_memory(machine.ram, size, copies=copies.descriptor))
        guest = LabGuest(plan, machine, plan.kernel(), process, console)
        yield Booting(guest, monitor, launcher, memory, ram, copies)


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
    clock = WaitingClock()
    with _booting(plan) as booting, Engine(packaged_library()) as engine:
        guest = booting.guest
        (script,) = (script for script in engine.bundle.scripts if script.name == RULE)
        live: LiveGuest | None = None
        outcomes: list[Outcome] = []

        def look() -> None:
            assert live is not None
            (result,) = engine.judge(facts_of(live, [script], now=clock.now()), only=[RULE])
            if result.outcome is Outcome.VIOLATED:  # as a monitor does: what no longer stands is not told
                (result,) = judge_one_moment(live, engine, [RULE], clock=clock)
            assert result.outcome is not Outcome.VIOLATED, result.findings
            outcomes.append(result.outcome)

        deadline = time.monotonic() + BOOT_SECONDS
        while not _ready(guest.console):
            assert time.monotonic() < deadline, guest.machine.console_log.read_text()[-2000:]
            live = live or booting.live(reference)
            if live is not None:
                look()
        assert live is not None
        assert Outcome.INCONCLUSIVE in outcomes, "no look was early enough to see the kernel boot"
        guest.console.wait("guest# ", timeout=120)
        guest.console.silence_kernel()
        guest.console.run("load all 2")
        outcomes.clear()
        for _ in range(LOOKS_UNDER_LOAD):
            look()
        assert set(outcomes) == {Outcome.HOLDS}
        guest.console.run("load stop", timeout=300)
