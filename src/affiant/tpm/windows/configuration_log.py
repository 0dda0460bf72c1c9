"""The Windows part of a log: which of its events a quote proves, and up to where.

Windows closes PCR 12, 13 and 14 with a separator of the four octets `WBCL` before it starts what
others wrote; whoever runs later may extend the same PCRs, so nothing after the separator counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import BoundEvent
from affiant.tpm.event_log import EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements
from affiant.tpm.windows.bitlocker import BITLOCKER_PCR
from affiant.tpm.windows.sipa import SipaEvent, read_sipa_events

__all__ = [
    "CONFIGURATION_PCRS",
    "LAUNCH_PCRS",
    "ConfigurationLog",
    "Found",
    "is_windows_log",
    "read_configuration_log",
    "read_untrusted_configuration_log",
    "windows_bank",
]

CONFIGURATION_PCRS: Final = (12, 13, 14)
"""PCR 12: what changes from boot to boot; PCR 13: modules and policies; PCR 14: who signed them."""
LAUNCH_PCRS: Final = (17, 18, 19, 20, 21, 22)
"""What a dynamic launch, and what it launched, extends."""

_PCRS: Final = (*CONFIGURATION_PCRS, *LAUNCH_PCRS)
_SEPARATOR: Final = b"WBCL"


@dataclass(frozen=True, slots=True)
class Found:
    """One Windows event, and the event of the log that holds it: PCR and position, counted from 0."""

    event: SipaEvent
    pcr: int
    index: int

    @property
    def source(self) -> str:
        """Where it is, for people."""
        return f"PCR {self.pcr}, event {self.index}: {self.event.name}"


@dataclass(frozen=True, slots=True)
class ConfigurationLog:
    """Windows events up to each PCR's separator, nested ones after what holds them.

    `complete`: PCRs whose events are all here, by proof: replayed, closed by the separator, and every
    event before it bound to its digest and decoded. `unexplained` counts, for each PCR, events before
    the separator whose data the digest does not cover or which are no Windows events. `access` is what
    was measured into PCR 11, each None where the log lacks it; PCR 11 is `complete` when it was replayed.
    """

    by_identifier: Mapping[int, tuple[Found, ...]]
    complete: frozenset[int]
    unexplained: Mapping[int, int]
    access: tuple[bytes | None, ...]

    def find(self, identifier: int, pcrs: Collection[int]) -> tuple[Found, ...]:
        """All events of that identifier in these PCRs, PCR by PCR, each in measured order."""
        return tuple(found for found in self.by_identifier.get(identifier, ()) if found.pcr in pcrs)

    @property
    def is_proven(self) -> bool:
        """Whether no event here is of a PCR that is not complete."""
        return all(found.pcr in self.complete for events in self.by_identifier.values() for found in events)

    def proven(self) -> ConfigurationLog:
        """The same log without the PCRs that are not complete."""
        kept = {
            identifier: tuple(found for found in events if found.pcr in self.complete)
            for identifier, events in self.by_identifier.items()
        }
        access = self.access if BITLOCKER_PCR in self.complete else ()
        return ConfigurationLog(MappingProxyType(kept), self.complete, self.unexplained, access)


def read_configuration_log(measurements: Measurements) -> ConfigurationLog:
    """Read the Windows events that `measurements` prove.

    When it returns,

    - every event is data that a digest of its PCR covers, measured before the PCR's separator;
    - a separator is recognised by its digest, whatever the log calls it;
    - a PCR that was not replayed, is not closed, or holds anything unexplained is not `complete`.
    """
    separator = measurements.bank.digest(_SEPARATOR)
    found: dict[int, list[Found]] = {}
    complete: set[int] = set()
    unexplained: dict[int, int] = {}
    for pcr in _PCRS:
        closed, lost = False, 0
        for bound in measurements.of(pcr):
            if bound.digest == separator:
                closed = True
                break
            decoded = _decode(bound)
            lost += decoded is None
            _collect(found, decoded or (), pcr, bound.event.index)
        unexplained[pcr] = lost
        if closed and not lost:
            complete.add(pcr)
    if BITLOCKER_PCR in measurements.by_pcr:
        complete.add(BITLOCKER_PCR)
    access = tuple(bound.covered for bound in measurements.of(BITLOCKER_PCR))
    return _log(found, complete, unexplained, access)


def read_untrusted_configuration_log(log: EventLog) -> ConfigurationLog:
    """Read the Windows events that `log` claims, for people: no PCR is `complete`, nothing is proven."""
    found: dict[int, list[Found]] = {}
    unexplained = dict.fromkeys(_PCRS, 0)
    closed: set[int] = set()
    access: list[bytes | None] = []
    for event in log.events:
        if event.type == EventType.NO_ACTION or event.pcr in closed:
            continue
        if event.pcr == BITLOCKER_PCR:
            access.append(event.data)
        elif event.pcr not in unexplained:
            continue
        elif event.data == _SEPARATOR:
            closed.add(event.pcr)
        else:
            decoded = _decode_octets(event.data)
            unexplained[event.pcr] += decoded is None
            _collect(found, decoded or (), event.pcr, event.index)
    return _log(found, set(), unexplained, tuple(access))


def _log(
    found: dict[int, list[Found]],
    complete: set[int],
    unexplained: dict[int, int],
    access: tuple[bytes | None, ...],
) -> ConfigurationLog:
    by_identifier = {identifier: tuple(events) for identifier, events in found.items()}
    return ConfigurationLog(
        MappingProxyType(by_identifier), frozenset(complete), MappingProxyType(unexplained), access
    )


def _collect(found: dict[int, list[Found]], events: tuple[SipaEvent, ...], pcr: int, index: int) -> None:
    for top in events:
        for event in top.walk():
            found.setdefault(event.identifier, []).append(Found(event, pcr, index))


def _decode(bound: BoundEvent) -> tuple[SipaEvent, ...] | None:
    return _decode_octets(bound.covered) if bound.covered else None


def _decode_octets(data: bytes) -> tuple[SipaEvent, ...] | None:
    try:
        return read_sipa_events(data) or None
    except MalformedError:
        return None


def is_windows_log(log: EventLog) -> bool:
    """Whether the unverified `log` looks like one that Windows continued: a guess, to choose a reader."""
    return any(
        event.pcr in CONFIGURATION_PCRS and event.data == _SEPARATOR and event.type == EventType.SEPARATOR
        for event in log.events
    )


def windows_bank(log: EventLog) -> HashAlgorithm:
    """The strongest bank in which Windows measured: the one to quote and replay.

    Windows measures into one bank and caps the others (`bank_capping`), so the log's head does not
    tell. Raises MalformedError when the log has no Windows events in any known bank.
    """
    measured = [event for event in log.events if event.pcr in CONFIGURATION_PCRS]
    for bank in sorted(HashAlgorithm, key=lambda bank: bank.digest_size, reverse=True):
        if measured and all(int(bank) in event.digests for event in measured):
            return bank
    raise MalformedError("event log: no bank holds Windows' measurements")
