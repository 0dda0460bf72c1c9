"""systemd's log of the measurements that it made in user space: JSON records after RFC 7464.

systemd writes `/run/log/systemd/tpm2-measure.log` close to the TCG Canonical Event Log's JSON form
(CEL 1.1, section 5.2): each record begins with a record separator (0x1E) and ends with a line feed,
and CEL's record number is missing, so records are counted here. Records of NV indexes that act as
PCRs are told apart: no quote of PCRs covers them.

A log needs no trust: appended to the firmware's log, it must replay onto the same quote.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import MAXIMUM_EVENTS, PCR_COUNT, Event, EventLog

__all__ = [
    "USERSPACE_EVENT",
    "UserspaceLog",
    "UserspaceRecord",
    "append_userspace_log",
    "parse_userspace_log",
]

USERSPACE_EVENT: Final = 0x5359_5344
"""The event type under which records stand in a joined log; no specification assigns it."""

_MAXIMUM_LOG: Final = 1 << 22
_MAXIMUM_RECORD: Final = 1 << 16
_SEPARATOR: Final = b"\x1e"
_LINE_FEED: Final = b"\n"
_MAXIMUM_TEXT: Final = 1 << 14
_HASHES: Final = {algorithm.title: algorithm for algorithm in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class UserspaceRecord:
    """Unverified: one record, number `index` counted from 0.

    `pcr` is None for a measurement into an NV index. `text` is what systemd says it measured (for a
    volume key it measured something derived from the key instead), `kind` its event type.
    """

    index: int
    pcr: int | None
    digests: dict[int, bytes]
    kind: str
    text: str
    boot: str


@dataclass(frozen=True, slots=True)
class UserspaceLog:
    """Unverified: the records; `truncated` when the last one was still being written."""

    records: tuple[UserspaceRecord, ...]
    truncated: bool


def parse_userspace_log(log: bytes) -> UserspaceLog:
    """Read a whole log; nothing about it is verified.

    RFC 7464, section 2.3: a last record without its line feed is incomplete, and is left out.
    Raises MalformedError: over 4 MiB or 16384 records, a record over 64 KiB, a record that is not
    one JSON object with PCR and digests, a name twice in an object, a record number out of order.
    """
    if len(log) > _MAXIMUM_LOG:
        raise MalformedError(f"userspace log of {len(log)} octets is longer than {_MAXIMUM_LOG}")
    if log and not log.startswith(_SEPARATOR):
        raise MalformedError("userspace log: does not begin with a record separator")
    texts = log.split(_SEPARATOR)[1:]
    truncated = bool(texts) and not texts[-1].endswith(_LINE_FEED)
    if truncated:
        texts.pop()
    if len(texts) > MAXIMUM_EVENTS:
        raise MalformedError(f"userspace log of more than {MAXIMUM_EVENTS} records")
    return UserspaceLog(tuple(_record(index, text) for index, text in enumerate(texts)), truncated)


def append_userspace_log(log: EventLog, userspace: UserspaceLog) -> EventLog:
    """Return the firmware's `log` with the PCR records of `userspace` after it, for one replay.

    In the joined log a record is an event of type `USERSPACE_EVENT` whose data is the record's text:
    where systemd measured the text itself, binding proves it. Nothing is verified here.
    """
    start = len(log.events)
    events = [
        Event(0, record.pcr, USERSPACE_EVENT, record.digests, record.text.encode())
        for record in userspace.records
        if record.pcr is not None
    ]
    if start + len(events) > MAXIMUM_EVENTS:
        raise MalformedError(f"event log of more than {MAXIMUM_EVENTS} events")
    return replace(
        log,
        events=log.events + tuple(replace(event, index=start + i) for i, event in enumerate(events)),
        truncated=log.truncated or userspace.truncated,
    )


def _record(index: int, text: bytes) -> UserspaceRecord:
    if len(text) > _MAXIMUM_RECORD:
        raise MalformedError(f"userspace log: record {index} of {len(text)} octets")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_refuse)
    except RecursionError:
        raise MalformedError(f"userspace log: record {index} is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"userspace log: record {index} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MalformedError(f"userspace log: record {index} is not an object")
    number = value.get("recnum", index)
    if number != index:
        raise MalformedError(f"userspace log: record {index} is numbered {number!r}")
    content = value.get("content")
    content = content if isinstance(content, dict) else {}
    return UserspaceRecord(
        index,
        _pcr(index, value),
        _digests(index, value.get("digests")),
        _text(index, content.get("eventType", "")),
        _text(index, content.get("string", "")),
        _text(index, content.get("bootId", "")),
    )


def _pcr(index: int, value: dict[str, Any]) -> int | None:
    pcr = value.get("pcr")
    if pcr is None and isinstance(value.get("nv_index"), int):
        return None
    # JSON's true is an int to Python.
    if not isinstance(pcr, int) or isinstance(pcr, bool) or not 0 <= pcr < PCR_COUNT:
        raise MalformedError(f"userspace log: record {index} is for PCR {pcr!r}")
    return pcr


def _digests(index: int, listed: object) -> dict[int, bytes]:
    if not isinstance(listed, list) or not 0 < len(listed) <= len(_HASHES):
        raise MalformedError(f"userspace log: record {index} has no list of digests")
    digests: dict[int, bytes] = {}
    for entry in listed:
        name = entry.get("hashAlg") if isinstance(entry, dict) else None
        algorithm = _HASHES.get(name) if isinstance(name, str) else None
        text = entry.get("digest") if isinstance(entry, dict) else None
        if algorithm is None or not isinstance(text, str) or int(algorithm) in digests:
            raise MalformedError(f"userspace log: record {index} has a digest of {name!r}, or has it twice")
        digests[int(algorithm)] = _digest(index, text, algorithm)
    return digests


def _digest(index: int, text: str, algorithm: HashAlgorithm) -> bytes:
    try:
        # `fromhex` skips spaces, so the length of the text decides as well.
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != algorithm.digest_size or len(text) != 2 * algorithm.digest_size:
        raise MalformedError(f"userspace log: record {index} has a malformed {algorithm.title} digest")
    return digest


def _text(index: int, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAXIMUM_TEXT or not _encodable(value):
        raise MalformedError(f"userspace log: record {index} holds something else where text belongs")
    return value


def _encodable(text: str) -> bool:
    """JSON can spell half a surrogate pair, which no UTF-8 text contains."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return names


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")
