"""Finding the TCG event log in guest memory.

The log needs no trust of its own: it counts only once it replays onto a quote, which is decided
elsewhere. So this module returns candidates, best first, and checks form alone (TCG PC Client
Platform Firmware Profile, 10.2 and 10.4.5.1): one Spec ID event, then TCG_PCR_EVENT2 records.

Where a log lies depends on how far the boot has come:

* in firmware and boot loader: the firmware's own buffer, in boot services data;
* Linux's EFI stub copies it into `linux_efi_tpm_eventlog` (9-byte header, then the log) before
  ExitBootServices. What firmware measures after that copy, ExitBootServices itself among it, is
  in the *final events table* alone; the first `final_events_preboot_size` bytes of that table are
  events that the copy holds already;
* the TPM driver later keeps a merged copy of both. The firmware's buffer is reused by then;
* a kernel that was started past its EFI stub has neither: then there is the firmware's buffer alone,
  which Linux keeps only until it has come to `efi_free_boot_services`.

With a known kernel, `efi.tpm_log` and `efi.tpm_final_log` lead to the second; a scan of RAM for the
Spec ID signature finds the others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from affiant.kernel.machine.memory import GuestMemory, MemoryFault

__all__ = [
    "LONGEST_LOG",
    "EventLogCandidate",
    "kernel_event_log",
    "read_event_log",
    "scan_for_event_logs",
]

LONGEST_LOG: Final = 1 << 20
"""A log of more bytes than this is cut at its last whole event before the bound."""

_SIGNATURE = b"Spec ID Event03\0"
_EV_NO_ACTION = 3
# The signature follows TCG_PCR_EVENT's pcrIndex, eventType, SHA-1 digest and eventDataSize.
_FIRST_EVENT_HEADER: Final = struct.Struct("<II20sI")
_LINUX_HEADER: Final = struct.Struct("<IIB")
_FINAL_TABLE: Final = struct.Struct("<QQ")
_SPEC_HEAD: Final = 28  # TCG_EfiSpecIDEvent up to its list of algorithms
_MOST_ALGORITHMS, _MOST_EVENTS, _MOST_CANDIDATES = 16, 1 << 16, 64
_NO_TABLE = ((1 << 64) - 1, 0)


@dataclass(frozen=True, slots=True)
class EventLogCandidate:
    """Unverified: bytes that have the form of a crypto-agile log, cut after the last whole event.

    `source` says how it was found (`efi.tpm_log`, `scan`), `address` is physical.
    """

    data: bytes
    events: int
    source: str
    address: int


def kernel_event_log(
    memory: GuestMemory, *, log_address: int, final_address: int
) -> EventLogCandidate | None:
    """Return the log that Linux's EFI stub left, with the final events that it lacks.

    The arguments are the kernel's `efi.tpm_log` and `efi.tpm_final_log` (physical; all ones or 0
    mean none). Returns None where there is no such log, or it is not of the form.
    """
    if log_address in _NO_TABLE:
        return None
    try:
        size, preboot_size, _ = _LINUX_HEADER.unpack(memory.read(log_address, _LINUX_HEADER.size))
        start = log_address + _LINUX_HEADER.size
        data = memory.read(start, min(size, LONGEST_LOG))
    except MemoryFault:
        return None
    sizes = _digest_sizes(data)
    if sizes is None:
        return None
    end, events = _walk(data, _first_event_size(data), sizes)
    log = data[:end]
    if final_address not in _NO_TABLE:
        final, more = _final_events(memory, final_address, preboot_size, sizes)
        if len(log) + len(final) <= LONGEST_LOG:
            log, events = log + final, events + more
    return EventLogCandidate(log, events + 1, "efi.tpm_log", log_address)


def scan_for_event_logs(memory: GuestMemory) -> tuple[EventLogCandidate, ...]:
    """Return what looks like an event log anywhere in populated RAM, most events first.

    Bounded: the first 64 places with the signature are looked at. Finding none proves nothing.
    Logs of an earlier boot may still lie in RAM; only one can replay onto a fresh quote.
    """
    found: dict[bytes, EventLogCandidate] = {}
    for place in memory.find(_SIGNATURE, maximum=_MOST_CANDIDATES):
        candidate = read_event_log(memory, place - _FIRST_EVENT_HEADER.size)
        if candidate is not None:
            found.setdefault(candidate.data, candidate)
    return tuple(sorted(found.values(), key=lambda log: -log.events))


def read_event_log(memory: GuestMemory, address: int) -> EventLogCandidate | None:
    """Return what looks like an event log at this physical address, None where nothing does."""
    data = _read_up_to(memory, address, LONGEST_LOG)
    sizes = _digest_sizes(data)
    if sizes is None:
        return None
    end, events = _walk(data, _first_event_size(data), sizes)
    return EventLogCandidate(data[:end], events + 1, "scan", address) if events else None


def _final_events(
    memory: GuestMemory, address: int, preboot_size: int, sizes: dict[int, int]
) -> tuple[bytes, int]:
    header = _read_up_to(memory, address, _FINAL_TABLE.size)
    if len(header) < _FINAL_TABLE.size:
        return b"", 0
    _, count = _FINAL_TABLE.unpack(header)
    data = _read_up_to(memory, address + _FINAL_TABLE.size, LONGEST_LOG)
    end, _ = _walk(data, 0, sizes, maximum=min(count, _MOST_EVENTS))
    if preboot_size > end:
        return b"", 0
    # Walking again from where the copy ends both counts what is new and checks that an event starts there.
    last, events = _walk(data[:end], preboot_size, sizes)
    return data[preboot_size:last], events


def _read_up_to(memory: GuestMemory, address: int, size: int) -> bytes:
    for segment in memory.segments:
        if segment.address <= address < segment.address + segment.size:
            return memory.read(address, min(size, segment.address + segment.size - address))
    return b""


def _first_event_size(data: bytes) -> int:
    return _FIRST_EVENT_HEADER.size + int.from_bytes(data[28:32], "little")


def _digest_sizes(data: bytes) -> dict[int, int] | None:
    """Return algorithm to digest size from the Spec ID event, or None if it is none (10.4.5.1)."""
    if len(data) < _FIRST_EVENT_HEADER.size + _SPEC_HEAD:
        return None
    pcr, kind, digest, size = _FIRST_EVENT_HEADER.unpack_from(data)
    body = data[_FIRST_EVENT_HEADER.size : _FIRST_EVENT_HEADER.size + size]
    if (
        pcr
        or kind != _EV_NO_ACTION
        or digest != bytes(20)
        or not _SPEC_HEAD <= size == len(body)
        or not body.startswith(_SIGNATURE)
    ):
        return None
    (count,) = struct.unpack_from("<I", body, _SPEC_HEAD - 4)
    if not 0 < count <= _MOST_ALGORITHMS or len(body) < _SPEC_HEAD + 4 * count:
        return None
    sizes: dict[int, int] = dict(
        struct.unpack_from("<HH", body, _SPEC_HEAD + 4 * index) for index in range(count)
    )
    return sizes if all(0 < width <= 64 for width in sizes.values()) and len(sizes) == count else None


def _walk(data: bytes, offset: int, sizes: dict[int, int], *, maximum: int = _MOST_EVENTS) -> tuple[int, int]:
    """Return (end, count) of the whole TCG_PCR_EVENT2 records from `offset` on (10.2.2)."""
    count = 0
    while count < maximum:
        end = _event_end(data, offset, sizes)
        if end is None:
            break
        offset, count = end, count + 1
    return min(offset, len(data)), count


def _event_end(data: bytes, offset: int, sizes: dict[int, int]) -> int | None:
    if offset + 12 > len(data):
        return None
    _, _, digests = struct.unpack_from("<III", data, offset)
    if digests != len(sizes):  # an event carries one digest for each bank; zeros end the log
        return None
    offset += 12
    for _ in range(digests):
        if offset + 2 > len(data):
            return None
        width = sizes.get(int.from_bytes(data[offset : offset + 2], "little"))
        if width is None:
            return None
        offset += 2 + width
    if offset + 4 > len(data):
        return None
    offset += 4 + int.from_bytes(data[offset : offset + 4], "little")
    return offset if offset <= len(data) else None
