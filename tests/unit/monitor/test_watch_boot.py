"""The watch finds the event log that replays onto a quote, also when memory does not hold it any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from affiant.appraisal.policy import REQUIRED_PCRS
from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.kernel.machine.memory import GuestMemory
from affiant.model.errors import UnavailableError
from affiant.monitor.watch import KernelWatch
from tests.simulator import Machine, make_world

SIZE, PLACE = 4 << 20, 0x10_0000
BINDING = b"\x07" * 32
RULE = '''"""Text is intact."""
NAME = "nothing"
VERSION = 1
SENTENCE = "Nothing is looked at."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "enforce"
FACTS = ["kernel_text"]
def check(facts):
    return []
'''


class NoProcessors:
    """A launcher that cannot tell the registers: no kernel becomes known."""

    def ask(self, _: object) -> object:
        raise UnavailableError("not now")


class Guest:
    def __init__(self, folder: Path, engine: Engine) -> None:
        self.machine: Machine = make_world(folder / "service").machine()
        assert self.machine.log is not None
        self.log = self.machine.log.encode()
        self.ram = bytearray(SIZE)
        self.watch = KernelWatch(
            memory=GuestMemory(self.ram, below_4g_bytes=SIZE),
            launcher=NoProcessors(),  # type: ignore[arg-type]
            references=folder,
            engine=engine,
        )
        self.write(self.log)

    def write(self, data: bytes) -> None:
        self.ram[:] = bytes(SIZE)
        self.ram[PLACE : PLACE + len(data)] = data

    def found(self) -> bytes | None:
        assert self.machine.tpm is not None
        quote = self.machine.tpm.quote(BINDING, REQUIRED_PCRS)
        return self.watch.boot_evidence(quote, binding=BINDING).event_log


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(make_bundle("test", 1, {"nothing": RULE})) as engine:
        yield engine


@pytest.fixture
def guest(tmp_path: Path, engine: Engine) -> Guest:
    return Guest(tmp_path, engine)


def test_a_log_in_memory_is_found(guest: Guest) -> None:
    assert guest.found() == guest.log


def test_a_log_that_was_there_at_an_earlier_look_is_found(guest: Guest) -> None:
    guest.watch.look()
    guest.write(b"")
    assert guest.found() == guest.log


def test_a_log_that_was_proven_once_cannot_be_taken_away(guest: Guest) -> None:
    assert guest.found() == guest.log
    guest.write(b"\xff" * 4096)
    assert guest.found() == guest.log


def test_a_log_that_nobody_looked_at_in_time_is_lost(guest: Guest) -> None:
    guest.write(b"")
    assert guest.found() is None


def test_the_log_of_an_earlier_boot_is_not_shown_for_a_later_one(guest: Guest) -> None:
    """It is forgotten; and if it were not, it would not replay."""
    guest.watch.look()
    guest.watch.forget_boot(counted=True)
    guest.write(b"")
    assert guest.found() is None


def test_a_log_that_the_guest_rewrote_is_left_out(guest: Guest) -> None:
    bent = bytearray(guest.log)
    bent[200] ^= 1
    guest.write(bytes(bent))
    assert guest.found() is None
