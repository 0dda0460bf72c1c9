"""Partition tables in PCR 5."""

from __future__ import annotations

import contextlib
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.gpt import parse_partition_table, read_partition_tables
from affiant.tpm.measurements import Measurements, bind_measurements
from affiant.tpm.replay import replay_event_log
from tests.samples import sample
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware

SHA256 = HashAlgorithm.SHA256
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
DISK, PARTITION = UUID(int=1), UUID(int=2)


def gpt(names: list[str], *, signature: bytes = b"EFI PART", entry_size: int = 128, count: int = -1) -> bytes:
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        signature,
        0x10000,
        92,
        0,
        0,
        1,
        99,
        34,
        90,
        DISK.bytes_le,
        2,
        128,
        entry_size,
        0,
    )
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", ESP.bytes_le, PARTITION.bytes_le, 34, 40, 5, name.encode("utf-16-le"))
        for name in names
    )
    return head + struct.pack("<Q", len(names) if count < 0 else count) + entries


def measured(data: bytes, covered: bytes | None = None) -> Measurements:
    firmware = Firmware()
    firmware.add(5, EventType.EFI_GPT_EVENT, data, covered)
    quote = Attester().quote(firmware.pcrs())
    return bind_measurements(replay_event_log(parse_event_log(firmware.log()), quote, required_pcrs=[5]))


def test_a_measured_table_is_read() -> None:
    (table,) = read_partition_tables(measured(gpt(["EFI System", "root"])))
    assert (table.disk, table.first_block, table.last_block) == (DISK, 34, 90)
    assert [partition.name for partition in table.partitions] == ["EFI System", "root"]
    first = table.partitions[0]
    assert (first.kind, first.identifier) == (ESP, PARTITION)
    assert (first.first_block, first.last_block, first.attributes) == (34, 40, 5)


def test_a_table_that_was_not_measured_is_not_read() -> None:
    assert read_partition_tables(measured(gpt(["root"]), covered=b"another table")) == ()


def test_measured_octets_that_are_no_table_are_passed_over() -> None:
    assert read_partition_tables(measured(b"EFI PART, or not")) == ()


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"EFI PART", "ends early"),
        (gpt([], signature=b"EFI PORT"), "does not begin"),
        (gpt(["a"]) + b"\0", "fill"),
        (gpt(["a"], count=2), "fill"),
        (gpt([], count=1 << 40), "entries"),
        (gpt([], entry_size=1), "entries of 1"),
    ],
)
def test_malformed_tables_are_refused(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        parse_partition_table(octets)


@given(st.binary(max_size=400))
def test_no_octets_do_anything_but_be_refused(octets: bytes) -> None:
    for candidate in (octets, gpt(["x"])[: len(octets)] + octets, gpt([], count=1) + octets):
        with contextlib.suppress(EvidenceError):
            parse_partition_table(candidate)


@pytest.mark.parametrize(
    ("name", "partitions"),
    [("keylime_binary_bios_measurements-secureboot.bin", 3), ("ubuntu-2404-amd-sevsnp.bin", 4)],
)
def test_real_tables_are_read(name: str, partitions: int) -> None:
    events = parse_event_log(sample(f"linux/{name}")).events
    (event,) = [event for event in events if event.type == EventType.EFI_GPT_EVENT]
    assert event.digests[SHA256] == SHA256.digest(event.data)
    table = parse_partition_table(event.data)
    assert len(table.partitions) == partitions
    assert ESP in [partition.kind for partition in table.partitions]
