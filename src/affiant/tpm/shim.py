"""What shim measured: its revocation level, machine owner keys, and whether it validates at all.

shim extends PCR 14 with the content of its MOK variables (an EV_IPL event whose data is the
variable's name), and PCR 7 with SbatLevel, MokSBState and every authority it used
(EV_EFI_VARIABLE_AUTHORITY). It measures a variable only where it exists or mirrors one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements
from affiant.tpm.secure_boot import Authority, SecureBootFacts
from affiant.tpm.signature_database import encode_certificate_list

__all__ = ["MeasuredName", "ShimFacts", "read_shim"]

_MOK_PCR: Final = 14
_SETTINGS: Final = frozenset({"SbatLevel", "MokSBState"})
_GUID_SIZE: Final = 16
_DER_SEQUENCE: Final = b"\x30\x82"  # with a length of two octets, as certificates have
_MAXIMUM_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class MeasuredName:
    """A digest that shim measured under a name; only the digest is proven."""

    digest: bytes
    untrusted_name: str


@dataclass(frozen=True, slots=True)
class ShimFacts:
    """What PCR 7 and PCR 14 prove about shim.

    `sbat_level` is the first revocation level measured (text), None when there is none.
    `validation_disabled`: MokSBState was measured and says so. False means that PCR 7 is
    explained to the last event, shim spoke, and no event says so; None that this cannot be told.
    `authorities`: what shim accepted images by, the certificates in DER (or digests).
    `owner_keys_absent`: PCR 14 begins with a MokList that holds exactly one of those
    certificates, shim's own vendor certificate, hence no key of a machine's owner; None otherwise.
    `mok_measurements`: PCR 14 in full, for reference values.
    """

    sbat_level: str | None
    validation_disabled: bool | None
    authorities: tuple[bytes, ...]
    owner_keys_absent: bool | None
    mok_measurements: tuple[MeasuredName, ...]


def read_shim(measurements: Measurements, secure_boot: SecureBootFacts) -> ShimFacts:
    """Read shim's facts out of bound data; `secure_boot` is of the same measurements.

    When it returns,

    - `sbat_level`, `validation_disabled` and `authorities` come from data that PCR 7 covers;
    - `owner_keys_absent` is True only if the first measurement of PCR 14 is the digest of a list
      with one of `authorities` and nothing else;
    - in `mok_measurements` only digests and their order are proven.
    """
    late = [authority for authority in secure_boot.authorities if not authority.before_separator]
    spoke = [authority for authority in late if authority.source.vendor == SHIM_LOCK]
    accepted = tuple(_split_owner(authority.source.content) for authority in late if _is_shims(authority))
    mok = tuple(
        MeasuredName(bound.digest, _name(bound.event.untrusted_data, bound.event.untrusted_type))
        for bound in measurements.of(_MOK_PCR)
    )
    levels = [authority.source.content for authority in spoke if authority.source.name == "SbatLevel"]
    return ShimFacts(
        sbat_level=levels[0].decode("ascii", "replace") if levels else None,
        validation_disabled=_validation_disabled(spoke, secure_boot),
        authorities=tuple(certificate for _, certificate in accepted),
        owner_keys_absent=_owner_keys_absent(measurements, accepted),
        mok_measurements=mok,
    )


def _is_shims(authority: Authority) -> bool:
    """Whether shim, and not the firmware, accepted an image by it.

    shim names the list that held the certificate (MokListRT, Shim, vendor_db); firmware names db.
    """
    return authority.source.name not in _SETTINGS and (
        authority.source.vendor == SHIM_LOCK or authority.source.name == "vendor_db"
    )


def _split_owner(content: bytes) -> tuple[UUID, bytes]:
    """Owner and certificate of an authority: EFI_SIGNATURE_DATA, or a certificate alone (shim's own).

    A certificate is told by its DER header, whose length fills the octets.
    """
    if content[:2] == _DER_SEQUENCE and len(content) == 4 + int.from_bytes(content[2:4], "big"):
        return SHIM_LOCK, content
    return UUID(bytes_le=content[:_GUID_SIZE].ljust(_GUID_SIZE, b"\0")), content[_GUID_SIZE:]


def _validation_disabled(spoke: list[Authority], secure_boot: SecureBootFacts) -> bool | None:
    states = [authority.source.content for authority in spoke if authority.source.name == "MokSBState"]
    if any(state != b"\0" for state in states):
        return True
    if not spoke or secure_boot.unexplained:
        return None
    return False


def _owner_keys_absent(measurements: Measurements, accepted: tuple[tuple[UUID, bytes], ...]) -> bool | None:
    events = measurements.of(_MOK_PCR)
    if not events:
        return None
    lists = (encode_certificate_list(owner, certificate) for owner, certificate in accepted)
    return True if any(measurements.bank.digest(one) == events[0].digest for one in lists) else None


def _name(data: bytes, kind: int) -> str:
    if kind != EventType.IPL:
        return ""
    return data[:_MAXIMUM_NAME].removesuffix(b"\0").decode("ascii", "replace")
