"""The events of a log, one by one, each with what is proven of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust
from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import Binding, bind_event
from affiant.tpm.efi_variable import parse_variable
from affiant.tpm.event_log import Event, EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.image_load import untrusted_image_path
from affiant.tpm.replay import MeasuredEvent

__all__ = ["EventLine", "list_events", "list_unproven_events"]

_SHOWN: Final = 160
_VARIABLES: Final = frozenset(
    {
        EventType.EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EFI_VARIABLE_BOOT,
        EventType.EFI_VARIABLE_BOOT2,
        EventType.EFI_VARIABLE_AUTHORITY,
    }
)
_IMAGES: Final = frozenset(
    {
        EventType.EFI_BOOT_SERVICES_APPLICATION,
        EventType.EFI_BOOT_SERVICES_DRIVER,
        EventType.EFI_RUNTIME_SERVICES_DRIVER,
    }
)


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event. The type is the log's word in any case, since no digest covers it.

    `digest_trust`: whether a quoted PCR holds the digest. `data_trust`: whether that digest also covers
    data, which `covers` tells. `digest` is None for an event that was never measured.
    """

    index: int
    pcr: int
    type: str
    digest: bytes | None
    digest_trust: Trust
    data_trust: Trust
    covers: str
    text: str


def list_events(log: EventLog, description: BootDescription) -> tuple[EventLine, ...]:
    """Return a line for every event of the log that was described."""
    proven = description.replayed if description.is_proven else frozenset()
    return tuple(_line(event, description.boot.bank, proven) for event in log.events)


def list_unproven_events(log: EventLog, *, bank: HashAlgorithm) -> tuple[EventLine, ...]:
    """Return a line for every event of a log behind which there is nothing."""
    return tuple(_line(event, bank, frozenset()) for event in log.events)


def _line(event: Event, bank: HashAlgorithm, proven_pcrs: frozenset[int]) -> EventLine:
    digest = None if event.type == EventType.NO_ACTION else event.digests.get(int(bank))
    proven = digest is not None and event.pcr in proven_pcrs
    covers, binds = "never measured", False
    if digest is not None:
        try:
            bound = bind_event(
                MeasuredEvent(event.index, event.pcr, digest, event.type, event.data), bank=bank
            )
        except ForgedError:
            covers = "data that is not what was measured"
        else:
            covers, binds = bound.binding.value, bound.binding is not Binding.NOTHING
    return EventLine(
        index=event.index,
        pcr=event.pcr,
        type=_spell(event.type),
        digest=digest,
        digest_trust=Trust.VERIFIED if proven else Trust.UNTRUSTED,
        data_trust=Trust.VERIFIED if proven and binds else Trust.UNTRUSTED,
        covers=covers,
        text=_text(event),
    )


def _spell(kind: int) -> str:
    try:
        return "EV_" + EventType(kind).name
    except ValueError:
        return f"0x{kind:08x}"


def _text(event: Event) -> str:
    """The data in short, for people: a name where its kind has one, text, or hexadecimal."""
    if event.type in _VARIABLES:
        try:
            variable = parse_variable(event.data)
        except MalformedError:
            return _hex(event.data)
        return f"{variable.name}, {len(variable.content)} octets"
    if event.type in _IMAGES and (path := untrusted_image_path(event.data)):
        return path
    data = event.data.removesuffix(b"\0")
    if data and data.isascii() and (text := data.decode("ascii")).isprintable():
        return text[:_SHOWN]
    if len(event.data) > 3 and not any(event.data[1::2]) and event.data[:1] != b"\0":
        return event.data.decode("utf-16-le", "replace").rstrip("\0")[:_SHOWN]
    return _hex(event.data)


def _hex(data: bytes) -> str:
    return data[: _SHOWN // 4].hex() + (".." if len(data) > _SHOWN // 4 else "")
