"""Reading a TCG event log: the crypto-agile format, and the SHA-1 format before it.

TCG PC Client Platform Firmware Profile, sections 10.2.1 (TCG_PCR_EVENT), 10.2.2 (TCG_PCR_EVENT2)
and 10.4.5.1 (Specification ID event). Everything in a log is little-endian. A log needs no trust:
`affiant.tpm.replay` accepts only what leads to quoted PCR values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_types import EventType

__all__ = [
    "MAXIMUM_EVENTS",
    "MAXIMUM_LOG",
    "PCR_COUNT",
    "Event",
    "EventLog",
    "parse_event_log",
    "read_events",
]

MAXIMUM_LOG: Final = 1 << 20
"""Octets of the longest log that is read."""
MAXIMUM_EVENTS: Final = 16384
"""Events of the longest log that is read."""

PCR_COUNT: Final = 24
"""PCRs of a PC Client TPM."""
_MAXIMUM_ALGORITHMS: Final = 16
_MAXIMUM_DIGEST: Final = 64
_SHA1_SIZE: Final = 20
_AGILE_SIGNATURE: Final = b"Spec ID Event03\0"
_EVENT: Final = struct.Struct("<II20sI")  # TCG_PCR_EVENT: index, type, SHA-1, size
_EVENT2: Final = struct.Struct("<III")  # TCG_PCR_EVENT2: index, type, number of digests
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_SPEC_ID: Final = struct.Struct("<16sIBBBBI")
_ALGORITHM: Final = struct.Struct("<HH")
_FILLERS: Final = (b"\0", b"\xff")


@dataclass(frozen=True, slots=True)
class Event:
    """Unverified: one entry of a log, at position `index`, counted from 0.

    `digests` maps TPM_ALG_ID to digest, also for algorithms unknown here.
    """

    index: int
    pcr: int
    type: int
    digests: dict[int, bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """Unverified: a decoded log.

    `algorithms` maps TPM_ALG_ID to digest size as the log's head declares them. `truncated` tells
    that a log from a fixed-size buffer ends inside an event: what it lost is missed by the replay.
    """

    events: tuple[Event, ...]
    algorithms: dict[int, int]
    crypto_agile: bool
    truncated: bool


def parse_event_log(log: bytes, *, padded: bool = False) -> EventLog:
    """Read a whole log; nothing about it is verified.

    With `padded` the log was read from a buffer of fixed size: it ends where only zeros or only
    ones follow, and an event cut off by the buffer's end is left out (`truncated`).

    Raises MalformedError: over 1 MiB or 16384 events, an event that ends early, a digest that the
    head does not declare or that comes twice, a PCR that does not exist.
    """
    if len(log) > MAXIMUM_LOG:
        raise MalformedError(f"event log of {len(log)} octets is longer than {MAXIMUM_LOG}")
    if not log:
        raise MalformedError("event log: it is empty", hint="a machine without a measured boot has no log")
    try:
        first, offset = _read_event(log, 0, 0)
    except _CutOffError as error:
        # What is no log at all says, read as one, that its first event goes on for megabytes.
        raise MalformedError(str(error), hint="it is cut off there, or no TCG event log") from None
    if first.type == EventType.NO_ACTION and first.data.startswith(_AGILE_SIGNATURE):
        algorithms = _read_spec_id(first.data)
        events = [Event(0, first.pcr, first.type, {}, first.data)]
        agile = True
    else:
        algorithms = {int(HashAlgorithm.SHA1): _SHA1_SIZE}
        events, offset, agile = [], 0, False
    truncated = False
    size = len(log)
    while offset < size:
        if padded and _is_filler(log, offset):
            break
        if len(events) >= MAXIMUM_EVENTS:
            raise MalformedError(f"event log of more than {MAXIMUM_EVENTS} events")
        try:
            if agile:
                event, offset = _read_event2(log, offset, len(events), algorithms)
            else:
                event, offset = _read_event(log, offset, len(events))
        except _CutOffError:
            if not padded:
                raise
            truncated = True
            break
        events.append(event)
    return EventLog(tuple(events), algorithms, agile, truncated)


def read_events(
    octets: bytes, offset: int, algorithms: Mapping[int, int], *, count: int
) -> tuple[Event, ...]:
    """Read `count` events of the crypto-agile format from `offset` on; nothing about them is verified.

    `algorithms` are those that the head of their log declares. Raises MalformedError as
    `parse_event_log` does.
    """
    if count > MAXIMUM_EVENTS:
        raise MalformedError(f"event log of more than {MAXIMUM_EVENTS} events")
    events = []
    for index in range(count):
        event, offset = _read_event2(octets, offset, index, algorithms)
        events.append(event)
    return tuple(events)


class _CutOffError(MalformedError):
    """The log ends inside an event."""


def _cut_off(index: int, offset: int) -> _CutOffError:
    return _CutOffError(
        f"event log ends inside event {index} (at offset {offset})",
        hint="the log was truncated when it was read or stored; read it again",
    )


def _check_pcr(index: int, pcr: int, event_type: int) -> None:
    # EV_NO_ACTION measures nothing; Windows writes some for the PCR index 0xffffffff.
    if pcr >= PCR_COUNT and event_type != EventType.NO_ACTION:
        raise MalformedError(f"event log: event {index} is for PCR {pcr}")


def _read_event(log: bytes, offset: int, index: int) -> tuple[Event, int]:
    start = offset + _EVENT.size
    if start > len(log):
        raise _cut_off(index, offset)
    pcr, event_type, digest, size = _EVENT.unpack_from(log, offset)
    if size > len(log) - start:
        raise _cut_off(index, offset)
    _check_pcr(index, pcr, event_type)
    return Event(index, pcr, event_type, {0x0004: digest}, log[start : start + size]), start + size


def _read_event2(log: bytes, offset: int, index: int, algorithms: Mapping[int, int]) -> tuple[Event, int]:
    cursor = offset + _EVENT2.size
    end = len(log)
    if cursor > end:
        raise _cut_off(index, offset)
    pcr, event_type, count = _EVENT2.unpack_from(log, offset)
    if pcr >= PCR_COUNT:
        _check_pcr(index, pcr, event_type)
    if count > len(algorithms):
        raise MalformedError(f"event log: event {index} has {count} digests, {len(algorithms)} are declared")
    digests: dict[int, bytes] = {}
    read = _U16.unpack_from
    for _ in range(count):
        if cursor + 2 > end:
            raise _cut_off(index, offset)
        (identifier,) = read(log, cursor)
        size = algorithms.get(identifier)
        if size is None or identifier in digests:
            raise MalformedError(
                f"event log: event {index} has a digest of algorithm 0x{identifier:04x} "
                + ("that the log's head does not declare" if size is None else "twice")
            )
        cursor += 2 + size
        if cursor > end:
            raise _cut_off(index, offset)
        digests[identifier] = log[cursor - size : cursor]
    if cursor + 4 > end:
        raise _cut_off(index, offset)
    data_size: int = _U32.unpack_from(log, cursor)[0]
    cursor += 4
    if data_size > end - cursor:
        raise _cut_off(index, offset)
    return Event(index, pcr, event_type, digests, log[cursor : cursor + data_size]), cursor + data_size


def _read_spec_id(data: bytes) -> dict[int, int]:
    """The digest algorithms that TCG_EfiSpecIDEvent declares."""
    if len(data) < _SPEC_ID.size:
        raise MalformedError("event log: the Specification ID event ends early")
    count: int = _SPEC_ID.unpack_from(data)[-1]
    if not 0 < count <= _MAXIMUM_ALGORITHMS:
        raise MalformedError(f"event log: the Specification ID event declares {count} algorithms")
    end = _SPEC_ID.size + count * _ALGORITHM.size
    if len(data) <= end or len(data) != end + 1 + data[end]:
        raise MalformedError("event log: the Specification ID event has not the size it declares")
    algorithms: dict[int, int] = {}
    for position in range(count):
        identifier, size = _ALGORITHM.unpack_from(data, _SPEC_ID.size + position * _ALGORITHM.size)
        known = _KNOWN_SIZES.get(identifier, size)
        if identifier in algorithms or size != known or not 0 < size <= _MAXIMUM_DIGEST:
            raise MalformedError(f"event log: algorithm 0x{identifier:04x} declared with {size} octets")
        algorithms[identifier] = size
    return algorithms


_KNOWN_SIZES: Final = {int(algorithm): algorithm.digest_size for algorithm in HashAlgorithm}


def _is_filler(log: bytes, offset: int) -> bool:
    """Whether nothing but one filling octet follows."""
    filler = log[offset : offset + 1]
    return filler in _FILLERS and log.count(filler, offset) == len(log) - offset
