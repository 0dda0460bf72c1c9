"""The disk that a guest's firmware boots from: an EFI system partition with shim, GRUB and a kernel.

    EFI/BOOT/BOOTX64.EFI    shim, signed by Microsoft: what the firmware starts
    EFI/BOOT/grubx64.efi    GRUB, signed by Debian: what shim starts
    EFI/BOOT/mmx64.efi      shim's key manager, so that shim's own measurements are the usual ones
    EFI/debian/grub.cfg     where Debian's signed GRUB looks for its configuration
    vmlinuz, initrd.img     the kernel, signed by Debian, and its initial file system

The image is a bare FAT file system (firmware takes it as a removable medium), made with mtools, so
no privileges and no loop devices are needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError
from affiant.vm.packages import PackageCache

__all__ = ["BootChain", "boot_chain", "grub_configuration", "make_boot_disk", "make_system_partition"]

_MIB = 1 << 20
_SECTOR = 512
_SLACK = 4 * _MIB  # FAT tables and folders
_TIME = 946684800  # 2000-01-01: every file's date, for the image to be the same each time
_SAFE_WORD = re.compile(r"[A-Za-z0-9_.,:=/@%+-]+")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class BootChain:
    """The signed boot loaders, as files."""

    shim: Path
    grub: Path
    key_manager: Path | None


def boot_chain(cache: PackageCache, *, suite: str | None = None) -> BootChain:
    """Return Debian's signed shim and GRUB, fetched and unpacked (see `PackageCache.fetch` for errors)."""
    _, shim = cache.contents("shim-signed", suite=suite)
    _, grub = cache.contents("grub-efi-amd64-signed", suite=suite)
    _, helpers = cache.contents("shim-helpers-amd64-signed", suite=suite)
    manager = helpers / "usr/lib/shim/mmx64.efi.signed"
    return BootChain(
        shim / "usr/lib/shim/shimx64.efi.signed",
        grub / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        manager if manager.exists() else None,
    )


def grub_configuration(command_line: str) -> str:
    """Return a grub.cfg that boots /vmlinuz with this kernel command line at once.

    Raises SetupError when the command line holds what GRUB's script language cannot quote.
    """
    try:
        words = [_grub_word(word) for word in shlex.split(command_line)]
    except ValueError as error:
        raise SetupError(f"kernel command line: {error}") from error
    return (
        "set timeout=0\n"
        "search --no-floppy --file --set=root /vmlinuz\n"
        f"{' '.join(['linux', '/vmlinuz', *words])}\n"
        "initrd /initrd.img\n"
        "boot\n"
    )


def _grub_word(word: str) -> str:
    if _SAFE_WORD.fullmatch(word):
        return word
    if "'" in word or not _PRINTABLE.fullmatch(word.replace(" ", "_")):
        raise SetupError(f"kernel command line: {word!r} has characters that GRUB cannot quote")
    return f"'{word}'"


def make_boot_disk(image: Path, *, chain: BootChain, kernel: Path, initrd: Path, command_line: str) -> str:
    """Write the disk image and return its SHA-256 in hex. Deterministic: same inputs, same bytes.

    Raises SetupError when mtools is missing or an input cannot be read.
    """
    configuration = grub_configuration(command_line).encode()
    try:
        contents = {
            "EFI/BOOT/BOOTX64.EFI": chain.shim.read_bytes(),
            "EFI/BOOT/grubx64.efi": chain.grub.read_bytes(),
            "EFI/debian/grub.cfg": configuration,
            "vmlinuz": kernel.read_bytes(),
            "initrd.img": initrd.read_bytes(),
        }
        if chain.key_manager:
            contents["EFI/BOOT/mmx64.efi"] = chain.key_manager.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot make the boot disk: {error}") from error
    return make_system_partition(image, contents)


def make_system_partition(image: Path, contents: Mapping[str, bytes]) -> str:
    """Write an EFI system partition with these files and return the image's SHA-256 in hex. Deterministic.

    Raises SetupError when mtools is missing.
    """
    with tempfile.TemporaryDirectory(prefix="affiant-esp-") as scratch:
        root = Path(scratch)
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) + _SLACK
        new = image.with_name(image.name + ".new")
        try:
            _format(new, -(-size // _MIB) * _MIB)
            _fill(new, root)
            new.replace(image)
        finally:
            new.unlink(missing_ok=True)
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _format(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    image.chmod(0o600)
    geometry = ["-h", "64", "-s", "32", "-T", str(size // _SECTOR)]
    _mtools("mformat", "-i", str(image), *geometry, "-N", "AFF1A400", "-v", "AFFIANT", "::")


def _fill(image: Path, root: Path) -> None:
    # One by one in the order of their names: the order in which a folder lists them is the host's.
    for path in sorted(root.rglob("*")):
        target = f"::/{path.relative_to(root)}"
        if path.is_dir():
            _mtools("mmd", "-i", str(image), target)
        else:
            os.utime(path, (_TIME, _TIME))
            _mtools("mcopy", "-i", str(image), "-m", str(path), target)


def _mtools(*arguments: str) -> None:
    environment = {**os.environ, "TZ": "UTC", "SOURCE_DATE_EPOCH": str(_TIME), "MTOOLSRC": "/dev/null"}
    try:
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError as error:
        raise SetupError(
            f"{arguments[0]} is not installed (package mtools)", hint="scripts/install-packages"
        ) from error
    if done.returncode != 0:
        raise SetupError(f"{arguments[0]} could not make the boot disk: {done.stderr.strip()[:200]}")
