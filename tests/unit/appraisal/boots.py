"""Boots to judge: a truthful Linux machine and a truthful Windows machine, proven or only told."""

from __future__ import annotations

from pathlib import Path

from affiant.appraisal.boot_description import (
    BootDescription,
    describe_untrusted_boot,
    describe_verified_boot,
)
from affiant.appraisal.key_names import entry_identity
from affiant.appraisal.policy import MICROSOFT_WINDOWS_PCA_2011, AppraisalPolicy
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import read_untrusted_boot
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.signature_database import encode_certificate_list
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Entry, Firmware, variable
from tests.unit.tpm.windows.machine import Machine

ATTESTER = Attester()
VECTORS = Path(__file__).parents[2] / "vectors" / "boot"
DEFAULTS = AppraisalPolicy()


def proven(firmware: Firmware, *, policy: AppraisalPolicy = DEFAULTS) -> BootDescription:
    """The boot of `firmware` with a quote after what happened."""
    return describe_verified_boot(ATTESTER.quote(firmware.pcrs()), firmware.log(), policy=policy)


def told(log: bytes, *, policy: AppraisalPolicy = DEFAULTS) -> BootDescription:
    """What a log says, without any quote."""
    return describe_untrusted_boot(parse_event_log(log), policy=policy)


def windows_authority() -> bytes:
    """Microsoft's certificate for Windows' boot manager, out of the db of a recorded boot."""
    log = parse_event_log((VECTORS / "debian12-secure-boot.bin").read_bytes())
    allowed = read_untrusted_boot(log, bank=HashAlgorithm.SHA256).secure_boot.allowed
    assert allowed is not None
    (found,) = [e.content for e in allowed.entries() if entry_identity(e) == MICROSOFT_WINDOWS_PCA_2011]
    return found


def windows_firmware(machine: Machine | None = None) -> Firmware:
    """A Windows machine whose boot manager Secure Boot accepted by Microsoft's own certificate."""
    firmware = (machine or Machine()).firmware()
    certificate = windows_authority()
    position = firmware.find(b"a certificate")
    data = variable(IMAGE_SECURITY, "db", EFI_GLOBAL.bytes_le + certificate)
    firmware.entries[position] = Entry(7, EventType.EFI_VARIABLE_AUTHORITY, data)
    allowed = variable(IMAGE_SECURITY, "db", encode_certificate_list(EFI_GLOBAL, certificate))
    config = EventType.EFI_VARIABLE_DRIVER_CONFIG
    start = firmware.find("SecureBoot".encode("utf-16-le")) + 1
    firmware.entries[start:start] = [
        Entry(7, config, allowed),
        Entry(7, config, variable(IMAGE_SECURITY, "dbx", b"")),
    ]
    return firmware
