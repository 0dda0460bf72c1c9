"""The PCRs that tell of the boot, closed to the guest once its firmware has handed over.

PCR 0 to 9 and 14 are extended by firmware, shim and GRUB alone, but the TPM lets the running guest
extend them too, and the order of events in *different* PCRs is not proven. So a guest could boot
something else that is signed, as the file that should have been GRUB, then measure the files and
commands of a GRUB that never ran and the kernel that it did not load, and show a log of that boot.
The gateway sees all of it in order.

Firmware measures the string `Exit Boot Services Returned with Success` into PCR 5 before anything of the
operating system's own runs (TCG PC Client Platform Firmware Profile, section 10.4.4; UEFI, section 7.4.6).
Nothing that follows belongs to the boot. systemd's separators are let through all the same
(`affiant.tpm.os_separator`): strings that say nothing of the boot, without which systemd restarts the
machine. BIOS firmware measures no such thing, and its boots prove no
Secure Boot: what they measure before their separators is all that counts of them.
"""

from __future__ import annotations

import struct
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import BOOT_PCRS
from affiant.tpm.octets import OctetReader
from affiant.tpm.os_separator import is_os_separator

__all__ = ["ends_boot", "extends_boot_pcr", "measures_os_separator"]

# TPM 2.0 Library, Part 2, section 6.5.2: the commands that change a PCR at locality 0. All of them name it by
# their first handle; a reset is refused by the TPM for PCR 0 to 15.
_EVENT_SEQUENCE_COMPLETE, _PCR_EVENT, _PCR_EXTEND = 0x185, 0x13C, 0x182
_EXTENDING: Final = frozenset({_EVENT_SEQUENCE_COMPLETE, _PCR_EVENT, _PCR_EXTEND})
_WITH_SESSIONS: Final = 0x8002
_BANKS: Final = {int(bank): bank for bank in HashAlgorithm}
_HEAD: Final = struct.Struct(">HIII")
_ACTION_PCR: Final = 5
_HANDED_OVER: Final = b"Exit Boot Services Returned with Success"
_MARKS: Final = (_HANDED_OVER, *(bank.digest(_HANDED_OVER) for bank in HashAlgorithm))


def extends_boot_pcr(command: bytes) -> int | None:
    """Return the PCR of the boot that a TPM command would extend, None for any other command."""
    if len(command) < _HEAD.size:
        return None
    _, _, code, pcr = _HEAD.unpack_from(command)
    return pcr if code in _EXTENDING and pcr in BOOT_PCRS else None


def ends_boot(command: bytes) -> bool:
    """Tell whether a command measures that boot services have ended, in whichever bank."""
    return extends_boot_pcr(command) == _ACTION_PCR and any(mark in command for mark in _MARKS)


def measures_os_separator(command: bytes) -> bool:
    """Tell whether a command extends a PCR with one of systemd's separators, in each bank, and nothing else.

    A command that this cannot read, and TPM2_PCR_Event (the TPM hashes: systemd does not use it) are none.
    """
    try:
        return _extends_with_os_separator(OctetReader(command, "TPM2_PCR_Extend"))
    except MalformedError:
        return False


def _extends_with_os_separator(reader: OctetReader) -> bool:
    """Read a TPM2_PCR_Extend (Part 3, section 22.2): handle, authorizations, TPML_DIGEST_VALUES."""
    tag, _, code, pcr = reader.u16(), reader.u32(), reader.u32(), reader.u32()
    if (tag, code) != (_WITH_SESSIONS, _PCR_EXTEND):
        return False
    reader.take(reader.u32())
    count = reader.u32()
    if not 0 < count <= len(HashAlgorithm):
        return False
    for _ in range(count):
        bank = _BANKS.get(reader.u16())
        if bank is None or not is_os_separator(pcr, reader.take(bank.digest_size), bank=bank):
            return False
    reader.finish()
    return True
