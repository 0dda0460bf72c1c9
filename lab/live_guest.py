"""A running guest with its kernel located, and its memory open for reading and for writing."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp.legacy import QEMUMonitorProtocol

from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import CpuState, parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.ram_layout import q35_below_4g_bytes
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.kernel.reference import ReferenceImage
from affiant.launcher.qemu.connection import QemuMonitor
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.monitor.registers import Moment
from lab.guests import LabGuest

__all__ = ["LiveGuest", "open_live_guest", "open_memory", "page_copies", "registers"]

_QMP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LiveGuest:
    """A guest as the lab sees and changes it: `guest` reads as a monitor does, `ram` is written to."""

    guest: Guest
    memory: GuestMemory
    ram: mmap.mmap
    monitor: QEMUMonitorProtocol
    launcher: QemuMonitor
    lab: LabGuest
    copies: PageCopies | None = None

    def refreshed(self, moment: Moment | None = None) -> Guest:
        """Return the guest with the registers of a moment, or of now, and what QEMU saves of them."""
        if moment is None:
            now = time.monotonic()
            state = self.launcher.machine_state()
            cpus = _parsed(state.cpus)
            moment = Moment(cpus, SavedCpus(now, parse_device_stream(state.stream, cpus)))
        return self.guest.refresh(moment.cpus).with_saved(moment.saved)

    def copied(self, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Moment:
        """Have pages copied, as a monitor asks its launcher to."""
        assert self.copies is not None, "the memory has no place for copies"
        now = time.monotonic()
        copied = self.launcher.copy(self.copies, runs, device_state=device_state)
        cpus = _parsed(copied.cpus)
        saved = SavedCpus(now, parse_device_stream(copied.stream, cpus)) if device_state else None
        return Moment(cpus, saved, copied.roots)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the virtual CPUs meanwhile."""
        self.monitor.cmd("stop")
        try:
            yield
        finally:
            self.monitor.cmd("cont")

    @contextmanager
    def changed(self, address: int, content: bytes) -> Iterator[None]:
        """Have `content` stand at a virtual address of the kernel (within one page) meanwhile."""
        before = self.write(address, content)
        try:
            yield
        finally:
            self.write(address, before)

    @contextmanager
    def all_changed(self, *changes: tuple[int, bytes]) -> Iterator[None]:
        """Have each content stand at its address meanwhile; no vCPU sees some of them without the others."""
        before: list[tuple[int, bytes]] = []
        with self.paused():
            before += [(address, self.write(address, content)) for address, content in changes]
        try:
            yield
        finally:
            with self.paused():
                for address, content in reversed(before):
                    self.write(address, content)

    @contextmanager
    def physically_changed(self, physical: int, content: bytes) -> Iterator[None]:
        """Have `content` stand at a physical address meanwhile."""
        before = self._put(physical, content)
        try:
            yield
        finally:
            self._put(physical, before)

    def write(self, address: int, content: bytes) -> bytes:
        """Write to a virtual address of the kernel, within one page; return what stood there."""
        return self._put(self.guest.kernel_space.translate(address).physical, content)

    def _put(self, physical: int, content: bytes) -> bytes:
        assert self.memory.contains(physical, len(content))
        assert physical < self.memory.below_4g_bytes, "beyond, the file's offsets are no addresses"
        before = self.ram[physical : physical + len(content)]
        self.ram[physical : physical + len(content)] = content
        return before


@contextmanager
def open_live_guest(guest: LabGuest, reference: ReferenceImage) -> Iterator[LiveGuest]:
    """Open the memory of a booted guest, and find its kernel."""
    machine = guest.machine
    assert machine.operator_qmp is not None
    monitor = QEMUMonitorProtocol(str(machine.operator_qmp))
    monitor.connect()
    launcher = QemuMonitor()
    try:
        launcher.connect(guest.process.launcher_qmp, timeout=_QMP_SECONDS, alive=lambda: True)
        cpus = _parsed(launcher.registers())
        size = machine.memory_bytes
        with (
            page_copies(Path(machine.ram), size) as copies,
            open_memory(Path(machine.ram), size, copies=copies.descriptor) as (memory, ram),
        ):
            seen = Guest.open(memory, reference, cpus)
            yield LiveGuest(seen, memory, ram, monitor, launcher, guest, copies)
    finally:
        launcher.close()
        monitor.close()


@contextmanager
def page_copies(path: Path, size: int) -> Iterator[PageCopies]:
    """Make a place for copies of pages of a guest's memory, as a launcher has it."""
    ram = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copies = PageCopies(ram, memory_bytes=size, below_4g_bytes=q35_below_4g_bytes(size))
    finally:
        os.close(ram)
    try:
        yield copies
    finally:
        copies.close()


@contextmanager
def open_memory(
    path: Path, size: int, *, copies: int | None = None
) -> Iterator[tuple[GuestMemory, mmap.mmap]]:
    """Open a guest's memory: to be read as a monitor does, and to be written to."""
    with (
        GuestMemory.open(path, memory_bytes=size, copies=copies) as memory,
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as ram,
    ):
        yield memory, ram


def registers(monitor: QEMUMonitorProtocol) -> list[CpuState]:
    """Return the registers of all virtual CPUs of now."""
    listing = monitor.cmd("human-monitor-command", **{"command-line": "info registers -a"})
    texts = ["CPU#" + part for part in str(listing).split("CPU#")[1:]]
    return [parse_registers(text, index=index) for index, text in enumerate(texts)]


def _parsed(listings: tuple[str, ...]) -> list[CpuState]:
    return [parse_registers(text, index=index) for index, text in enumerate(listings)]
