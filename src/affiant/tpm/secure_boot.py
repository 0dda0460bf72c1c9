"""Secure Boot as PCR 7 proves it: mode, keys, and the authorities that were used.

TCG PC Client Platform Firmware Profile, section 3.3.4.8 (PCR 7) and 10.4.1; UEFI, section 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.binding import Binding, BoundEvent
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY, EfiVariable, parse_variable
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements
from affiant.tpm.signature_database import SignatureDatabase, parse_signature_database

__all__ = ["Authority", "SecureBootFacts", "read_secure_boot"]

_SECURE_BOOT_PCR: Final = 7
_VENDORS: Final = {
    "SecureBoot": EFI_GLOBAL,
    "PK": EFI_GLOBAL,
    "KEK": EFI_GLOBAL,
    "AuditMode": EFI_GLOBAL,
    "DeployedMode": EFI_GLOBAL,
    "SetupMode": EFI_GLOBAL,
    "db": IMAGE_SECURITY,
    "dbx": IMAGE_SECURITY,
}


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate or digest by which an image was accepted, as firmware or shim measured it.

    `source` is the variable that holds it (`db`; shim's `MokListRT`, `vendor_db`, ...), `content`
    its octets: EFI_SIGNATURE_DATA from db (a 16-octet owner, then the certificate). Those before
    the separator are of drivers that the firmware loaded.
    """

    source: EfiVariable
    before_separator: bool


@dataclass(frozen=True, slots=True)
class SecureBootFacts:
    """What PCR 7 proves; None means that it was not measured, or not exactly once.

    The databases are those in force at boot; `setup_mode` and the like are the
    variables' values. `authorities` are all that were used, and possibly more: after the boot the
    guest can add to PCR 7 but not take away, so a rule must hold for *all* of them. `actions` are
    strings that the firmware measured before the separator (such as `UEFI Debug Mode`).
    `unexplained` counts events in PCR 7 whose data the digest does not cover, or which are not what
    the specification has there: any number but zero may hide an authority. `variables` are all that
    the firmware measured as configuration.
    """

    secure_boot: bool | None
    audit_mode: bool | None
    deployed_mode: bool | None
    setup_mode: bool | None
    platform_key: SignatureDatabase | None
    key_exchange_keys: SignatureDatabase | None
    allowed: SignatureDatabase | None
    forbidden: SignatureDatabase | None
    authorities: tuple[Authority, ...]
    variables: tuple[EfiVariable, ...]
    actions: tuple[str, ...]
    unexplained: int


def read_secure_boot(measurements: Measurements) -> SecureBootFacts:
    """Read Secure Boot's facts out of bound data in PCR 7.

    When it returns,

    - mode and databases come from variables under their own vendor GUID, measured by the firmware
      before the first separator of PCR 7, exactly once;
    - every authority and variable is data that PCR 7's digests cover.

    Raises MalformedError when a database is malformed (the firmware measured what it used, so this is a
    forgery or a broken firmware).
    """
    configuration: dict[str, list[bytes]] = {}
    authorities: list[Authority] = []
    variables: list[EfiVariable] = []
    actions: list[str] = []
    unexplained = 0
    early = measurements.before_separator(_SECURE_BOOT_PCR)
    late = measurements.after_separator(_SECURE_BOOT_PCR)
    for position, bound in enumerate((*early, *late)):
        if bound.is_separator:
            continue
        before_separator = position < len(early)
        kind = bound.event.untrusted_type
        # What the octets are is decided by the octets: the type is the log's word, and an authority must not
        # disappear by being called something else.
        variable = _variable(bound)
        if variable is not None and kind == EventType.EFI_VARIABLE_AUTHORITY:
            authorities.append(Authority(variable, before_separator))
        elif variable is not None and kind == EventType.EFI_VARIABLE_DRIVER_CONFIG and before_separator:
            variables.append(variable)
            if _VENDORS.get(variable.name) == variable.vendor:
                configuration.setdefault(variable.name, []).append(variable.content)
        elif variable is None and _is_action(bound) and before_separator:
            actions.append((bound.covered or b"").decode("ascii"))
        else:
            unexplained += 1
    return SecureBootFacts(
        secure_boot=_flag(configuration, "SecureBoot"),
        audit_mode=_flag(configuration, "AuditMode"),
        deployed_mode=_flag(configuration, "DeployedMode"),
        setup_mode=_flag(configuration, "SetupMode"),
        platform_key=_database(configuration, "PK"),
        key_exchange_keys=_database(configuration, "KEK"),
        allowed=_database(configuration, "db"),
        forbidden=_database(configuration, "dbx"),
        authorities=tuple(authorities),
        variables=tuple(variables),
        actions=tuple(actions),
        unexplained=unexplained,
    )


def _variable(bound: BoundEvent) -> EfiVariable | None:
    if bound.binding is not Binding.DATA or bound.covered is None:
        return None
    try:
        return parse_variable(bound.covered)
    except MalformedError:
        return None


def _is_action(bound: BoundEvent) -> bool:
    return (
        bound.event.untrusted_type in (EventType.ACTION, EventType.EFI_ACTION)
        and bound.covered is not None
        and bound.covered.isascii()
        and bound.covered.decode("ascii").isprintable()
    )


def _flag(configuration: dict[str, list[bytes]], name: str) -> bool | None:
    values = configuration.get(name, [])
    if len(values) != 1:
        return None
    # UEFI, section 3.3: one octet. An empty variable, as edk2 measures it where Secure Boot is not
    # supported or not set up, is not enabled.
    return values[0] == b"\x01"


def _database(configuration: dict[str, list[bytes]], name: str) -> SignatureDatabase | None:
    values = configuration.get(name, [])
    return parse_signature_database(values[0]) if len(values) == 1 else None
