"""A real Debian with systemd on a disk, for tests that need more than a shell; kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from affiant.folders import cache_folder
from affiant.vm.apt import Apt, machine_suite
from affiant.vm.kernels import GuestKernel

__all__ = ["SERVER_PACKAGES", "TRACING_PACKAGES", "add_modules", "debian_disk"]

_PACKAGES = ("systemd-sysv", "udev", "dbus", "kmod", "procps")
_SIZE = "2G"  # sparse

SERVER_PACKAGES = ("openssh-server", "auditd", "apparmor")
"""What a server runs beside systemd: it listens, it audits, it confines."""

TRACING_PACKAGES = ("linux-perf", "bpftrace")
"""What looks into a running kernel: samples, probes and BPF programs of a moment."""

_RECIPE = (
    # Root logs in on the serial console by itself: these guests have no network and no secrets.
    'mkdir -p "$1/etc/systemd/system/serial-getty@ttyS0.service.d"',
    'printf "[Service]\\nExecStart=\\nExecStart=-/sbin/agetty --autologin root --noclear %%I dumb\\n"'
    ' > "$1/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"',
    'printf "guest\\n" > "$1/etc/hostname"',
    'printf "PS1=\'guest# \'\\nstty cols 200\\n" >> "$1/root/.bashrc"',
)


def debian_disk(
    suite: str | None = None,
    *,
    more: tuple[str, ...] = (),
    hooks: tuple[str, ...] = (),
    early_hooks: tuple[str, ...] = (),
) -> Path:
    """Return a disk image with a minimal Debian; do not write to it: copy it (`cp --sparse=always`).

    `more` are further packages, `hooks` and `early_hooks` mmdebstrap's customize and essential hooks. Its
    first start takes about 45 s emulated; root is logged in on the serial console. Needs mmdebstrap and
    mke2fs on this host.
    """
    suite = suite or machine_suite()
    recipe = hashlib.sha256(
        repr((_PACKAGES + more, _SIZE, _RECIPE + hooks + early_hooks)).encode()
    ).hexdigest()[:12]
    folder = cache_folder() / "disks"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"debian-{suite}-{recipe}.img"
    with (folder / f".{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _make(suite, image, _PACKAGES + more, _RECIPE + hooks, early_hooks)
    return image


def add_modules(disk: Path, kernel: GuestKernel, names: tuple[str, ...]) -> None:
    """Write modules of `kernel`, and what they depend on, to a copy of a `debian_disk`; needs debugfs.

    The disk in the cache has none, as it is made for no kernel. The guest has to run depmod before modprobe
    finds them. Raises RuntimeError when the disk does not take them.
    """
    program = shutil.which("debugfs", path="/usr/sbin:/sbin") or "debugfs"
    folder = f"/usr/lib/modules/{kernel.release}"
    with tempfile.TemporaryDirectory(prefix="affiant-modules-") as made:
        commands = ["mkdir /usr/lib/modules", f"mkdir {folder}", f"cd {folder}"]
        for name, contents in kernel.module_chain(*names):
            (Path(made) / name).write_bytes(contents)
            commands.append(f"write {made}/{name} {name}.ko")
        script = Path(made) / "script"
        script.write_text("\n".join(commands) + "\n")
        command = [program, "-w", "-f", str(script), str(disk)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stderr
    # Its exit status tells nothing of the commands; its first line is its version.
    if complaints := said.splitlines()[1:]:
        raise RuntimeError(f"debugfs: {complaints[:4]}")


def _make(
    suite: str,
    image: Path,
    packages: tuple[str, ...],
    recipe: tuple[str, ...],
    early_hooks: tuple[str, ...],
) -> None:
    for program in ("mmdebstrap", "mke2fs"):
        if shutil.which(program, path="/usr/bin:/usr/sbin:/bin:/sbin") is None:
            raise RuntimeError(f"{program} is not installed")
    folder = cache_folder() / "apt" / suite
    Apt(folder, suite).update()
    new = image.with_suffix(".new")
    new.unlink(missing_ok=True)
    # Made inside mmdebstrap's run, where owners are right whoever runs it; bound elsewhere without
    # the file systems mounted below it, or /proc would be copied.
    fill = f'mke2fs -q -t ext4 -L guest -d "$m" "{new}" {_SIZE}'
    hooks = [*recipe, f'set -e; m=$(mktemp -d); mount --bind "$1" "$m"; {fill}; umount "$m"; rmdir "$m"']
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in _machine_options()]
    command += [f"--essential-hook={hook}" for hook in early_hooks]
    command += [f"--customize-hook={hook}" for hook in hooks]
    subprocess.run([*command, suite, "/dev/null", str(folder / "sources.list")], check=True, timeout=580)
    new.replace(image)


def _machine_options() -> list[str]:
    """Whether lists may be older than they allow, as this machine's apt is told; mmdebstrap asks for it."""
    command = ["apt-config", "dump", "--format", '%f "%v"%n', "Acquire::Check-Valid-Until"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
