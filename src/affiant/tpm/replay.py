"""Replaying an event log onto a quote: the events that must have happened, and no others.

TCG PC Client Platform Firmware Profile, sections 2.3.4 (PCR usage), 10.2.3 (validating a log) and
10.4.5.3 (Startup Locality event); TPM 2.0 Library, Part 1, section 17.2 (extend).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import Event, EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.os_separator import is_os_separator, os_separated
from affiant.tpm.quote import VerifiedQuote

__all__ = ["MeasuredEvent", "VerifiedEventLog", "leads_to", "replay_event_log", "replay_values"]

_NO_ACTION: Final = int(EventType.NO_ACTION)  # compared with each event of each log
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = frozenset({0, 3, 4})
_HARDWARE_CRTM: Final = 4
_DYNAMIC_PCRS: Final = range(17, 23)  # start as all ones (PC Client Platform TPM Profile, section 4.6.2)


class MeasuredEvent(NamedTuple):
    """One measurement that a quoted PCR value contains; a tuple, since every log makes hundreds.

    Proven: `pcr`, `digest` (of the quoted bank), and the order among the events of one PCR.
    Not proven: `untrusted_type`, `untrusted_data`, and the order between PCRs (`index`, the
    position in the log). `affiant.tpm.binding` tells which data the digest covers.
    """

    index: int  # type: ignore[assignment] # hides a method of tuple that nobody asks of an event
    pcr: int
    digest: bytes
    untrusted_type: int
    untrusted_data: bytes


@dataclass(frozen=True, slots=True)
class VerifiedEventLog:
    """The measurements of `pcrs`, in the order of the log; made by `replay_event_log` alone.

    systemd's separators are not among the events (`affiant.tpm.os_separator`): they tell nothing of the boot.
    `startup_locality` is the locality of TPM2_Startup that PCR 0 starts from (proven when PCR 0 is replayed).
    `launched_pcrs` are those of PCR 17 to 22 that start from zeros instead of ones. For PCR 17 to 19 only a
    dynamic launch does that; PCR 20 to 22 may also have been reset at locality 2, by what was launched.
    """

    bank: HashAlgorithm
    pcrs: frozenset[int]
    events: tuple[MeasuredEvent, ...]
    startup_locality: int
    launched_pcrs: frozenset[int] = frozenset()

    def of(self, pcr: int) -> tuple[MeasuredEvent, ...]:
        """The measurements of one PCR, in the order in which it was extended."""
        if pcr not in self.pcrs:
            raise ValueError(f"PCR {pcr} was not replayed")
        return tuple(event for event in self.events if event.pcr == pcr)


def replay_event_log(
    log: EventLog, quote: VerifiedQuote, *, required_pcrs: Collection[int]
) -> VerifiedEventLog:
    """Replay `log` in the quote's bank onto the values of `required_pcrs`.

    When it returns, for every one of `required_pcrs`,

    - the quote's signed selection has the PCR;
    - extending the PCR's digests of the quoted bank, in the order of the log, gives the quoted value, or the
      value from which systemd's separators lead to it;
    - the returned events are those digests: none is left out (but such separators), added, reordered or of
      another bank;
    - an EV_NO_ACTION event (never measured) is not among them, nor an event of another PCR;
    - PCR 17 to 22 start as ones, or as zeros where they were launched (`launched_pcrs`).

    An empty PCR replays from its reset value: that something *was* measured is for the caller to see.
    Raises ForgedError naming all PCRs that do not replay, or MalformedError (no digest of the
    quoted bank, contradicting startup localities).
    """
    required = frozenset(required_pcrs)
    if not required:
        raise ValueError("a replay of no PCR proves nothing")
    if missing := sorted(required - quote.pcrs.keys()):
        raise ForgedError(f"event log: the quote's signed selection lacks PCR {_join(missing)}")
    bank = quote.bank
    locality = _startup_locality(log)
    size = bank.digest_size
    state = {pcr: (b"\xff" if pcr in _DYNAMIC_PCRS else b"\0") * size for pcr in required}
    if 0 in state:
        state[0] = bytes(size - 1) + bytes([locality])
    hasher, identifier = bank.constructor, int(bank)
    measured = []
    for event in log.events:
        pcr = event.pcr
        if pcr not in required or event.type == _NO_ACTION:
            continue
        extended = event.digests.get(identifier)
        if extended is None:
            raise MalformedError(f"event log: event {event.index} has no {bank.title} digest")
        state[pcr] = hasher(state[pcr] + extended).digest()
        if not is_os_separator(pcr, extended, bank=bank):
            measured.append(MeasuredEvent(event.index, pcr, extended, event.type, event.data))
    wrong = sorted(pcr for pcr in required if not leads_to(pcr, state[pcr], quote.pcrs[pcr], bank=bank))
    launched = frozenset(pcr for pcr in wrong if _is_launched(pcr, measured, quote))
    if wrong := [pcr for pcr in wrong if pcr not in launched]:
        raise ForgedError(f"event log: does not replay to the quoted value of PCR {_join(wrong)}")
    return VerifiedEventLog(bank, required, tuple(measured), locality, launched)


def leads_to(pcr: int, reached: bytes, value: bytes, *, bank: HashAlgorithm) -> bool:
    """Tell whether a PCR whose log ends at `reached` may have `value` now.

    It may be that value, or one to which systemd's separators lead, which no firmware's log holds.
    """
    return value == reached or value in os_separated(pcr, reached, bank=bank)


def _is_launched(pcr: int, measured: list[MeasuredEvent], quote: VerifiedQuote) -> bool:
    """Whether a dynamic PCR replays from zeros, as a launch leaves it (Part 1, section 34.4)."""
    if pcr not in _DYNAMIC_PCRS:
        return False
    value = bytes(quote.bank.digest_size)
    for event in measured:
        if event.pcr == pcr:
            value = quote.bank.digest(value + event.digest)
    return value == quote.pcrs[pcr]


def replay_values(log: EventLog, *, bank: HashAlgorithm, pcrs: Collection[int]) -> dict[int, bytes]:
    """The values that the unverified `log` leads to in `bank`, if nothing else was measured.

    They prove nothing by themselves: a quote must say that they were the TPM's. PCR 17 to 22 start as
    ones (no dynamic launch). Raises MalformedError (no digest of the bank, contradicting localities).
    """
    size = bank.digest_size
    values = {pcr: (b"\xff" if pcr in _DYNAMIC_PCRS else b"\0") * size for pcr in pcrs}
    if 0 in values:
        values[0] = bytes(size - 1) + bytes([_startup_locality(log)])
    for event in log.events:
        if event.pcr not in values or event.type == EventType.NO_ACTION:
            continue
        extended = event.digests.get(int(bank))
        if extended is None:
            raise MalformedError(f"event log: event {event.index} has no {bank.title} digest")
        values[event.pcr] = bank.digest(values[event.pcr] + extended)
    return values


def _startup_locality(log: EventLog) -> int:
    """The locality at which TPM2_Startup ran, 0 unless the log says otherwise.

    Section 10.4.5.3: the event comes before any measurement of PCR 0. It is a claim of the log
    that the replay of PCR 0 confirms: the locality is the last octet of that PCR's reset value.
    A hardware CRTM measures before TPM2_Startup, and PCR 0 then starts from 4 (TPM 2.0 Library, Part
    1, section 34.3), whatever the Startup Locality event says or whether there is one.
    """
    found: int | None = None
    for event in log.events:
        if event.pcr != 0:
            continue
        if event.type != EventType.NO_ACTION:
            if event.type == EventType.EFI_HCRTM_EVENT:
                return _HARDWARE_CRTM
            break
        if event.data.startswith(_STARTUP_LOCALITY):
            found = _read_locality(event, found)
    return found or 0


def _read_locality(event: Event, before: int | None) -> int:
    if before is not None:
        raise MalformedError("event log: two Startup Locality events")
    if len(event.data) != len(_STARTUP_LOCALITY) + 1 or event.data[-1] not in _LOCALITIES:
        raise MalformedError("event log: malformed Startup Locality event")
    return event.data[-1]


def _join(pcrs: list[int]) -> str:
    return ", ".join(map(str, pcrs))
