"""Guests for tests: a small busybox system on a kernel of choice, prepared once in a folder."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from affiant.folders import cache_folder
from affiant.vm.acceleration import detect_acceleration
from affiant.vm.cpio import Entry, pack
from affiant.vm.disk import boot_chain, make_boot_disk
from affiant.vm.firmware import find_firmware
from affiant.vm.initramfs import READY_LINE, busybox, busybox_initramfs
from affiant.vm.kernels import DEFAULT_KERNEL, GuestKernel, debian_kernel
from affiant.vm.machine import DirectBoot, FirmwareBoot, Machine
from affiant.vm.packages import PackageCache
from lab.console import Console
from lab.debian import add_modules, debian_disk
from lab.modules.build import build_modules
from lab.plain import PlainGuest, run_plain
from lab.references import reference_of

__all__ = ["GuestPlan", "LabGuest", "load_modules", "plan_machine", "start_guest", "unload_modules"]

_BOOT_SECONDS = 300  # an emulated boot takes 30 s on an idle host; tests share theirs


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """What a test wants; the defaults are Debian's own kernel of this machine's release, Secure Boot on."""

    suite: str | None = None  # bookworm, trixie, sid; None: this machine's
    package: str = DEFAULT_KERNEL  # Debian's, of the kernel
    firmware: bool = True  # False: direct kernel boot, up in seconds, nothing measured
    secure_boot: bool = True
    tpm: bool = True
    memory_mib: int = 1024
    cpus: int = 2
    in_turn: bool = (
        False  # emulated vCPUs run one after the other, as a guest that patches itself often needs
    )
    append: str = ""
    debian: bool = False  # True: a real Debian with systemd on a disk of its own; False: busybox
    debian_packages: tuple[str, ...] = ()  # what that Debian has beside a minimum
    # Put into /lib/more-modules of the initramfs, or where a Debian's modprobe looks, with what they need.
    modules: tuple[str, ...] = ()
    test_modules: bool = False  # put those of `lab.modules` into /lib/test-modules

    def kernel(self) -> GuestKernel:
        """Return the kernel, fetched into the cache if it is not there."""
        return debian_kernel(PackageCache(cache_folder()), self.package, suite=self.suite)


def plan_machine(plan: GuestPlan, folder: Path, *, name: str = "lab") -> Machine:
    """Make all files of a guest in `folder` and return the machine, ready for `lab.plain.run_plain`."""
    cache = PackageCache(cache_folder())
    kernel = plan.kernel()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    initrd = folder / "initrd.img"
    initrd.write_bytes(
        busybox_initramfs(kernel, busybox=busybox(cache))
        + _more_modules(plan, kernel)
        + _test_modules(plan, kernel)
    )
    command_line = f"console=ttyS0 {'root=LABEL=guest ' * plan.debian}{plan.append}".strip()
    disk = folder / "disk.img" if plan.debian else None
    if disk:
        subprocess.run(
            ["cp", "--sparse=always", str(debian_disk(plan.suite, more=plan.debian_packages)), str(disk)],
            check=True,
        )
        if plan.modules:
            add_modules(disk, kernel, plan.modules)
    tag = hashlib.sha256(str(folder).encode()).hexdigest()[:10]
    machine = Machine(
        name=name,
        ram=Path(f"/dev/shm/affiant-lab-{name}-{tag}.ram"),
        memory_bytes=plan.memory_mib << 20,
        cpus=plan.cpus,
        acceleration=detect_acceleration(),
        boot=DirectBoot(kernel.vmlinuz, initrd, command_line),
        operator_qmp=folder / "qmp.sock",
        console_socket=folder / "console.sock",
        console_log=folder / "console.log",
        tpm=plan.tpm,
        disk=disk,
    )
    if not plan.firmware:
        return machine
    firmware = find_firmware(secure_boot=plan.secure_boot)
    variables, boot_disk = folder / "variables.fd", folder / "boot.img"
    firmware.make_variables(variables)
    make_boot_disk(
        boot_disk, chain=boot_chain(cache), kernel=kernel.vmlinuz, initrd=initrd, command_line=command_line
    )
    return replace(machine, boot=FirmwareBoot(firmware.code, variables, boot_disk, plan.secure_boot))


def _more_modules(plan: GuestPlan, kernel: GuestKernel) -> bytes:
    """Return a second archive with the plan's modules: the kernel unpacks one after the other."""
    chain = kernel.module_chain(*plan.modules)
    if plan.debian or not chain:
        return b""
    entries = [Entry.folder("lib/more-modules")]
    entries += [
        Entry.file(f"lib/more-modules/{place:03}-{name}.ko", data) for place, (name, data) in enumerate(chain)
    ]
    return gzip.compress(pack(entries), compresslevel=1, mtime=0)


def _test_modules(plan: GuestPlan, kernel: GuestKernel) -> bytes:
    """Return an archive with modules that do what cannot be done from outside."""
    if not plan.test_modules:
        return b""
    built = build_modules(reference_of(kernel))
    entries = [Entry.folder("lib/test-modules")]
    entries += [Entry.file(f"lib/test-modules/{name}.ko", data) for name, data in built.items()]
    return gzip.compress(pack(entries), compresslevel=1, mtime=0)


@dataclass(frozen=True, slots=True)
class LabGuest:
    """A booted guest whose shell takes commands, with one console that its users share."""

    plan: GuestPlan
    machine: Machine
    kernel: GuestKernel
    process: PlainGuest
    console: Console


@contextmanager
def start_guest(plan: GuestPlan) -> Iterator[LabGuest]:
    """Boot a guest without the launcher and wait for its shell; remove all of it when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="affiant-guest-"))
    try:
        machine = plan_machine(plan, folder)
        with run_plain(machine, in_turn=plan.in_turn) as process, process.console() as console:
            if not plan.debian:
                console.wait(READY_LINE, timeout=_BOOT_SECONDS)
            console.wait("guest# ", timeout=_BOOT_SECONDS)
            console.silence_kernel()
            if plan.debian and plan.modules:
                console.run("depmod")
            yield LabGuest(plan, machine, plan.kernel(), process, console)
    finally:
        shutil.rmtree(folder)


def load_modules(guest: LabGuest) -> None:
    """Load the modules that a busybox guest has for making load; none of them needs a device."""
    guest.console.run("for file in /lib/load-modules/*.ko; do insmod $file; done")


def unload_modules(guest: LabGuest) -> None:
    """Undo `load_modules`."""
    guest.console.run("for file in $(ls -r /lib/load-modules/*.ko); do n=${file##*-}; rmmod ${n%.ko}; done")
