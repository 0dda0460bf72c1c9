"""CCEL: logs of confidential machines, which have runtime registers instead of PCRs."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import bind_event
from affiant.tpm.ccel import (
    TDX_REGISTERS,
    parse_cc_event_log,
    parse_ccel_table,
    replay_cc_event_log,
)
from affiant.tpm.efi_variable import parse_variable
from affiant.tpm.event_types import EventType
from tests.unit.tpm.firmware import Firmware

SHA384 = HashAlgorithm.SHA384


def trust_domain() -> Firmware:
    """A healthy boot as a TDX firmware logs it: registers in the place of PCRs, SHA-384 only."""
    firmware = Firmware.healthy()
    firmware.banks = (SHA384,)
    for position, entry in enumerate(firmware.entries):
        register = TDX_REGISTERS.get(entry.pcr, 3)
        firmware.entries[position] = type(entry)(register, entry.type, entry.data, entry.measured)
    # What the module measures at build time is no event.
    firmware.entries = [entry for entry in firmware.entries if entry.pcr]
    return firmware


FIRMWARE = trust_domain()
LOG = FIRMWARE.log() + b"\xff" * 100
REGISTERS = {register: value for register, value in FIRMWARE.pcrs(SHA384).items() if register in (1, 2, 3)}


def ccel(*, signature: bytes = b"CCEL", kind: int = 2, size: int = 0x10000, checksum: int = 0) -> bytes:
    fields = (b"AFFIAN", b"AFFIANT ", 1, b"TEST", 1, kind, 0, 0, size, 0x7F000000)
    table = struct.pack("<4sIBB6s8sI4sIBBHQQ", signature, 56, 1, 0, *fields)
    return table[:9] + bytes([(checksum - sum(table)) % 256]) + table[10:]


def test_the_table_tells_where_the_log_is() -> None:
    table = parse_ccel_table(ccel())
    assert (table.kind, table.log_address, table.log_size) == ("TDX", 0x7F000000, 0x10000)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"CCEL", "octets"),
        (ccel(signature=b"TPM2"), "signature"),
        (ccel(checksum=1), "checksum"),
        (ccel(kind=9), "kind 9"),
        (ccel(size=1 << 30), "log of"),
        (ccel(size=0), "log of 0"),
    ],
)
def test_malformed_tables_are_refused(table: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        parse_ccel_table(table)


def test_a_log_replays_onto_its_registers() -> None:
    verified = replay_cc_event_log(parse_cc_event_log(LOG), verified_registers=REGISTERS)
    assert len(verified.events) == len(FIRMWARE.entries)
    bound = [bind_event(event, bank=SHA384) for event in verified.events if event.pcr == 1]
    variables = [one.covered for one in bound if one.event.untrusted_type == 0x80000001]
    assert variables[0] is not None
    assert (parse_variable(variables[0]).name, parse_variable(variables[0]).content) == (
        "SecureBoot",
        b"\x01",
    )


def bent(change: str) -> bytes:
    firmware = trust_domain()
    entries = firmware.entries
    if change == "removed":
        entries.pop()
    elif change == "appended":
        entries.append(entries[-1])
    elif change == "retagged":
        entries[0] = type(entries[0])(3, entries[0].type, entries[0].data, entries[0].measured)
    elif change == "reordered":
        entries[0], entries[1] = entries[1], entries[0]
    return firmware.log()


@pytest.mark.parametrize("change", ["removed", "appended", "retagged", "reordered"])
def test_a_bent_log_does_not_replay(change: str) -> None:
    with pytest.raises(ForgedError, match="register"):
        replay_cc_event_log(parse_cc_event_log(bent(change)), verified_registers=REGISTERS)


def test_a_log_without_the_bank_is_refused() -> None:
    firmware = trust_domain()
    firmware.banks = (HashAlgorithm.SHA256,)
    with pytest.raises(MalformedError, match="no sha384 digest"):
        replay_cc_event_log(parse_cc_event_log(firmware.log()), verified_registers=REGISTERS)


def test_a_register_above_those_that_exist_is_refused() -> None:
    firmware = trust_domain()
    firmware.add(5, EventType.IPL, b"what")
    with pytest.raises(MalformedError, match="register 5"):
        parse_cc_event_log(firmware.log())


def test_a_sha1_log_is_refused() -> None:
    with pytest.raises(MalformedError, match="SHA-1"):
        parse_cc_event_log(FIRMWARE.legacy_log())


@pytest.mark.parametrize("registers", [{}, {0: bytes(48)}])
def test_nothing_replays_onto_nothing(registers: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="registers from 1"):
        replay_cc_event_log(parse_cc_event_log(LOG), verified_registers=registers)


@given(st.binary(max_size=200))
def test_no_octets_do_anything_but_be_refused(octets: bytes) -> None:
    for log in (octets, FIRMWARE.head() + octets):
        with contextlib.suppress(EvidenceError):
            replay_cc_event_log(parse_cc_event_log(log), verified_registers=REGISTERS)
    with contextlib.suppress(EvidenceError):
        parse_ccel_table(octets[:56].ljust(56, b"\0"))
