"""Event logs of confidential virtual machines: the CCEL table and its log of runtime registers.

Guests without a TPM (Intel TDX) measure into registers of their trust module. ACPI's CCEL table
tells where the log is (ACPI 6.5, section 5.2.34); the log has the crypto-agile format with a register's index
where a TPM's log has the PCR (UEFI 2.10, section 38.2.2). Integers are little-endian.

Which register stands for which PCRs in TDX: 0 (MRTD) for 0, 1 (RTMR 0) for 1 and 7, 2 (RTMR 1) for
2 to 6, 3 (RTMR 2) for 8 to 15 (UEFI 2.10, section 38.4.1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import MAXIMUM_LOG, EventLog, parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import MeasuredEvent

__all__ = [
    "TDX_REGISTERS",
    "CcelTable",
    "VerifiedCcLog",
    "parse_cc_event_log",
    "parse_ccel_table",
    "replay_cc_event_log",
]

TDX_REGISTERS: Final[Mapping[int, int]] = {
    0: 0,
    1: 1,
    7: 1,
    **dict.fromkeys(range(2, 7), 2),
    **dict.fromkeys(range(8, 16), 3),
}
"""PCR to measurement register, as TDX guests map them."""

_TABLE: Final = struct.Struct("<4sIBB6s8sI4sIBBHQQ")
_BUILD_TIME_REGISTER: Final = 0  # MRTD: measured by the module itself, the log explains none of it
_MAXIMUM_REGISTER: Final = 4
_TYPES: Final = {1: "SEV", 2: "TDX"}


@dataclass(frozen=True, slots=True)
class CcelTable:
    """Unverified: where the guest's firmware says that the log is, in guest-physical octets."""

    kind: str
    log_address: int
    log_size: int


@dataclass(frozen=True, slots=True)
class VerifiedCcLog:
    """Measurements that proven register values contain; made by `replay_cc_event_log` alone.

    `events` have the register's index as their `pcr`; `affiant.tpm.binding.bind_event` tells what
    their digests cover.
    """

    bank: HashAlgorithm
    registers: frozenset[int]
    events: tuple[MeasuredEvent, ...]


def parse_ccel_table(table: bytes) -> CcelTable:
    """Read an ACPI CCEL table.

    Raises MalformedError: another table, a wrong checksum, an unknown kind of machine, a log over 1 MiB.
    """
    if len(table) != _TABLE.size:
        raise MalformedError(f"CCEL table of {len(table)} octets instead of {_TABLE.size}")
    signature, size, _, _, _, _, _, _, _, kind, _, _, log_size, address = _TABLE.unpack(table)
    if signature != b"CCEL" or size != _TABLE.size or sum(table) % 256:
        raise MalformedError("CCEL table: signature, length or checksum is wrong")
    if kind not in _TYPES:
        raise MalformedError(f"CCEL table: kind {kind} of confidential machine is unknown")
    if not 0 < log_size <= MAXIMUM_LOG:
        raise MalformedError(f"CCEL table: log of {log_size} octets")
    return CcelTable(_TYPES[kind], address, log_size)


def parse_cc_event_log(log: bytes) -> EventLog:
    """Read the log area that a CCEL table names, padding included; nothing about it is verified.

    Raises MalformedError as `parse_event_log` does, for the SHA-1 format, and for a register above 4.
    """
    parsed = parse_event_log(log, padded=True)
    if not parsed.crypto_agile:
        raise MalformedError("CC event log: has the SHA-1 format")
    for event in parsed.events:
        if event.type != EventType.NO_ACTION and event.pcr > _MAXIMUM_REGISTER:
            raise MalformedError(f"CC event log: event {event.index} is for register {event.pcr}")
    return parsed


def replay_cc_event_log(
    log: EventLog,
    *,
    verified_registers: Mapping[int, bytes],
    bank: HashAlgorithm = HashAlgorithm.SHA384,
) -> VerifiedCcLog:
    """Replay `log` onto register values by measurement register index (1 is RTMR 0).

    The caller vouches for `verified_registers`: they come out of a report whose signature was
    checked. Register 0 is fixed at build time, no log leads to it; asking for it is a ValueError.

    When it returns, for every register given,

    - extending zeros with the digests of `bank`, in the order of the log, gives the value;
    - the returned events are those digests, none left out, added or reordered.

    Raises ForgedError naming the registers that do not replay, MalformedError for an event without
    a digest of `bank`.
    """
    if not verified_registers or _BUILD_TIME_REGISTER in verified_registers:
        raise ValueError("a CC event log replays onto registers from 1 on, and at least one")
    state = {register: bytes(bank.digest_size) for register in verified_registers}
    measured = []
    for event in log.events:
        if event.pcr not in state or event.type == EventType.NO_ACTION:
            continue
        digest = event.digests.get(int(bank))
        if digest is None:
            raise MalformedError(f"CC event log: event {event.index} has no {bank.title} digest")
        state[event.pcr] = bank.digest(state[event.pcr] + digest)
        measured.append(MeasuredEvent(event.index, event.pcr, digest, event.type, event.data))
    if wrong := sorted(register for register in state if state[register] != verified_registers[register]):
        names = ", ".join(map(str, wrong))
        raise ForgedError(f"CC event log: does not replay to the value of register {names}")
    return VerifiedCcLog(bank, frozenset(state), tuple(measured))
