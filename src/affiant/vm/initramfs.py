"""A small root file system for guests: busybox, a shell on the serial console, a way to make load.

It is an initramfs, so a guest needs no disk. It is what tests and the demonstration boot; a real
guest brings its own initrd and disk.
"""

from __future__ import annotations

import gzip
from importlib import resources

from affiant.model.errors import SetupError
from affiant.vm.cpio import Entry, pack
from affiant.vm.kernels import GuestKernel
from affiant.vm.packages import PackageCache

__all__ = ["READY_LINE", "busybox", "busybox_initramfs"]

READY_LINE = "affiant: guest ready"
"""What the guest's console says once its shell takes commands."""

_FOLDERS = ("bin", "dev", "lib", "lib/boot-modules", "lib/load-modules", "proc", "root", "run", "sbin")
_MORE_FOLDERS = ("sys", "tmp", "usr", "usr/local", "usr/local/bin")
_BOOT_MODULES = ("virtio_pci", "virtio_blk")
# Signed, small, without hardware, and one depends on nothing: what the load helper puts in and out.
_LOAD_MODULES = ("dummy", "nls_ascii")


def busybox(cache: PackageCache) -> bytes:
    """Return a statically linked busybox from Debian's package; raises what `PackageCache.fetch` raises.

    Always the fetched one, for the measured initrd to be the same whatever this host has installed.
    """
    _, root = cache.contents("busybox-static")
    for name in ("bin/busybox", "usr/bin/busybox"):
        if (root / name).exists():
            return (root / name).read_bytes()
    raise SetupError("the package busybox-static holds no busybox")


def busybox_initramfs(kernel: GuestKernel, *, busybox: bytes) -> bytes:
    """Return a gzip-packed initramfs for `kernel`. Deterministic: same inputs, same bytes.

    In the guest: `load forks|modules|all`, `load status`, `load stop`; `poweroff`, `reboot`. With
    `root=DEVICE` (or UUID=, LABEL=) on the kernel command line it only leads to the system there.
    Modules that the kernel package does not have are left out.
    """
    entries = [Entry.folder(name) for name in (*_FOLDERS, *_MORE_FOLDERS)]
    # The kernel opens /dev/console before anything is mounted.
    entries.append(Entry("dev/console", 0o20600, device=(5, 1)))
    entries.append(Entry.file("bin/busybox", busybox, executable=True))
    entries.append(Entry.link("bin/sh", "busybox"))
    files = resources.files("affiant.vm") / "guest_files"
    entries.append(Entry.file("init", (files / "init").read_bytes(), executable=True))
    entries.append(Entry.file("usr/local/bin/load", (files / "load").read_bytes(), executable=True))
    for folder, names in (("boot-modules", _BOOT_MODULES), ("load-modules", _LOAD_MODULES)):
        for place, (name, contents) in enumerate(kernel.module_chain(*names)):
            entries.append(Entry.file(f"lib/{folder}/{place:02}-{name}.ko", contents))
    return gzip.compress(pack(entries), compresslevel=6, mtime=0)
