"""Registers, pause and resume against a real QEMU with an idle machine: nothing is booted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from affiant.kernel.machine.cpu import parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.launcher.qemu import connection as qemu_connection
from affiant.launcher.qemu.connection import PAUSE_SECONDS, QemuMonitor
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.model.errors import SetupError, UnavailableError

_RAM_BYTES = 16 << 20
_MARK = b"never touched by the firmware"
_PAGES = ((0x800, 2),)  # the mark is in the second


@dataclass
class Machine:
    """QEMU, our connection, and an operator's one beside it."""

    process: subprocess.Popen[bytes]
    monitor: QemuMonitor
    operator: Any
    copies: PageCopies

    def ask(self, command: str) -> Any:
        self.operator.write(json.dumps({"execute": command}) + "\n")
        self.operator.flush()
        while "return" not in (answer := json.loads(self.operator.readline())):
            pass
        return answer["return"]

    def running(self) -> bool:
        return bool(self.ask("query-status")["running"])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that stays paused until it is resumed, however busy this host is meanwhile."""
    monkeypatch.setattr(qemu_connection, "PAUSE_SECONDS", 600.0)
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed (package qemu-system-x86)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [qemu, "-accel", "tcg", "-smp", "2", "-m", "16M", "-nodefaults", "-display", "none"]
        ram = folder / "ram"
        ram.write_bytes(bytes(0x801000) + _MARK.ljust(_RAM_BYTES - 0x801000, b"\0"))
        arguments += ["-object", f"memory-backend-file,id=ram,size={_RAM_BYTES},mem-path={ram},share=on"]
        arguments += ["-machine", "q35,memory-backend=ram"]
        for role in ("launcher", "operator"):
            arguments += ["-chardev", f"socket,id={role},path={folder / role},server=on,wait=off"]
            arguments += ["-mon", f"chardev={role},mode=control"]
        with ram.open("rb") as file:
            copies = PageCopies(file.fileno(), memory_bytes=_RAM_BYTES, below_4g_bytes=_RAM_BYTES)
        process = subprocess.Popen(arguments)
        monitor = QemuMonitor()
        try:
            monitor.connect(folder / "launcher", timeout=120, alive=lambda: process.poll() is None)
            with socket.socket(socket.AF_UNIX) as channel:
                channel.connect(str(folder / "operator"))
                operator = channel.makefile("rw")
                operator.readline()
                machine = Machine(process, monitor, operator, copies)
                machine.ask("qmp_capabilities")
                yield machine
        finally:
            monitor.close()
            copies.close()
            process.kill()
            process.wait()


def test_registers_come_for_each_vcpu(machine: Machine) -> None:
    listings = machine.monitor.registers()
    assert len(listings) == 2
    for index, listing in enumerate(listings):
        assert listing.startswith(f"CPU#{index}\n")
        assert listing.count("CPU#") == 1
        assert "CR3=" in listing
        assert "EFER=" in listing
        assert "\r" not in listing


def test_device_state_holds_a_section_for_each_vcpu(machine: Machine) -> None:
    state = machine.monitor.machine_state()
    assert len(state.cpus) == 2
    assert state.stream.startswith(b"QEVM")
    for index in range(2):
        assert state.stream.count(b"\x03cpu" + index.to_bytes(4, "big") + (12).to_bytes(4, "big")) == 1
    cpus = [parse_registers(text) for text in state.cpus]
    assert [cpu.index for cpu in parse_device_stream(state.stream, cpus)] == [0, 1]
    assert machine.running()


def test_device_state_is_written_from_the_start_each_time(machine: Machine) -> None:
    machine.ask("stop")  # a machine that runs has more to save at one moment than at another
    first, second = machine.monitor.machine_state(), machine.monitor.machine_state()
    assert len(first.stream) == len(second.stream) > 2000
    assert second.stream.count(b"QEVM") == 1


def test_device_state_leaves_a_stopped_guest_stopped(machine: Machine) -> None:
    machine.monitor.pause()
    machine.monitor.machine_state()
    assert not machine.running()
    machine.monitor.resume()
    assert machine.running()
    machine.ask("stop")
    machine.monitor.machine_state()
    assert not machine.running()


def test_device_state_that_fails_is_not_asked_for_again_and_again(machine: Machine) -> None:
    """Each failure costs QEMU a descriptor; after a few the launcher gives up, and the guest runs."""
    machine.monitor.machine_state()
    assert machine.monitor._state_file is not None
    machine.monitor._state_file_name = "/dev/fdset/77"  # none such
    for _ in range(8):
        with pytest.raises(UnavailableError, match="QEMU does not answer"):
            machine.monitor.machine_state()
    with pytest.raises(UnavailableError, match="too often"):
        machine.monitor.machine_state()
    assert machine.running()
    assert len(machine.monitor.registers()) == 2


class WatchedCopies:
    """Copies that note whether the guest ran at each step."""

    def __init__(self, machine: Machine, *, broken: bool = False) -> None:
        self.machine, self.broken = machine, broken
        self.steps: list[tuple[str, bool]] = []
        self.schedulers: list[int] = []

    def prepare(self, runs: Any) -> None:
        self._note("prepare")
        self.machine.copies.prepare(runs)

    def take(self, runs: Any) -> None:
        self._note("take")
        if self.broken:
            raise OSError("no memory")
        self.machine.copies.take(runs)

    def take_roots(self, listings: Any) -> tuple[int, ...]:
        self._note("take roots")
        return self.machine.copies.take_roots(listings)

    def _note(self, step: str) -> None:
        self.steps.append((step, self.machine.running()))
        self.schedulers.append(os.sched_getscheduler(0))


def test_pages_are_copied_while_the_guest_stands_still(machine: Machine) -> None:
    copies = WatchedCopies(machine)
    copied = machine.monitor.copy(copies, _PAGES, device_state=False)  # type: ignore[arg-type]
    assert copies.steps == [("prepare", True), ("take", False), ("take roots", False)]
    assert machine.running()
    assert [parse_registers(text).index for text in copied.cpus] == [0, 1]
    assert copied.stream == b""
    assert os.pread(machine.copies.descriptor, len(_MARK), 0x801000) == _MARK


@pytest.mark.parametrize("broken", [False, True])
def test_copying_goes_before_other_work_only_while_the_guest_stands_still(
    machine: Machine, broken: bool
) -> None:
    """And not again at once, so that nobody who asks on and on gets it for good."""
    policy = os.SCHED_RR if _may_hurry() else os.SCHED_OTHER
    for expected, last in ((policy, 0.0), (os.SCHED_OTHER, time.monotonic() + 1000)):
        machine.monitor._hurry._last = last
        copies = WatchedCopies(machine, broken=broken)
        with contextlib.suppress(UnavailableError):
            machine.monitor.copy(copies, _PAGES, device_state=False)  # type: ignore[arg-type]
        assert copies.schedulers[0] == os.SCHED_OTHER
        assert set(copies.schedulers[1:]) == {expected}
    assert os.sched_getscheduler(machine.monitor._thread.native_id or 0) == os.SCHED_OTHER


def _may_hurry() -> bool:
    """Tell whether this host lets us have a real-time priority; given back at once."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


