"""Finding the TCG event log: in Linux's copy, in the final events table, anywhere in RAM."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.guest import find_event_logs
from affiant.kernel.machine.event_log import LONGEST_LOG, kernel_event_log, scan_for_event_logs
from affiant.kernel.machine.memory import GuestMemory
from tests.unit.kernel.synthetic_guest import SYMBOLS, SyntheticGuest

RAM = 8 << 20
COPY, FINAL, CHIP = 0x10_0009, 0x20_0000, 0x30_0020
SHA1, SHA256 = 0x4, 0xB


def spec_event(*algorithms: tuple[int, int]) -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms))
    body += b"".join(struct.pack("<HH", *algorithm) for algorithm in algorithms) + b"\0"
    return struct.pack("<II20sI", 0, 3, bytes(20), len(body)) + body


def event(pcr: int, data: bytes, *algorithms: tuple[int, int], kind: int = 13) -> bytes:
    digests = b"".join(struct.pack("<H", number) + bytes([pcr]) * size for number, size in algorithms)
    return struct.pack("<III", pcr, kind, len(algorithms)) + digests + struct.pack("<I", len(data)) + data


BANKS = ((SHA1, 20), (SHA256, 32))
EVENTS = [event(number, b"data %d" % number, *BANKS) for number in range(8)]
LOG = spec_event(*BANKS) + b"".join(EVENTS[:6])


def memory(**places: tuple[int, bytes]) -> GuestMemory:
    ram = bytearray(RAM)
    for address, data in places.values():
        ram[address : address + len(data)] = data
    return GuestMemory(ram, below_4g_bytes=RAM)


def linux_copy(log: bytes, *, preboot: int = 0, size: int | None = None) -> tuple[int, bytes]:
    return COPY - 9, struct.pack("<IIB", len(log) if size is None else size, preboot, 2) + log


def final_table(*events: bytes) -> tuple[int, bytes]:
    return FINAL, struct.pack("<QQ", 1, len(events)) + b"".join(events)


def test_the_stubs_copy_is_completed_by_the_final_events() -> None:
    """ExitBootServices is measured after the copy: only the second table has those events."""
    ram = memory(copy=linux_copy(LOG), final=final_table(*EVENTS[6:]))
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=FINAL)
    assert found is not None
    assert (found.data, found.events) == (LOG + EVENTS[6] + EVENTS[7], 9)


def test_final_events_that_the_copy_already_holds_are_not_taken_twice() -> None:
    early = len(EVENTS[4]) + len(EVENTS[5])
    ram = memory(copy=linux_copy(LOG, preboot=early), final=final_table(*EVENTS[4:]))
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=FINAL)
    assert found is not None
    assert (found.data, found.events) == (LOG + EVENTS[6] + EVENTS[7], 9)


def test_a_preboot_size_beyond_the_table_adds_nothing() -> None:
    ram = memory(copy=linux_copy(LOG, preboot=1 << 20), final=final_table(*EVENTS[6:]))
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=FINAL)
    assert found is not None
    assert found.data == LOG


@pytest.mark.parametrize("size", range(40))
def test_a_first_event_of_any_size_is_no_log_and_no_end_of_the_look(size: int) -> None:
    """A signature and nothing behind it may stand anywhere in RAM."""
    body = (b"Spec ID Event03\0" + struct.pack("<III", 0, 0, 2)).ljust(40, b"\0")[:size]
    found = struct.pack("<II20sI", 0, 3, bytes(20), size) + body
    ram = memory(first=(COPY, found), copy=linux_copy(found), last=(RAM - len(found), found))
    assert scan_for_event_logs(ram) == ()
    assert kernel_event_log(ram, log_address=COPY - 9, final_address=FINAL) is None


@pytest.mark.parametrize("none", [0, (1 << 64) - 1, RAM + 1, 1 << 63])
def test_tables_that_are_not_there(none: int) -> None:
    ram = memory(copy=linux_copy(LOG))
    assert kernel_event_log(ram, log_address=none, final_address=none) is None
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=none)
    assert found is not None
    assert found.data == LOG


def test_a_claimed_size_is_cut_at_the_last_whole_event() -> None:
    ram = memory(copy=linux_copy(LOG, size=0xFFFF_FFFF))
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=0)
    assert found is not None
    assert found.data == LOG


def test_scanning_finds_logs_and_orders_them_by_events() -> None:
    ram = memory(copy=linux_copy(LOG), chip=(CHIP, LOG + EVENTS[6]), again=(CHIP + 0x1_0000, LOG))
    found = scan_for_event_logs(ram)
    assert [(log.data, log.events, log.address) for log in found] == [
        (LOG + EVENTS[6], 8, CHIP),
        (LOG, 7, COPY),
    ]


def test_the_signature_alone_is_no_log() -> None:
    ram = memory(
        text=(0x1000, b"Spec ID Event03\0"),
        start=(0, b"Spec ID Event03\0"),
        end=(RAM - 16, b"Spec ID Event03\0"),
    )
    assert scan_for_event_logs(ram) == ()


@pytest.mark.parametrize(
    "broken",
    [
        spec_event(),
        spec_event((SHA256, 0)),
        spec_event((SHA256, 65)),
        spec_event((SHA256, 32), (SHA256, 32)),
        spec_event(*((number, 32) for number in range(17))),
        spec_event(*BANKS)[:40],
        b"\1" + spec_event(*BANKS)[1:],
    ],
)
def test_a_broken_first_event_is_no_log(broken: bytes) -> None:
    assert scan_for_event_logs(memory(log=(0x1000, broken + EVENTS[0]))) == ()


def test_an_event_with_another_number_of_digests_ends_the_log() -> None:
    ram = memory(log=(0x1000, LOG + event(1, b"", (SHA256, 32)) + EVENTS[6]))
    assert scan_for_event_logs(ram)[0].data == LOG


def test_a_log_is_bounded() -> None:
    large = spec_event(*BANKS) + event(1, bytes(400_000), *BANKS) * 4
    (found,) = scan_for_event_logs(memory(log=(0x10_0000, large)))
    assert found.events == 3
    assert len(found.data) <= LONGEST_LOG


def test_places_that_look_like_logs_are_bounded() -> None:
    ram = bytearray(RAM)
    for index in range(1000):
        ram[index * 512 : index * 512 + 16] = b"Spec ID Event03\0"
    ram[RAM - 0x1_0000 : RAM - 0x1_0000 + len(LOG)] = LOG
    assert scan_for_event_logs(GuestMemory(ram, below_4g_bytes=RAM)) == ()


def test_the_kernels_own_pointer_comes_first() -> None:
    guest = SyntheticGuest()
    for address, data in (linux_copy(LOG), final_table(*EVENTS[6:])):
        guest.poke(address + 0x160_0000, data)
    guest.poke(0x1C0_0000, LOG + EVENTS[6] + EVENTS[7] + EVENTS[0])
    guest.word(guest.physical(SYMBOLS["efi"]), COPY - 9 + 0x160_0000)
    guest.word(guest.physical(SYMBOLS["efi"]) + 8, FINAL + 0x160_0000)
    found = guest.open().event_logs()
    assert [(log.source, log.events) for log in found] == [("efi.tpm_log", 9), ("scan", 10), ("scan", 7)]
    assert [log.source for log in find_event_logs(guest.memory)] == ["scan", "scan"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_logs_are_cut_or_refused(data: st.DataObject) -> None:
    raw = bytearray(struct.pack("<IIB", len(LOG), 0, 2) + LOG)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    ram = memory(copy=(COPY - 9, bytes(raw)), final=final_table(*EVENTS[6:]))
    found = kernel_event_log(ram, log_address=COPY - 9, final_address=FINAL)
    assert found is None or 0 < len(found.data) <= LONGEST_LOG
    for log in scan_for_event_logs(ram):
        assert 0 < len(log.data) <= LONGEST_LOG
