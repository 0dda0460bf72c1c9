"""Whether this host can really run guests with KVM.

A `/dev/kvm` alone proves nothing: some hosts offer one that cannot run stock kernels (a
paravirtual KVM, without `kvm_intel` or `kvm_amd` behind it), where QEMU aborts on a model-specific
register or the guest hangs in its decompressor. So KVM counts only when it is the processor's own
and QEMU can bring up a virtual CPU with it; everything else is emulated (TCG), slowly and surely.
"""

from __future__ import annotations

import os
import subprocess
from enum import StrEnum
from pathlib import Path

from affiant.model.errors import SetupError

__all__ = ["Acceleration", "detect_acceleration"]

QEMU = "qemu-system-x86_64"


class Acceleration(StrEnum):
    """How a guest's instructions are run."""

    KVM = "kvm"
    TCG = "tcg"

    @property
    def qemu_arguments(self) -> list[str]:
        """QEMU's options for this acceleration, and the CPU model that goes with it."""
        if self is Acceleration.KVM:
            return ["-accel", "kvm", "-cpu", "host"]
        return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def detect_acceleration(
    *, device: Path = Path("/dev/kvm"), modules: Path = Path("/sys/module"), qemu: str = QEMU
) -> Acceleration:
    """Return KVM when it works here, else TCG. AFFIANT_ACCELERATION=kvm or tcg decides instead.

    Raises SetupError when that variable holds something else.
    """
    if wanted := os.environ.get("AFFIANT_ACCELERATION"):
        try:
            return Acceleration(wanted)
        except ValueError:
            raise SetupError(f"AFFIANT_ACCELERATION must be kvm or tcg, not {wanted!r}") from None
    if not os.access(device, os.R_OK | os.W_OK):
        return Acceleration.TCG
    if not any((modules / name).is_dir() for name in ("kvm_intel", "kvm_amd")):
        return Acceleration.TCG
    return Acceleration.KVM if _brings_up_a_cpu(qemu) else Acceleration.TCG


def _brings_up_a_cpu(qemu: str) -> bool:
    """Tell whether QEMU with KVM gets as far as answering its monitor, the CPU stopped at reset."""
    arguments = [qemu, *Acceleration.KVM.qemu_arguments, "-machine", "q35", "-m", "64", "-S"]
    arguments += ["-nodefaults", "-display", "none", "-monitor", "stdio"]
    try:
        done = subprocess.run(
            arguments, input="info registers\nquit\n", capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "RIP=" in done.stdout
