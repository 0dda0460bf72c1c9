"""A truthful firmware in memory: it measures, writes the log, and keeps the PCRs.

`Firmware.healthy()` boots as OVMF, shim and GRUB do. A test edits the list of entries, or adds
what an attacker would, and asks for the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY, SHIM_LOCK
from affiant.tpm.event_types import EventType
from affiant.tpm.signature_database import encode_certificate_list

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
VENDOR_CERTIFICATE = b"\x30\x82\x01\x00" + bytes(256)  # as long as its DER header says
KERNEL = b"the kernel file"
KERNEL_IMAGE = b"the kernel's Authenticode content"
COMMAND_LINE = "/vmlinuz root=/dev/vda1 ro"


def variable(vendor: UUID, name: str, content: bytes) -> bytes:
    """A UEFI_VARIABLE_DATA."""
    return (
        struct.pack("<16sQQ", vendor.bytes_le, len(name), len(content)) + name.encode("utf-16-le") + content
    )


@dataclass(frozen=True)
class Entry:
    """One event: `measured` is what the digest is of (None: what the log holds)."""

    pcr: int
    type: int
    data: bytes
    measured: bytes | None = None

    def digest(self, bank: HashAlgorithm) -> bytes:
        return bank.digest(self.data if self.measured is None else self.measured)


@dataclass
class Firmware:
    banks: Sequence[HashAlgorithm] = (SHA1, SHA256)
    entries: list[Entry] = field(default_factory=list)
    locality: int = 0

    @classmethod
    def healthy(cls) -> Firmware:
        firmware = cls()
        add = firmware.add
        add(0, EventType.S_CRTM_VERSION, "1.0\0".encode("utf-16-le"))
        add(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), b"the firmware volume")
        config = EventType.EFI_VARIABLE_DRIVER_CONFIG
        keys = encode_certificate_list(EFI_GLOBAL, b"\x30\x82\x00\x04keys")
        add(7, config, variable(EFI_GLOBAL, "SecureBoot", b"\x01"))
        for name in ("PK", "KEK"):
            add(7, config, variable(EFI_GLOBAL, name, keys))
        for name in ("db", "dbx"):
            add(7, config, variable(IMAGE_SECURITY, name, keys))
        add(7, EventType.SEPARATOR, bytes(4))
        boot_order = variable(EFI_GLOBAL, "BootOrder", b"\0\0")
        add(1, EventType.EFI_VARIABLE_BOOT, boot_order, b"\0\0")
        add(4, EventType.EFI_ACTION, b"Calling EFI Application from Boot Option")
        for pcr in range(7):
            add(pcr, EventType.SEPARATOR, bytes(4))
        authority = EventType.EFI_VARIABLE_AUTHORITY
        add(7, authority, variable(IMAGE_SECURITY, "db", EFI_GLOBAL.bytes_le + b"Microsoft's certificate"))
        image = EventType.EFI_BOOT_SERVICES_APPLICATION
        add(4, image, b"device path of shim", b"shim")
        mok_list = encode_certificate_list(SHIM_LOCK, VENDOR_CERTIFICATE)
        add(14, EventType.IPL, b"MokList\0", mok_list)
        add(7, authority, variable(SHIM_LOCK, "SbatLevel", b"sbat,1,2025021800\nshim,4\n"))
        add(14, EventType.IPL, b"MokListTrusted\0", b"\x01")
        add(7, authority, variable(SHIM_LOCK, "MokListRT", SHIM_LOCK.bytes_le + VENDOR_CERTIFICATE))
        add(4, image, b"device path of GRUB", b"grub")
        firmware.command("source (hd0)/EFI/debian/grub.cfg")
        firmware.file("(hd0)/EFI/debian/grub.cfg", b"grub.cfg")
        firmware.command("linux " + COMMAND_LINE)
        firmware.file("/vmlinuz", KERNEL)
        add(4, image, bytes(32), KERNEL_IMAGE)
        firmware.command(COMMAND_LINE, prefix="kernel_cmdline: ")
        firmware.command("initrd /initrd.img")
        firmware.file("/initrd.img", b"initrd")
        add(5, EventType.EFI_ACTION, b"Exit Boot Services Invocation")
        return firmware

    def add(self, pcr: int, kind: int, data: bytes, measured: bytes | None = None) -> None:
        self.entries.append(Entry(pcr, kind, data, measured))

    def command(self, text: str, *, prefix: str = "grub_cmd: ") -> None:
        self.add(8, EventType.IPL, (prefix + text).encode() + b"\0", text.encode())

    def file(self, path: str, content: bytes) -> None:
        self.add(9, EventType.IPL, path.encode() + b"\0", content)

    def find(self, part: bytes, *, pcr: int | None = None) -> int:
        """The position of the first entry whose data holds `part`."""
        return next(i for i, e in enumerate(self.entries) if part in e.data and (pcr is None or e.pcr == pcr))

    def edit(self, position: int, **changes: object) -> None:
        """Change what the *log* says of an entry: what was measured stays."""
        entry = self.entries[position]
        measured = entry.data if entry.measured is None else entry.measured
        self.entries[position] = replace(entry, measured=measured, **changes)  # type: ignore[arg-type]

    def pcrs(self, bank: HashAlgorithm = SHA256) -> dict[int, bytes]:
        """What a TPM holds after these measurements."""
        values = {pcr: bytes(bank.digest_size) for pcr in range(24)}
        values.update(dict.fromkeys(range(17, 23), b"\xff" * bank.digest_size))
        values[0] = bytes(bank.digest_size - 1) + bytes([self.locality])
        for entry in self.entries:
            if entry.type != EventType.NO_ACTION:
                values[entry.pcr] = bank.digest(values[entry.pcr] + entry.digest(bank))
        return values

    def head(self, banks: Sequence[HashAlgorithm] | None = None) -> bytes:
        """The Specification ID event."""
        declared = self.banks if banks is None else banks
        spec = struct.pack("<16sIBBBBI", b"Spec ID Event03\0", 0, 0, 2, 0, 2, len(declared))
        spec += b"".join(struct.pack("<HH", bank, bank.digest_size) for bank in declared) + b"\0"
        return struct.pack("<II20sI", 0, EventType.NO_ACTION, bytes(20), len(spec)) + spec

    def log(self) -> bytes:
        """The crypto-agile log."""
        return self.head() + b"".join(self.encode(entry) for entry in self.entries)

    def encode(self, entry: Entry) -> bytes:
        digests = b"".join(struct.pack("<H", bank) + entry.digest(bank) for bank in self.banks)
        head = struct.pack("<III", entry.pcr, entry.type, len(self.banks))
        return head + digests + struct.pack("<I", len(entry.data)) + entry.data

    def legacy_log(self) -> bytes:
        """The log in the format of TPM 1.2."""
        return b"".join(
            struct.pack("<II20sI", entry.pcr, entry.type, entry.digest(SHA1), len(entry.data)) + entry.data
            for entry in self.entries
        )

    def startup_locality(self, said: int) -> None:
        """What the log says about locality; the truth is in `locality`."""
        data = b"StartupLocality\0" + bytes([said])
        self.entries.insert(0, Entry(0, EventType.NO_ACTION, data, b""))
