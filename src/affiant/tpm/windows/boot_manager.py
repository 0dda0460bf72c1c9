"""Was it Microsoft's boot manager that the firmware started? PCR 7 tells, when Secure Boot is on.

Windows' own events prove nothing about who measured them, since every system can extend PCR 11 to 14.
The firmware measures into PCR 7 the certificate by which it accepted each image (Platform Firmware
Profile, section 3.3.4.8), and Microsoft signs its boot manager under authorities of its own.
"""

from __future__ import annotations

import hashlib
from typing import Final

from affiant.tpm.efi_variable import IMAGE_SECURITY
from affiant.tpm.secure_boot import Authority, SecureBootFacts
from affiant.tpm.windows.microsoft import BOOT_MANAGER_AUTHORITIES

__all__ = ["boot_manager_by_microsoft"]

_OWNER: Final = 16  # EFI_SIGNATURE_DATA: the owner's GUID, then the certificate (UEFI, section 32.4.1)


def boot_manager_by_microsoft(secure_boot: SecureBootFacts) -> bool | None:
    """Whether all that was started after the firmware's own drivers is signed as Microsoft signs Windows.

    None where PCR 7 does not tell whether Secure Boot was on; False where it was off, where another
    authority was used, or none, or where something in PCR 7 is not explained.
    """
    if secure_boot.secure_boot is None:
        return None
    if not secure_boot.secure_boot or secure_boot.unexplained:
        return False
    used = [authority for authority in secure_boot.authorities if not authority.before_separator]
    return bool(used) and all(_is_windows(authority) for authority in used)


def _is_windows(authority: Authority) -> bool:
    source = authority.source
    if (source.vendor, source.name) != (IMAGE_SECURITY, "db"):
        return False
    return hashlib.sha256(source.content[_OWNER:]).digest() in BOOT_MANAGER_AUTHORITIES
