"""How the boot volume was unlocked: FVEB_UNLOCK_FLAG_* in SIPAEVENT_BITLOCKER_UNLOCK, and PCR 11.

BitLocker's keys are sealed to PCR 11, which the boot manager extends (EV_COMPACT_HASH) once at its
start and once more when keys are no longer to be had: that closes ("caps") it.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["ACCESS_CAP", "ACCESS_START", "BITLOCKER_PCR", "BitLockerUnlock"]

BITLOCKER_PCR: Final = 11
ACCESS_START: Final = b"\x10\0\0\0"
"""What the boot manager measures into PCR 11 when it starts."""
ACCESS_CAP: Final = b"\xff\xff\0\0"
"""What closes PCR 11."""


class BitLockerUnlock(enum.IntFlag, boundary=enum.FlagBoundary.KEEP):
    """By which means a volume was unlocked; none where it is not encrypted. Unknown flags are kept."""

    CACHED = 0x001
    MEDIA = 0x002
    TPM = 0x004
    PIN = 0x010
    EXTERNAL = 0x020
    RECOVERY = 0x040
    PASSPHRASE = 0x080
    NETWORK = 0x100
    AUTO_UNLOCK = 0x200
