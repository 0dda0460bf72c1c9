"""The final events table: what was measured after somebody had fetched the event log.

UEFI firmware copies the log for the one who asks; what it measures from then on (ExitBootServices,
often the initial RAM disk) goes into EFI_TCG2_FINAL_EVENTS_TABLE (TCG EFI Protocol Specification,
section 7). Linux appends the table to the log that it shows; a log read out of memory lacks it.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.event_log import MAXIMUM_EVENTS, MAXIMUM_LOG, Event, EventLog, read_events

__all__ = ["append_final_events"]

_HEADER: Final = struct.Struct("<QQ")  # version, number of events
_VERSION: Final = 1


def append_final_events(log: EventLog, table: bytes) -> EventLog:
    """Return `log` with the events of a final events table (`table`: its octets) after it.

    Events that the table repeats from the end of the log are taken once: it holds everything since
    the *first* time that the log was asked for, the log everything until the last. What follows the
    counted events is the unused rest of the table. Nothing is verified here; the replay decides.

    Raises MalformedError: another version, more events than the table holds, a log of the SHA-1
    format (which has no such table).
    """
    if not log.crypto_agile:
        raise MalformedError("final events: the event log has the SHA-1 format, which has no final events")
    if len(table) > MAXIMUM_LOG:
        raise MalformedError(f"final events: table of {len(table)} octets")
    if len(table) < _HEADER.size:
        raise MalformedError("final events: the table ends early")
    version, count = _HEADER.unpack_from(table)
    if version != _VERSION:
        raise MalformedError(f"final events: version {version} is unknown")
    if count > MAXIMUM_EVENTS - len(log.events):
        raise MalformedError(f"final events: {count} events are too many")
    final = read_events(table, _HEADER.size, log.algorithms, count=count)
    new = final[_overlap(log.events, final) :]
    start = len(log.events)
    return replace(
        log, events=log.events + tuple(replace(event, index=start + i) for i, event in enumerate(new))
    )


def _overlap(events: tuple[Event, ...], final: tuple[Event, ...]) -> int:
    """How many events at the start of `final` are those at the end of `events`."""
    known = [_content(event) for event in events[-len(final) :]] if final else []
    fresh = [_content(event) for event in final]
    return next((size for size in range(len(known), 0, -1) if known[-size:] == fresh[:size]), 0)


def _content(event: Event) -> tuple[int, int, tuple[tuple[int, bytes], ...], bytes]:
    return event.pcr, event.type, tuple(sorted(event.digests.items())), event.data
