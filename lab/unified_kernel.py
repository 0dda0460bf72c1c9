"""Boots a real unified kernel image, measured from firmware to user space, and keeps the evidence.

    python -m lab.unified_kernel SUITE FOLDER

makes a Debian of SUITE (trixie or later) whose kernel, dracut's initial RAM disk and command line are one
image signed with OVMF's test key, with an add-on and a credential beside it; boots it under Secure Boot
with swtpm; lets it open an encrypted volume; quotes the PCRs with a key that the guest makes; and writes
FOLDER/NAME.bin (the firmware's log), NAME.log (systemd's) and NAME.json. About 3 minutes to make the disk,
and 5 emulated ones to boot. Needs openssl and debugfs beside what `debian_disk` needs, and Debian's ovmf.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from affiant.vm.acceleration import detect_acceleration
from affiant.vm.disk import make_system_partition
from affiant.vm.firmware import Firmware
from affiant.vm.machine import FirmwareBoot, Machine
from lab.console import Console
from lab.debian import debian_disk
from lab.plain import run_plain

__all__ = ["record_boot", "section_digests"]

# OVMF with a platform owner of its own, whose key everybody has: the ovmf package's test key.
_FIRMWARE: Final = Firmware(
    Path("/usr/share/OVMF/OVMF_CODE_4M.snakeoil.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"), True
)
_TEST_KEY: Final = "/usr/share/ovmf/PkKek-1-snakeoil"
_COMMAND_LINE: Final = "console=ttyS0 root=LABEL=guest rw"
_ADDED: Final = "printk.devkmsg=on"
_CREDENTIAL: Final = b"not encrypted, so systemd will not take it\n"
_NONCE: Final = b"affiant: the log of user space"
_BOOT_SECONDS: Final = 540  # emulated, on a busy host
_BANKS: Final = ("sha1", "sha256", "sha384", "sha512")
_KEPT: Final = ("quote", "signature", "ak")

_PACKAGES: Final = (
    *("linux-image-cloud-amd64", "dracut", "systemd-boot-efi", "systemd-ukify", "sbsigntool", "tpm2-tools"),
    *("libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64", "libtss2-tcti-device0t64"),
    *("systemd-cryptsetup", "cryptsetup-bin"),
)
_MORE_PACKAGES: Final = {"sid": ("systemd-tpm",)}  # split from systemd in Debian's 261
_DRACUT_MODULE: Final = {"trixie": "systemd-pcrphase"}  # renamed since

_DRACUT: Final = """\
hostonly="no"
compress="gzip"
add_dracutmodules+=" systemd tpm2-tss MODULE "
omit_dracutmodules+=" network multipath lvm mdraid dmraid btrfs nvdimm plymouth i18n crypt "
drivers+=" virtio_blk virtio_pci ext4 dm_crypt loop "
"""
# Before the kernel's package is configured, which makes the initial RAM disk.
_EARLY_HOOKS: Final = (
    f"mkdir -p \"$1/etc/dracut.conf.d\"; printf '%s' '{_DRACUT}' > \"$1/etc/dracut.conf.d/image.conf\"",
)
_UKIFY: Final = (
    "ukify build --secureboot-private-key=key --secureboot-certificate=certificate --signtool=sbsign"
)
_HOOKS: Final = (
    # The root file system is measured too (systemd-pcrfs-root.service), and the machine's identity.
    'echo "LABEL=guest / ext4 rw,x-systemd.pcrfs 0 1" > "$1/etc/fstab"',
    'echo 6166666961e74d4b8a556b6920766563 > "$1/etc/machine-id"',
    f'mkdir "$1/uki"; cp {_TEST_KEY}.pem "$1/uki/certificate"',
    f'openssl rsa -in {_TEST_KEY}.key -passin pass:snakeoil -out "$1/uki/key"',
    # What PCR 11 will be is signed, and the public key is measured.
    'cd "$1/uki"; openssl genrsa -out pcr.key 2048; openssl rsa -in pcr.key -pubout -out pcr.pub',
    f'chroot "$1" sh -e -c \'cd /uki; release=$(ls /lib/modules); {_UKIFY} --linux=/boot/vmlinuz-$release'
    " --initrd=/boot/initrd.img-$release --uname=$release --os-release=@/etc/os-release"
    " --pcr-private-key=pcr.key --pcr-public-key=pcr.pub --pcr-banks=sha256"
    f' --cmdline="{_COMMAND_LINE}" --output=image.efi\'',
    f'chroot "$1" sh -e -c \'cd /uki; {_UKIFY} --stub=/usr/lib/systemd/boot/efi/addonx64.efi.stub'
    f' --cmdline="{_ADDED}" --output=addon.efi; rm key pcr.key\'',
)

_IN_THE_GUEST: Final = (
    "dmesg -n 1; systemctl is-system-running --wait || true",
    "truncate -s 32M volume; echo -n secret > password; chmod 600 password",
    "modprobe loop; modprobe dm_crypt",
    "cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 volume password",
    "PATH=$PATH:/usr/lib/systemd; systemd-cryptsetup attach vault ~/volume ~/password tpm2-measure-pcr=yes",
    "tpm2_createek -G ecc -c ek.ctx -u ek; tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak",
    f"tpm2_quote -c ak.ctx -l sha256:$(seq -s, 0 15) -q {_NONCE.hex()} -m quote -s signature",
    "(cd /sys/class/tpm/tpm0; grep -r . pcr-*) > pcrs",
    "cp /sys/kernel/security/tpm0/binary_bios_measurements boot",
    "cp /run/log/systemd/tpm2-measure.log userspace",
)


def record_boot(suite: str, folder: Path) -> Path:
    """Boot `suite`'s image and write the vector into `folder`; return the path of its JSON."""
    with tempfile.TemporaryDirectory(prefix="affiant-image-") as scratch:
        machine = _machine(suite, Path(scratch))
        image = (Path(scratch) / "image.efi").read_bytes()
        with run_plain(machine) as guest, guest.console() as console:
            console.wait("guest# ", timeout=_BOOT_SECONDS)
            for command in _IN_THE_GUEST:
                console.run(command, timeout=240)
            versions = _versions(console)
            files = {name: _fetch(console, name) for name in ("boot", "userspace", "pcrs", *_KEPT)}
    name = f"debian-{suite}-systemd-{versions['systemd'].split('.', maxsplit=1)[0]}"
    (folder / f"{name}.bin").write_bytes(files["boot"])
    (folder / f"{name}.log").write_bytes(files["userspace"])
    vector = {
        "title": f"a unified kernel image of Debian {suite} under Secure Boot, opened volume included",
        "versions": versions,
        "nonce": _NONCE.hex(),
        "command_line": f"{_COMMAND_LINE} {_ADDED}",
        "sections": section_digests(image),
        **{kept: files[kept].hex() for kept in _KEPT},
        "pcrs": _pcrs(files["pcrs"].decode()),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(vector, indent=1) + "\n")
    return path