def test_registers_device_state_and_copies_are_of_one_moment(machine: Machine) -> None:
    copied = machine.monitor.copy(machine.copies, _PAGES, device_state=True)
    cpus = [parse_registers(text, index=index) for index, text in enumerate(copied.cpus)]
    assert [cpu.index for cpu in parse_device_stream(copied.stream, cpus)] == [0, 1]
    assert copied.roots == tuple(sorted({page ^ half for page in copied.roots for half in (0, 1)}))
    assert machine.running()
    assert machine.monitor.machine_state().stream.count(b"QEVM") == 1


def test_copying_leaves_a_stopped_guest_stopped(machine: Machine) -> None:
    machine.monitor.pause()
    machine.monitor.copy(machine.copies, _PAGES, device_state=False)
    assert not machine.running()
    machine.monitor.resume()
    machine.ask("stop")
    machine.monitor.copy(machine.copies, _PAGES, device_state=True)
    assert not machine.running()


def test_a_guest_whose_pages_cannot_be_copied_runs_on(machine: Machine) -> None:
    with pytest.raises(SetupError, match="does not have"):
        machine.monitor.copy(machine.copies, ((_RAM_BYTES >> 12, 1),), device_state=False)
    assert machine.running()
    copies = WatchedCopies(machine, broken=True)
    with pytest.raises(UnavailableError, match="no memory"):
        machine.monitor.copy(copies, _PAGES, device_state=True)  # type: ignore[arg-type]
    assert copies.steps[-1] == ("take", False)
    assert machine.running()
    machine.monitor._state_file_name = "/dev/fdset/77"  # none such
    with pytest.raises(UnavailableError, match="QEMU does not answer"):
        machine.monitor.copy(machine.copies, _PAGES, device_state=True)
    assert machine.running()


