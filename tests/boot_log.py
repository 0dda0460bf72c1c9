"""A boot event log that can be bent: the recorded one of a real Debian guest, event by event.

Unbent, `measure_into` extends a TPM exactly as the firmware, shim and GRUB of the recording did.
Two ways to bend it: change what *happened* (`replace_event` on the log that is measured too), or
change only what is *told* afterwards (on a copy of the log that is sent).
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from affiant.tpm.event_log import Event, parse_event_log
from affiant.tpm.event_types import EventType
from tests.software_tpm import SoftwareTpm

VECTORS = Path(__file__).parent / "vectors" / "boot"
SHA256 = 0x000B
_HASHES = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}


@dataclass
class BootLog:
    """The events of one boot; the head (Specification ID event) stays as it was recorded."""

    head: bytes
    events: list[Event]
    expected: dict[str, object]

    @classmethod
    def recorded(cls, name: str = "debian12-secure-boot") -> BootLog:
        """Return the recording, with what its file says about it."""
        log = (VECTORS / f"{name}.bin").read_bytes()
        parsed = parse_event_log(log)
        size = 32 + len(parsed.events[0].data)
        description = json.loads((VECTORS / f"{name}.json").read_text())
        return cls(log[:size], list(parsed.events[1:]), description["expected"])

    def copy(self) -> BootLog:
        """Return a log that can be bent without this one noticing."""
        return copy.deepcopy(self)

    def encode(self) -> bytes:
        """Return the log in the crypto-agile format."""
        return self.head + b"".join(_encode(event) for event in self.events)

    def measure_into(self, tpm: SoftwareTpm) -> None:
        """Extend the PCRs as whoever wrote this log did."""
        for event in self.events:
            if event.type != EventType.NO_ACTION:
                tpm.extend(event.pcr, event.digests[SHA256])

    def find(self, pcr: int, condition: Callable[[Event], bool]) -> int:
        """Return the position of the only event of `pcr` that meets the condition."""
        (position,) = [i for i, event in enumerate(self.events) if event.pcr == pcr and condition(event)]
        return position

    def variable(self, name: str) -> int:
        """Return the position where the firmware measured an EFI variable as configuration (PCR 7)."""
        start = struct.pack("<Q", len(name))
        wanted = name.encode("utf-16-le")

        def is_it(event: Event) -> bool:
            named = event.data[16:24] == start and event.data[32 : 32 + len(wanted)] == wanted
            return named and event.type == EventType.EFI_VARIABLE_DRIVER_CONFIG

        return self.find(7, is_it)

    def replace_variable(self, name: str, content: bytes) -> None:
        """Let the firmware have measured another content of a variable, truthfully."""
        position = self.variable(name)
        event = self.events[position]
        units = struct.unpack_from("<Q", event.data, 16)[0]
        data = event.data[:24] + struct.pack("<Q", len(content)) + event.data[32 : 32 + 2 * units] + content
        self.events[position] = measured(event.pcr, event.type, data, digests=event.digests)

    def replace_text(self, old: str, new: str) -> None:
        """Let GRUB have run other commands: `old` becomes `new` wherever it measured it in PCR 8."""
        for position, event in enumerate(self.events):
            if event.pcr == 8 and old.encode() in event.data:
                prefix, colon, text = event.data.partition(b": ")
                text = text.replace(old.encode(), new.encode())
                # GRUB measures the string without the log's prefix and without its final zero.
                changed = measured(8, event.type, text.removesuffix(b"\0"), digests=event.digests)
                self.events[position] = replace(changed, data=prefix + colon + text)

    def append(self, pcr: int, kind: int, data: bytes, *, of: bytes | None = None) -> None:
        """Add an event whose digest covers its data, or `of`, which the log then does not hold."""
        event = measured(pcr, kind, data if of is None else of, digests=self.events[-1].digests)
        self.events.append(replace(event, data=data))


def measured(pcr: int, kind: int, data: bytes, *, digests: dict[int, bytes]) -> Event:
    """Return an event whose digests, of the same banks as `digests`, cover `data`."""
    return Event(0, pcr, kind, {name: hashlib.new(_HASHES[name], data).digest() for name in digests}, data)


def _encode(event: Event) -> bytes:
    digests = b"".join(struct.pack("<H", name) + digest for name, digest in event.digests.items())
    head = struct.pack("<III", event.pcr, event.type, len(event.digests))
    return head + digests + struct.pack("<I", len(event.data)) + event.data
