"""The firmware's event log is copied while it is there, and a guest that spoils it gains nothing."""

from __future__ import annotations

import itertools

import pytest

from affiant.kernel.machine.memory import GuestMemory
from affiant.monitor import boot_log
from affiant.monitor.boot_log import BootLogCopies
from tests.unit.kernel.machine.test_event_log import BANKS, EVENTS, spec_event

SIZE, PLACE = 4 << 20, 0x10_0000


class Firmware:
    """Guest memory with a log that grows."""

    def __init__(self) -> None:
        self.ram = bytearray(SIZE)
        self.seconds = itertools.count()  # each copy takes one
        self.copies = BootLogCopies(
            GuestMemory(self.ram, below_4g_bytes=SIZE), clock=lambda: next(self.seconds)
        )

    def log(self, events: int, *, at: int = PLACE) -> bytes:
        data = spec_event(*BANKS) + b"".join(EVENTS[:events])
        self.ram[at : at + 4096] = data.ljust(4096, b"\0")
        return data

    def kept(self) -> list[bytes]:
        return [candidate.data for candidate in self.copies.candidates()]


@pytest.fixture
def firmware() -> Firmware:
    return Firmware()


def test_without_a_log_there_is_nothing_to_keep(firmware: Firmware) -> None:
    firmware.copies.take()
    assert firmware.kept() == []


def test_the_newest_contents_come_first_and_each_once(firmware: Firmware) -> None:
    logs = []
    for events in (1, 4, 4, 8):
        logs.append(firmware.log(events))
        firmware.copies.take()
    assert firmware.kept() == [logs[3], logs[1], logs[0]]


def test_a_log_that_is_overwritten_later_is_still_there(firmware: Firmware) -> None:
    log = firmware.log(8)
    firmware.copies.take()
    firmware.ram[:] = bytes(SIZE)
    firmware.copies.take()
    assert firmware.kept() == [log]


def test_a_proven_log_outlives_whatever_the_guest_writes_in_its_place(firmware: Firmware) -> None:
    log = firmware.log(8)
    firmware.copies.take()
    firmware.copies.prove(firmware.copies.candidates()[0])
    for events in (1, 2, 3, 4, 5, 6):
        firmware.log(events)
        firmware.copies.take()
    assert firmware.kept()[0] == log
    assert len(firmware.kept()) <= 1 + 32


def test_a_log_of_an_earlier_boot_does_not_hide_the_new_one(firmware: Firmware) -> None:
    """A reset does not clear memory: what an earlier firmware wrote elsewhere still lies there."""
    firmware.log(8)
    firmware.copies.take()
    firmware.copies.forget()
    for events in (1, 3, 5):
        new = firmware.log(events, at=PLACE + 0x8_0000)
        firmware.copies.take()
    assert new in firmware.kept()


def test_a_guest_that_never_becomes_known_is_not_searched_for_ever(firmware: Firmware) -> None:
    for _ in range(10):
        assert firmware.copies.take()
    log = firmware.log(3)
    assert not firmware.copies.take()
    assert firmware.kept() == []
    firmware.copies.forget()
    assert firmware.copies.take()
    assert firmware.kept() == [log]


def test_a_guest_that_writes_many_logs_fills_no_memory(firmware: Firmware) -> None:
    firmware.copies = BootLogCopies(GuestMemory(firmware.ram, below_4g_bytes=SIZE), clock=lambda: 0.0)
    for number in range(60):
        firmware.ram[number * 0x1_0000 : number * 0x1_0000 + 4096] = firmware.log(number % 8 + 1).ljust(
            4096, b"\0"
        )
        firmware.copies.take()
    assert len(firmware.kept()) <= 32


def test_large_logs_are_fewer(firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [firmware.log(events) for events in (2, 3, 4)]
    monkeypatch.setattr(boot_log, "_MOST_BYTES", len(logs[1]) + len(logs[2]))
    for events in (2, 3, 4):
        firmware.log(events)
        firmware.copies.take()
    assert firmware.kept() == [logs[2], logs[1]]