def test_pause_and_resume(machine: Machine) -> None:
    assert machine.running()
    machine.monitor.pause()
    assert not machine.running()
    assert machine.monitor.resume()
    assert machine.running()
    assert machine.monitor.resume()
    assert machine.running()


def test_forgotten_guest_runs_again_by_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_connection, "PAUSE_SECONDS", PAUSE_SECONDS)
    begun = time.monotonic()  # before the pause, which this thread may come late to know of
    machine.monitor.pause()
    while not machine.running():
        assert time.monotonic() < begun + PAUSE_SECONDS + 30
    assert time.monotonic() - begun > PAUSE_SECONDS
    monkeypatch.setattr(qemu_connection, "PAUSE_SECONDS", 600.0)
    assert not machine.monitor.resume(), "it did not stand still until now"
    machine.monitor.pause()  # and can be paused again
    assert not machine.running()
    assert machine.monitor.resume()


def test_guest_that_an_operator_paused_stays_paused(machine: Machine) -> None:
    machine.ask("stop")
    machine.monitor.pause()
    machine.monitor.resume()
    assert not machine.running()


@pytest.mark.parametrize(
    "look",
    [
        lambda machine: machine.monitor.pause(),
        lambda machine: machine.monitor.machine_state(),
        lambda machine: machine.monitor.copy(machine.copies, _PAGES, device_state=True),
    ],
    ids=["pause", "machine_state", "copy"],
)
def test_a_guest_that_an_operator_stops_at_the_last_moment_stays_stopped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, look: Callable[[Machine], object]
) -> None:
    """Between our question whether it runs and our own stop: who then let it run on would undo theirs."""
    execute = machine.monitor._execute
    stops = iter(["stop"])

    async def raced(command: str, arguments: dict[str, object] | None = None) -> object:
        answer = await execute(command, arguments)
        if command == "query-status" and (stop := next(stops, None)):
            machine.ask(stop)
        return answer

    monkeypatch.setattr(machine.monitor, "_execute", raced)
    look(machine)
    machine.monitor.resume()
    assert not machine.running()


def test_closing_lets_the_guest_run(machine: Machine) -> None:
    machine.monitor.pause()
    machine.monitor.close()
    assert machine.running()
    with pytest.raises(UnavailableError):
        machine.monitor.registers()


def test_dead_qemu_is_unavailable(machine: Machine) -> None:
    machine.process.kill()
    machine.process.wait()
    with pytest.raises(UnavailableError):
        machine.monitor.registers()
    with pytest.raises(UnavailableError):
        machine.monitor.pause()


def test_quit_ends_qemu(machine: Machine) -> None:
    machine.monitor.quit()
    assert machine.process.wait(60) == 0


def test_qemu_that_ended_at_its_start_is_told(tmp_path: Path) -> None:
    monitor = QemuMonitor()
    try:
        with pytest.raises(UnavailableError, match="ended at its start"):
            monitor.connect(tmp_path / "none", timeout=5, alive=lambda: False)
        with pytest.raises(UnavailableError, match="does not listen"):
            monitor.connect(tmp_path / "none", timeout=0.1, alive=lambda: True)
    finally:
        monitor.close()


def test_silent_qemu_costs_a_timeout_not_the_launcher() -> None:
    """A QEMU that greets and then says nothing: each question ends, later ones at once."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/qmp")
        listener.listen()
        connections = []

        def greet() -> None:
            connection, _ = listener.accept()
            connections.append(connection)
            version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
            connection.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
            connection.recv(4096)  # qmp_capabilities
            connection.sendall(b'{"return": {}}\n')

        thread = threading.Thread(target=greet)
        thread.start()
        monitor = QemuMonitor()
        monitor.connect(Path(folder, "qmp"), timeout=60, alive=lambda: True)
        thread.join()
        for reason in ("does not answer", "earlier question"):
            with pytest.raises(UnavailableError, match=reason):
                monitor._ask(monitor._execute("query-status"), 0.3)
        connections[0].close()
        monitor.close()