def _machine(suite: str, folder: Path) -> Machine:
    module = _DRACUT_MODULE.get(suite, "systemd-pcrextend")
    made = debian_disk(
        suite,
        more=_PACKAGES + _MORE_PACKAGES.get(suite, ()),
        hooks=_HOOKS,
        early_hooks=tuple(hook.replace("MODULE", module) for hook in _EARLY_HOOKS),
    )
    disk, boot, variables = folder / "disk.img", folder / "boot.img", folder / "variables.fd"
    subprocess.run(["cp", "--sparse=always", str(made), str(disk)], check=True)
    make_system_partition(
        boot,
        {
            "EFI/BOOT/BOOTX64.EFI": _from_disk(disk, "/uki/image.efi", folder),
            "EFI/BOOT/BOOTX64.EFI.extra.d/verbose.addon.efi": _from_disk(disk, "/uki/addon.efi", folder),
            "loader/credentials/affiant.note.cred": _CREDENTIAL,
        },
    )
    _FIRMWARE.make_variables(variables)
    return Machine(
        name="image",
        ram=Path(f"/dev/shm/{folder.name}.ram"),
        memory_bytes=1 << 30,
        cpus=2,
        acceleration=detect_acceleration(),
        boot=FirmwareBoot(_FIRMWARE.code, variables, boot, secure_boot=True),
        operator_qmp=folder / "qmp.sock",
        console_socket=folder / "console.sock",
        console_log=folder / "console.log",
        tpm=True,
        disk=disk,
    )


def _from_disk(disk: Path, name: str, folder: Path) -> bytes:
    """Read a file of an ext4 image."""
    target = folder / Path(name).name
    program = shutil.which("debugfs", path="/usr/sbin:/sbin") or "debugfs"
    subprocess.run([program, "-R", f"dump {name} {target}", str(disk)], check=True, capture_output=True)
    return target.read_bytes()


def section_digests(image: bytes) -> dict[str, str]:
    """Return the SHA-256 of the content of each section of a PE image.

    Each is as long as it is in memory (Microsoft PE Format, "Section Table": VirtualSize).
    """
    (header,) = struct.unpack_from("<I", image, 0x3C)
    count, optional = struct.unpack_from("<H12xH", image, header + 6)
    found = {}
    for place in range(count):
        entry = header + 24 + optional + 40 * place
        name, size, _, _, start = struct.unpack_from("<8sIIII", image, entry)
        content = image[start : start + size]
        found[name.rstrip(b"\0").decode("ascii")] = hashlib.sha256(content).hexdigest()
    return found


def _fetch(console: Console, name: str) -> bytes:
    """A serial line carries some 5 kB/s where all is emulated."""
    return gzip.decompress(base64.b64decode(console.run(f"gzip -c {name} | base64", timeout=240)))


def _versions(console: Console) -> dict[str, str]:
    listed = console.run(
        "dpkg-query -W -f '${Package} ${Version}\\n' systemd systemd-boot-efi dracut tpm2-tools"
    )
    versions = dict(line.split() for line in listed.splitlines())
    host = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "ovmf", "qemu-system-x86", "swtpm"]
    found = subprocess.run(host, check=True, capture_output=True, text=True)
    return (
        versions
        | {"linux": console.run("uname -r").strip()}
        | dict(map(str.split, found.stdout.splitlines()))
    )


def _pcrs(text: str) -> dict[str, Any]:
    """Lines such as `pcr-sha256/7:51B4..`."""
    values: dict[str, dict[str, str]] = {bank: {} for bank in _BANKS}
    for line in text.split():
        place, value = line.split(":")
        bank, pcr = place.removeprefix("pcr-").split("/")
        values[bank][pcr] = value.lower()
    return {bank: dict(sorted(pcrs.items(), key=lambda one: int(one[0]))) for bank, pcrs in values.items()}


def main() -> int:
    """Record one boot."""
    parser = argparse.ArgumentParser(prog="python -m lab.unified_kernel", description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(record_boot(arguments.suite, arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
