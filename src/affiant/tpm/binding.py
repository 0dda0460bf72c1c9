"""Which octets does a measured digest cover?

A digest in a PCR is proven; the log's data beside it is a claim. This module compares: data whose
hash *is* the digest may be used, everything else stays untrusted. TCG PC Client Platform Firmware
Profile, section 10.4.1 (what is hashed for each event type) and 10.4.2 (EV_SEPARATOR, EV_ACTION).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.efi_variable import variable_content
from affiant.tpm.event_types import EventType
from affiant.tpm.quirks import DIGEST_QUIRKS, DigestQuirk, HashedPart, digest_quirks
from affiant.tpm.replay import MeasuredEvent

__all__ = ["Binding", "BoundEvent", "bind_event"]


class Binding(enum.Enum):
    """What of an event's data the digest covers."""

    DATA = "all of the event's data"
    VARIABLE_CONTENT = "the content of the variable, not its name"
    STRING = "the string, not what the log puts around it"
    NAME = "the name that stands in the log, in another encoding"
    SEPARATOR = "a separator"
    NOTHING = "nothing in the log"


class BoundEvent(NamedTuple):
    """A measured event with the octets that its digest covers; made by `bind_event` alone.

    `covered` is what was measured, `None` when the log does not hold it (a file, an image, an
    Authenticode digest): then only `digest` says anything. `quirk` names the entry of
    `affiant.tpm.quirks` by which the octets were found, None where the specification tells.
    """

    event: MeasuredEvent
    binding: Binding
    covered: bytes | None
    quirk: str | None = None

    @property
    def digest(self) -> bytes:
        """The measured digest."""
        return self.event.digest

    @property
    def is_separator(self) -> bool:
        """Whether this is the end of what the firmware measured before it gave up control.

        Decided by the digest alone: a separator under another type remains one.
        """
        return self.binding is Binding.SEPARATOR

    @property
    def is_error_separator(self) -> bool:
        """Whether the firmware measured that it failed (digest of the value 1)."""
        return self.covered == _ERROR_VALUE and self.binding is Binding.SEPARATOR


_ERROR_VALUE: Final = b"\x01\0\0\0"
_SEPARATORS: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff", _ERROR_VALUE)

# For these types the specification lets the digest be of the event's data and of nothing else. For the
# others firmware and boot loaders measure what the log does not hold, or a part of it (`affiant.tpm.quirks`).
_ALWAYS_DATA: Final = frozenset(
    {
        int(EventType.SEPARATOR),
        int(EventType.ACTION),
        int(EventType.EFI_ACTION),
        int(EventType.S_CRTM_VERSION),
        int(EventType.EFI_VARIABLE_DRIVER_CONFIG),
    }
)


def bind_event(event: MeasuredEvent, *, bank: HashAlgorithm) -> BoundEvent:
    """Tell what `event`'s digest covers; `bank` is the bank that the event was replayed in.

    When it returns,

    - `covered`, if not None, hashes to the measured digest, with or without a final zero;
    - a separator is recognised by its digest, whatever the log calls it;
    - data of a type whose digest is always of the data (EV_SEPARATOR, EV_ACTION, EV_EFI_ACTION,
      EV_S_CRTM_VERSION, EV_EFI_VARIABLE_DRIVER_CONFIG) is covered.

    Raises ForgedError when the data of such a type is not what was measured.
    """
    digest, data, kind = event.digest, event.untrusted_data, event.untrusted_type
    separator = _SEPARATOR_DIGESTS[bank._value_].get(digest)
    if separator is not None:
        return BoundEvent(event, Binding.SEPARATOR, separator)
    if bank.digest(data) == digest:
        return BoundEvent(event, Binding.DATA, data)
    if kind in _ALWAYS_DATA:
        raise ForgedError(
            f"event log: event {event.index} ({_spell(kind)}, PCR {event.pcr}) is not what was measured"
        )
    for quirk in digest_quirks(kind):
        covered = _PARTS[quirk.name](data, quirk, digest, bank)
        if covered is not None:
            return BoundEvent(event, _BINDINGS[quirk.part], covered, quirk.name)
    return BoundEvent(event, Binding.NOTHING, None)


def _variable_content(data: bytes, _: DigestQuirk, digest: bytes, bank: HashAlgorithm) -> bytes | None:
    content = variable_content(data)
    return content if content is not None and bank.digest(content) == digest else None


def _after_prefix(data: bytes, quirk: DigestQuirk, digest: bytes, bank: HashAlgorithm) -> bytes | None:
    if not data.startswith(quirk.prefix):
        return None
    text = data[len(quirk.prefix) :]
    bare = text.removesuffix(b"\0")
    return bare if bank.digest(bare) == digest or bank.digest(text) == digest else None


def _name_in_ascii(data: bytes, _: DigestQuirk, digest: bytes, bank: HashAlgorithm) -> bytes | None:
    name = data[::2].rstrip(b"\0")
    if len(data) > _MAXIMUM_NAME or any(data[1::2]):
        return None
    return name if bank.digest(name + b"\0") == digest else None


def _without_final_zero(data: bytes, _: DigestQuirk, digest: bytes, bank: HashAlgorithm) -> bytes | None:
    if not data.endswith(b"\0\0") or len(data) % 2:
        return None
    return data[:-2] if bank.digest(data[:-2]) == digest else None


_MAXIMUM_NAME: Final = 64  # octets; names of PE sections have 8 characters
_READERS: Final[dict[HashedPart, Callable[[bytes, DigestQuirk, bytes, HashAlgorithm], bytes | None]]] = {
    HashedPart.VARIABLE_CONTENT: _variable_content,
    HashedPart.AFTER_PREFIX: _after_prefix,
    HashedPart.NAME_IN_ASCII: _name_in_ascii,
    HashedPart.WITHOUT_FINAL_ZERO: _without_final_zero,
}
_PARTS: Final = {quirk.name: _READERS[quirk.part] for quirk in DIGEST_QUIRKS}
_BINDINGS: Final = {
    HashedPart.VARIABLE_CONTENT: Binding.VARIABLE_CONTENT,
    HashedPart.AFTER_PREFIX: Binding.STRING,
    HashedPart.NAME_IN_ASCII: Binding.NAME,
    HashedPart.WITHOUT_FINAL_ZERO: Binding.STRING,
}


# Keyed by number: hashing an enumeration's member takes longer than hashing an event.
_SEPARATOR_DIGESTS: Final = {
    int(bank): {bank.digest(value): value for value in _SEPARATORS} for bank in HashAlgorithm
}


def _spell(kind: int) -> str:
    try:
        return "EV_" + EventType(kind).name
    except ValueError:
        return f"type 0x{kind:08x}"
