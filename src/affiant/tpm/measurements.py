"""Bound events of one boot, PCR by PCR: what the readers of facts (Secure Boot, shim, GRUB) look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import BoundEvent, bind_event
from affiant.tpm.replay import VerifiedEventLog

__all__ = ["Measurements", "bind_measurements"]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Every event of a verified log with what its digest covers; made by `bind_measurements` alone."""

    bank: HashAlgorithm
    by_pcr: Mapping[int, tuple[BoundEvent, ...]]

    def of(self, pcr: int) -> tuple[BoundEvent, ...]:
        """The events of one PCR in their order; none when the PCR was not replayed."""
        return self.by_pcr.get(pcr, ())

    def before_separator(self, pcr: int) -> tuple[BoundEvent, ...]:
        """What the firmware measured into `pcr` before its first separator; none if there is no separator.

        After the separator whoever runs may extend the PCR with what looks like the firmware's
        events, so only these are the firmware's own.
        """
        events = self.of(pcr)
        position = _first_separator(events)
        return () if position is None else events[:position]

    def after_separator(self, pcr: int) -> tuple[BoundEvent, ...]:
        """What follows the first separator of `pcr`; everything if there is none."""
        events = self.of(pcr)
        position = _first_separator(events)
        return events if position is None else events[position + 1 :]

    def has_separator(self, pcr: int) -> bool:
        """Whether the firmware ended its measurements into `pcr`, and without reporting an error."""
        events = self.of(pcr)
        position = _first_separator(events)
        return position is not None and not events[position].is_error_separator


def bind_measurements(log: VerifiedEventLog) -> Measurements:
    """Bind all events of `log`.

    When it returns, each event is bound as `bind_event` says. Raises ForgedError where it does.
    """
    by_pcr: dict[int, list[BoundEvent]] = {pcr: [] for pcr in sorted(log.pcrs)}
    for event in log.events:
        by_pcr[event.pcr].append(bind_event(event, bank=log.bank))
    return Measurements(log.bank, MappingProxyType({pcr: tuple(events) for pcr, events in by_pcr.items()}))


def _first_separator(events: tuple[BoundEvent, ...]) -> int | None:
    return next((position for position, event in enumerate(events) if event.is_separator), None)
