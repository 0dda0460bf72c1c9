"""What a guest boots from: archive, disk, configuration."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from affiant.model.errors import SetupError
from affiant.vm.cpio import Entry, pack
from affiant.vm.disk import BootChain, grub_configuration, make_boot_disk
from affiant.vm.firmware import Firmware
from affiant.vm.initramfs import busybox_initramfs
from affiant.vm.kernels import GuestKernel

_needs_mtools = pytest.mark.skipif(shutil.which("mformat") is None, reason="mtools is not installed")
_needs_busybox = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox, the other reader")


@_needs_busybox
def test_another_reader_understands_the_archive(tmp_path: Path) -> None:
    entries = [
        Entry.folder("bin"),
        Entry.file("bin/odd", b"12345", executable=True),
        Entry.link("bin/sh", "odd"),
        Entry.file("empty", b""),
    ]
    done = subprocess.run(["busybox", "cpio", "-idm"], cwd=tmp_path, input=pack(entries), check=True)
    assert done.returncode == 0
    assert (tmp_path / "bin/sh").readlink() == Path("odd")
    assert (tmp_path / "bin/odd").read_bytes() == b"12345"
    assert stat.S_IMODE((tmp_path / "bin/odd").stat().st_mode) == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize("name", ["/etc", "", "TRAILER!!!"])
def test_an_archive_refuses_names_with_another_meaning(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        pack([Entry.file(name, b"")])


def test_the_initial_file_system_is_the_same_each_time() -> None:
    kernel = GuestKernel("1.2.3", Path("/nonexistent"), None, ())
    first = busybox_initramfs(kernel, busybox=b"program")
    assert first == busybox_initramfs(kernel, busybox=b"program")
    assert first != busybox_initramfs(kernel, busybox=b"other")


def test_the_configuration_boots_one_kernel_at_once() -> None:
    text = grub_configuration("console=ttyS0 root=/dev/vda")
    assert "linux /vmlinuz console=ttyS0 root=/dev/vda\n" in text
    assert "set timeout=0\n" in text


def test_words_with_a_meaning_for_the_boot_loader_are_quoted() -> None:
    assert "'x=$y;reboot'" in grub_configuration('"x=$y;reboot"')


@pytest.mark.parametrize("line", ["a\nreboot", '"it\'s"', "na\u00efve", 'open"', "x\x07"])
def test_a_command_line_cannot_break_out_of_its_line(line: str) -> None:
    """Newlines separate words like spaces do; what GRUB could not quote is refused."""
    try:
        text = grub_configuration(line)
    except SetupError:
        return
    assert text.count("\n") == 5
    assert "\nreboot" not in text


@_needs_mtools
def test_the_disk_is_the_same_each_time_and_holds_the_boot_chain(tmp_path: Path) -> None:
    for name, size in (
        ("shim", 3000),
        ("grub", 70_000),
        ("mm", 10),
        ("vmlinuz", 5 << 20),
        ("initrd", 123_456),
    ):
        (tmp_path / name).write_bytes(name.encode() * (size // len(name)))
    chain = BootChain(tmp_path / "shim", tmp_path / "grub", tmp_path / "mm")
    digests = [
        make_boot_disk(
            tmp_path / f"disk{n}",
            chain=chain,
            kernel=tmp_path / "vmlinuz",
            initrd=tmp_path / "initrd",
            command_line="quiet",
        )
        for n in (1, 2)
    ]
    assert digests[0] == digests[1]
    for inside, source in (
        ("EFI/BOOT/BOOTX64.EFI", "shim"),
        ("EFI/BOOT/grubx64.efi", "grub"),
        ("EFI/BOOT/mmx64.efi", "mm"),
        ("vmlinuz", "vmlinuz"),
        ("initrd.img", "initrd"),
    ):
        done = subprocess.run(
            ["mtype", "-i", tmp_path / "disk1", f"::/{inside}"], check=True, capture_output=True
        )
        assert done.stdout == (tmp_path / source).read_bytes(), inside
    assert not list(tmp_path.glob("*.new"))


@_needs_mtools
def test_a_missing_boot_file_leaves_no_disk(tmp_path: Path) -> None:
    chain = BootChain(tmp_path / "none", tmp_path / "none", None)
    with pytest.raises(SetupError, match="cannot make the boot disk"):
        make_boot_disk(
            tmp_path / "disk", chain=chain, kernel=tmp_path / "k", initrd=tmp_path / "i", command_line=""
        )
    assert list(tmp_path.iterdir()) == []


def test_each_guest_keeps_its_own_variables(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.write_bytes(b"fresh")
    firmware = Firmware(tmp_path / "code", template, secure_boot=True)
    mine = tmp_path / "mine"
    firmware.make_variables(mine)
    assert mine.read_bytes() == b"fresh"
    mine.write_bytes(b"used")
    firmware.make_variables(mine)
    assert mine.read_bytes() == b"used"
    assert stat.S_IMODE(mine.stat().st_mode) == 0o600
