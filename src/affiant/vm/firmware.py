"""UEFI firmware for a guest: OVMF's code, shared and read-only, and its variables, one copy each.

The `ms` variables hold Microsoft's keys (PK, KEK, db, dbx), under which Debian's shim is signed,
so Secure Boot is enforced from the first boot. The code that belongs to them keeps variables
behind system management mode (QEMU machine option smm=on), out of the guest kernel's reach.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError

__all__ = ["Firmware", "find_firmware"]

_FOLDERS = (
    Path("/usr/share/OVMF"),  # Debian, Ubuntu
    Path("/usr/share/edk2/ovmf"),  # Fedora
    Path("/usr/share/edk2/x64"),  # Arch
)
# (code, variables): Debian's and Ubuntu's names first, then Fedora's and Arch's.
_SECURE = (
    ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"),
    ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    ("OVMF_CODE.secboot.fd", "OVMF_VARS.secboot.fd"),
)
_PLAIN = (
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
)


@dataclass(frozen=True, slots=True)
class Firmware:
    """A pair of firmware files; `variables_template` is to be copied for each guest."""

    code: Path
    variables_template: Path
    secure_boot: bool

    def make_variables(self, path: Path) -> None:
        """Give a guest its own copy of the variables at `path`, unless it has one."""
        if not path.exists():
            scratch = path.with_name(path.name + ".new")
            shutil.copyfile(self.variables_template, scratch)
            scratch.chmod(0o600)
            scratch.replace(path)


def find_firmware(*, secure_boot: bool) -> Firmware:
    """Return OVMF as this machine has it, or as the folder in AFFIANT_OVMF has it.

    Raises SetupError when there is none. The files must be raw images: not qcow2.
    """
    named = os.environ.get("AFFIANT_OVMF")
    for folder in [Path(named).absolute()] if named else _FOLDERS:
        for code, variables in _SECURE if secure_boot else _PLAIN:
            if (folder / code).exists() and (folder / variables).exists():
                return Firmware(folder / code, folder / variables, secure_boot)
    kind = "with Secure Boot keys " if secure_boot else ""
    raise SetupError(
        f"no UEFI firmware {kind}found on this machine",
        hint="scripts/install-packages, or see docs/install.md",
    )
