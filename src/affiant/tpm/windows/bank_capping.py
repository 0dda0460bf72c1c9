"""Banks that Windows does not measure into: capped, so that nobody can fill them with a better past.

Windows measures into one bank of a TPM. In every other active bank it extends one digest of zeros into
the PCRs that it measures into or relies on, when it starts; PCR 11 alone goes on from there with the
digests of its events, which the log then omits. (Seen on machines of two vendors; not documented.)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import Event, EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import replay_values
from affiant.tpm.windows.bitlocker import BITLOCKER_PCR

__all__ = ["BankState", "CappedBank", "compare_capped_bank"]

_STATIC_PCRS: Final = range(16)


class BankState(enum.Enum):
    """How a PCR of a bank relates to the log."""

    REPLAYED = "replays"
    CAPPED = "replays and was then capped"
    DIFFERENT = "differs"


@dataclass(frozen=True, slots=True)
class CappedBank:
    """How each PCR of a bank that Windows may have capped relates to the log."""

    bank: HashAlgorithm
    states: Mapping[int, BankState]

    def pcrs(self, state: BankState) -> frozenset[int]:
        """The PCRs in that state."""
        return frozenset(pcr for pcr, found in self.states.items() if found is state)


def compare_capped_bank(log: EventLog, *, bank: HashAlgorithm, pcrs: Mapping[int, bytes]) -> CappedBank:
    """Compare values of `bank` (PCR 0 to 15, others are left out) with what `log` leads to there.

    `pcrs` should come from a quote of that bank. The result is a check of sanity, not a way to facts:
    events are read in the bank that Windows measures into (`windows_bank`).

    When it returns, a PCR is `REPLAYED` only if its value is that of the log's digests in this bank, and
    `CAPPED` only if one digest of zeros follows those digests (in PCR 11: followed by the digests of
    the data of events that the log gives no digest for). Raises MalformedError for a value of wrong size
    or contradicting startup localities.
    """
    states: dict[int, BankState] = {}
    for pcr in sorted(set(pcrs) & set(_STATIC_PCRS)):
        if len(pcrs[pcr]) != bank.digest_size:
            raise MalformedError(f"PCR {pcr} ({bank.title}) has {len(pcrs[pcr])} octets")
        measured = [event for event in log.events if event.pcr == pcr and event.type != EventType.NO_ACTION]
        with_digest = tuple(event for event in measured if int(bank) in event.digests)
        value = _replay(log, with_digest, bank, pcr)
        omitted = [event for event in measured if int(bank) not in event.digests]
        if value == pcrs[pcr]:
            # Also where Windows measured into its own bank only, and left this one alone (PCR 14).
            states[pcr] = BankState.REPLAYED
        elif _cap(value, omitted, bank, pcr) == pcrs[pcr]:
            states[pcr] = BankState.CAPPED
        else:
            states[pcr] = BankState.DIFFERENT
    return CappedBank(bank, MappingProxyType(states))


def _replay(log: EventLog, events: tuple[Event, ...], bank: HashAlgorithm, pcr: int) -> bytes:
    locality = tuple(event for event in log.events if event.type == EventType.NO_ACTION and event.pcr == 0)
    shortened = EventLog((*locality, *events), log.algorithms, log.crypto_agile, log.truncated)
    return replay_values(shortened, bank=bank, pcrs=(pcr,))[pcr]


def _cap(value: bytes, omitted: list[Event], bank: HashAlgorithm, pcr: int) -> bytes:
    value = bank.digest(value + bytes(bank.digest_size))
    if pcr == BITLOCKER_PCR:
        for event in omitted:
            value = bank.digest(value + bank.digest(event.data))
    return value
