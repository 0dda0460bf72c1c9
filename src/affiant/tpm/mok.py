"""The state of shim's machine owner keys in PCR 14: which lists there are, and what can be told of them.

shim measures the content of each of its variables that exists and logs the name alone, so a content is
known only where it can be guessed and hashed: the switches of one octet, the list with nothing but
shim's own vendor certificate, the list of revocations that shim makes when it has none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements
from affiant.tpm.signature_database import CERT_SHA256, encode_certificate_list

__all__ = ["MokFacts", "MokMeasurement", "read_mok"]

_MOK_PCR: Final = 14
_MAXIMUM_NAME: Final = 64
_SWITCHES: Final = tuple(bytes([value]) for value in range(2))
# An EFI_SIGNATURE_LIST with one entry, by shim, of no image: what shim mirrors instead of an empty list.
_NO_REVOCATION: Final = CERT_SHA256.bytes_le + struct.pack("<III", 76, 0, 48) + SHIM_LOCK.bytes_le + bytes(32)


@dataclass(frozen=True, slots=True)
class MokMeasurement:
    """One variable's content as measured; `content` where it is known, then it hashes to `digest`.

    `untrusted_name` is the log's word for the variable.
    """

    digest: bytes
    content: bytes | None
    untrusted_name: str


@dataclass(frozen=True, slots=True)
class MokFacts:
    """What PCR 14 proves; empty where it was not replayed.

    `measurements` are all of PCR 14 in order: MokList, MokListX, MokListTrusted, MokSBState and so on.
    """

    measurements: tuple[MokMeasurement, ...]

    @property
    def switches(self) -> tuple[tuple[str, bool], ...]:
        """The variables of one octet: proven value under the name that the log gives it."""
        return tuple(
            (one.untrusted_name, one.content == b"\x01")
            for one in self.measurements
            if one.content in _SWITCHES
        )

    @property
    def has_switch_set(self) -> bool:
        """Whether any variable of one octet was measured as 1."""
        return any(value for _, value in self.switches)

    def untrusted(self, name: str) -> MokMeasurement | None:
        """The only measurement that the log calls `name`, None when there is none or more than one."""
        named = [one for one in self.measurements if one.untrusted_name == name]
        return named[0] if len(named) == 1 else None


def read_mok(measurements: Measurements, *, vendor_certificates: Iterable[bytes] = ()) -> MokFacts:
    """Read PCR 14; `vendor_certificates` (DER) are those by which shim accepted images.

    When it returns, every measurement of PCR 14 is told in its order, and a content that is told
    hashes to what was measured.
    """
    bank = measurements.bank
    guesses = [*_SWITCHES, _NO_REVOCATION]
    guesses += [encode_certificate_list(SHIM_LOCK, certificate) for certificate in vendor_certificates]
    known = {bank.digest(guess): guess for guess in guesses}
    return MokFacts(
        tuple(
            MokMeasurement(
                bound.digest,
                known.get(bound.digest),
                _name(bound.event.untrusted_data, bound.event.untrusted_type),
            )
            for bound in measurements.of(_MOK_PCR)
            if not bound.is_separator
        )
    )


def _name(data: bytes, kind: int) -> str:
    if kind != EventType.IPL:
        return ""
    return data[:_MAXIMUM_NAME].removesuffix(b"\0").decode("ascii", "replace")
