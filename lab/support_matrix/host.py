"""What the guests ran on, as its own programs tell."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from affiant.model.errors import AffiantError
from affiant.vm.acceleration import QEMU, Acceleration, detect_acceleration
from affiant.vm.firmware import find_firmware
from lab.support_matrix.seen import Host

__all__ = ["describe_host"]

_SECONDS = 30
_UNKNOWN = "unknown"
_ACCELERATIONS = {Acceleration.KVM: "KVM", Acceleration.TCG: "emulated (TCG)"}


def describe_host() -> Host:
    """Return the versions of what runs guests; what does not answer is "unknown"."""
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    return Host(
        system=f"{_system()}, {user}, {os.cpu_count()} processors",
        qemu=_packaged("qemu-system-x86", otherwise=_first_line(QEMU, "--version")),
        firmware=_packaged("ovmf", otherwise=_firmware()),
        swtpm=_packaged("swtpm", otherwise=_first_line("swtpm", "--version")),
        acceleration=_ACCELERATIONS[detect_acceleration()],
        python=platform.python_version(),
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", _UNKNOWN)
    except OSError:
        return _UNKNOWN


def _packaged(package: str, *, otherwise: str) -> str:
    """Return the version of an installed Debian package: more exact than what programs say of themselves."""
    if shutil.which("dpkg-query") is None:
        return otherwise
    return _first_line("dpkg-query", "-W", "-f", "${Version}", package) or otherwise


def _firmware() -> str:
    try:
        return str(find_firmware(secure_boot=True).code)
    except AffiantError:
        return _UNKNOWN


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
