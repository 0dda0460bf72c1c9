"""The virtual machine as QEMU is told of it.

Fixed choices, each for a reason: q35 with system management mode (Secure Boot variables out of the
guest kernel's reach); RAM in a file shared with the monitor; a TPM with the CRB interface behind
the launcher's gateway; serial console on a Unix socket and in a log; no network; no default devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from affiant.launcher.settings import LAUNCHER_QMP, TPM_SOCKET
from affiant.model.errors import SetupError
from affiant.vm.acceleration import QEMU, Acceleration

__all__ = [
    "DirectBoot",
    "FirmwareBoot",
    "Machine",
    "parse_memory",
    "qemu_arguments",
]

_MIB = 1 << 20
_GIB = 1 << 30
_PATH_LIMIT = 107  # bytes of a Unix socket's path, unix(7)
_UNITS = {"": _MIB, "M": _MIB, "G": _GIB, "K": 1 << 10}


@dataclass(frozen=True, slots=True)
class FirmwareBoot:
    """UEFI firmware starts what is on the boot disk: a measured boot."""

    code: Path
    variables: Path  # this guest's own copy
    boot_disk: Path
    secure_boot: bool


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """QEMU puts the kernel into memory itself: quick, and nothing of the boot is measured."""

    kernel: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True)
class Machine:
    """One guest's hardware and the files behind it. Paths are absolute."""

    name: str
    ram: Path  # exists, with the size of the memory
    memory_bytes: int
    cpus: int
    acceleration: Acceleration
    boot: FirmwareBoot | DirectBoot
    operator_qmp: Path
    console_socket: Path
    console_log: Path
    tpm: bool
    disk: Path | None = None  # a raw or qcow2 image: the second virtio disk, the first with DirectBoot
    disk_format: str = "raw"


def parse_memory(text: str) -> int:
    """Return bytes from text such as `1G`, `512M` or `1024` (MiB). Raises SetupError when it is none."""
    match = re.fullmatch(r"([0-9]{1,9})([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise SetupError(f"not an amount of memory: {text!r}", hint="for example 1G or 512M")
    size = int(match[1]) * _UNITS[match[2].upper()]
    if size % (2 * _MIB) or not 128 * _MIB <= size <= 1024 * _GIB:
        raise SetupError(f"memory must be a multiple of 2 MiB between 128M and 1024G, not {text}")
    return size


def qemu_arguments(machine: Machine) -> list[str]:
    """Return QEMU's argument list, with the placeholders TPM_SOCKET and LAUNCHER_QMP in it.

    Raises SetupError when a path cannot be put into an argument or a socket address.
    """
    for socket in (machine.operator_qmp, machine.console_socket):
        if len(str(socket).encode()) > _PATH_LIMIT:
            raise SetupError(
                f"the socket path {socket} is longer than {_PATH_LIMIT} bytes",
                hint="set AFFIANT_HOME to a shorter folder",
            )
    arguments = [
        QEMU,
        *("-name", f"{machine.name},debug-threads=on"),
        *machine.acceleration.qemu_arguments,
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_bytes // _MIB}M"),
        *("-object", _memory(machine)),
        *("-machine", f"q35,smm={'on' if _needs_smm(machine) else 'off'},memory-backend=ram"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-nic", "none"),
        # A guest that breaks out of its devices can neither start programs nor gain privileges.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-chardev", f"socket,id=launcher,path={LAUNCHER_QMP},server=on,wait=off"),
        *("-mon", "chardev=launcher,mode=control"),
        *("-chardev", f"socket,id=operator,path={_quoted(machine.operator_qmp)},server=on,wait=off"),
        *("-mon", "chardev=operator,mode=control"),
        *("-chardev", _console(machine)),
        *("-serial", "chardev:console"),
    ]
    if machine.tpm:
        arguments += ["-chardev", f"socket,id=tpm,path={TPM_SOCKET}"]
        arguments += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    arguments += _boot(machine.boot)
    if machine.disk:
        arguments += _disk("data", machine.disk, machine.disk_format, order=2)
    return arguments


def _needs_smm(machine: Machine) -> bool:
    return isinstance(machine.boot, FirmwareBoot) and machine.boot.secure_boot


def _memory(machine: Machine) -> str:
    return f"memory-backend-file,id=ram,size={machine.memory_bytes},mem-path={_quoted(machine.ram)},share=on"


def _console(machine: Machine) -> str:
    socket, log = _quoted(machine.console_socket), _quoted(machine.console_log)
    return f"socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"


def _boot(boot: FirmwareBoot | DirectBoot) -> list[str]:
    if isinstance(boot, DirectBoot):
        files = ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd)]
        return [*files, "-append", boot.command_line]
    arguments = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_quoted(boot.code)}"]
    arguments += ["-drive", f"if=pflash,unit=1,format=raw,file={_quoted(boot.variables)}"]
    if boot.secure_boot:
        # Flash accepts writes from system management mode alone, and resuming from S3 would
        # need a firmware that keeps its secrets over it: both as OVMF's Secure Boot build expects.
        arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    arguments += ["-global", "ICH9-LPC.disable_s3=1"]
    return arguments + _disk("boot", boot.boot_disk, "raw", order=1)


def _disk(identity: str, path: Path, image_format: str, *, order: int) -> list[str]:
    node = f"if=none,id={identity},format={image_format},file={_quoted(path)}"
    return ["-drive", node, "-device", f"virtio-blk-pci,drive={identity},serial={identity},bootindex={order}"]


def _quoted(path: Path) -> str:
    """Return a path for one of QEMU's key=value lists, where a comma is written twice."""
    text = str(path)
    if not text.startswith("/") or "\n" in text or "{" in text:
        raise SetupError(f"QEMU needs an absolute path without braces, not {text!r}")
    return text.replace(",", ",,")
