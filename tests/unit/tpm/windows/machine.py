"""A truthful Windows machine in memory: what it is set to is what it measures.

`Machine()` boots with VBS and HVCI, as real logs show it. A test changes what the machine *is* (then it
measures that), or the entries of its `firmware()` (then the log lies about what was measured).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import rsa

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.quote import VerifiedQuote
from affiant.tpm.replay import VerifiedEventLog, replay_event_log
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS, WindowsBoot, read_windows_boot
from affiant.tpm.windows.sipa import Sipa
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Entry, Firmware, variable

SHA256 = HashAlgorithm.SHA256
ATTESTER = Attester()
PRIVATE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRODUCTION = "Microsoft Windows Production PCA 2011"
ZERO, ONE = b"\0", b"\x01"


def sipa(identifier: int, payload: bytes) -> bytes:
    """One tagged event."""
    return struct.pack("<II", identifier, len(payload)) + payload


def text(value: str) -> bytes:
    return (value + "\0").encode("utf-16-le")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def key_payload(key: rsa.RSAPublicKey) -> bytes:
    """VSM_IDK_INFO_PAYLOAD."""
    numbers = key.public_numbers()
    modulus = numbers.n.to_bytes(256, "big")
    return struct.pack("<4I", 1, 2048, 3, len(modulus)) + numbers.e.to_bytes(3, "big") + modulus


def module(
    path: str,
    *,
    issuer: str = PRODUCTION,
    publisher: str = "Microsoft Windows",
    validated: bytes = ONE,
    extra: bytes = b"",
) -> bytes:
    """A LOADED_MODULE_AGGREGATION."""
    return sipa(
        Sipa.LOADED_MODULE_AGGREGATION,
        sipa(Sipa.FILE_PATH, text(path))
        + sipa(Sipa.HASH_ALGORITHM_ID, struct.pack("<I", 0x800C))
        + sipa(Sipa.AUTHENTICODE_HASH, SHA256.digest(path.encode()))
        + sipa(Sipa.IMAGE_VALIDATED, validated)
        + sipa(Sipa.AUTHORITY_ISSUER, text(issuer))
        + sipa(Sipa.AUTHORITY_PUBLISHER, text(publisher))
        + extra,
    )


def default_settings() -> dict[int, bytes]:
    return {
        Sipa.APPLICATION_SVN: struct.pack("<I", 7),
        Sipa.OS_KERNEL_DEBUG: ZERO,
        Sipa.SYSTEM_ROOT: text("\\Windows"),
        Sipa.DATA_EXECUTION_PREVENTION: u64(0),
        Sipa.SAFE_MODE: ZERO,
        Sipa.WINPE: ZERO,
        Sipa.HYPERVISOR_LAUNCH_TYPE: u64(1),
        Sipa.HYPERVISOR_DEBUG: ZERO,
        Sipa.HYPERVISOR_IOMMU_POLICY: u64(0),
        Sipa.HYPERVISOR_BOOT_DMA_PROTECTION: ONE,
        Sipa.VSM_LAUNCH_TYPE: u64(1),
        Sipa.VBS_VSM_REQUIRED: ONE,
        Sipa.VBS_HVCI_POLICY: u64(1),
        Sipa.BOOT_DEBUGGING: ZERO,
        Sipa.TEST_SIGNING: ZERO,
        Sipa.FLIGHT_SIGNING: ZERO,
        Sipa.CODE_INTEGRITY: ONE,
        Sipa.BITLOCKER_UNLOCK: struct.pack("<I", 4),
    }


def default_modules() -> list[bytes]:
    system = "\\Windows\\system32\\"
    return [
        module(system + "winload.efi"),
        module(system + "hvix64.exe"),
        module(system + "securekernel.exe"),
        module(
            system + "drivers\\wd\\WdBoot.sys",
            issuer="Microsoft Code Signing PCA 2010",
            publisher="Microsoft Windows Early Launch Anti-malware Publisher",
        ),
    ]


@dataclass
class Machine:
    settings: dict[int, bytes] = field(default_factory=default_settings)
    modules: list[bytes] = field(default_factory=default_modules)
    keys: list[bytes] = field(
        default_factory=lambda: [sipa(Sipa.VSM_IDKS_INFO, key_payload(PRIVATE_KEY.public_key()))]
    )
    transfers: list[int] = field(default_factory=lambda: [1, 5])
    boot_counter: int = 7  # what the attester's quotes have as resetCount
    extra: list[bytes] = field(default_factory=list)  # more events within PCR 12's trust boundary
    closed: bool = True

    def firmware(self) -> Firmware:
        """What happened, as events with their digests."""
        firmware = Firmware()
        add = firmware.add
        add(0, EventType.S_CRTM_VERSION, b"1\0")
        config = EventType.EFI_VARIABLE_DRIVER_CONFIG
        add(7, config, variable(EFI_GLOBAL, "SecureBoot", ONE))
        for pcr in range(8):
            add(pcr, EventType.SEPARATOR, bytes(4))
        certificate = EFI_GLOBAL.bytes_le + b"a certificate"
        add(7, EventType.EFI_VARIABLE_AUTHORITY, variable(IMAGE_SECURITY, "db", certificate))
        add(11, EventType.COMPACT_HASH, b"\x10\0\0\0")
        settings = b"".join(sipa(identifier, payload) for identifier, payload in self.settings.items())
        counters = sipa(Sipa.BOOT_COUNTER, u64(self.boot_counter)) + sipa(Sipa.EVENT_COUNTER, u64(99))
        transfers = b"".join(
            sipa(Sipa.TRANSFER_CONTROL, struct.pack("<I", value)) for value in self.transfers
        )
        elam = sipa(
            Sipa.ELAM_AGGREGATION,
            sipa(Sipa.ELAM_KEY_NAME, text("Windows Defender")) + sipa(Sipa.ELAM_MEASURED, b"measured"),
        )
        self.tag(firmware, 12, counters + transfers + settings + elam + b"".join(self.extra))
        self.tag(firmware, 13, settings + b"".join(self.modules))
        add(14, EventType.EVENT_TAG, sipa(Sipa.AUTHORITY_PUBLIC_KEY, b"a public key"))
        if self.keys:
            self.tag(firmware, 12, b"".join(self.keys))
        if self.closed:
            add(11, EventType.COMPACT_HASH, b"\xff\xff\0\0")
            for pcr in (12, 13, 14):
                add(pcr, EventType.SEPARATOR, b"WBCL")
        return firmware

    @staticmethod
    def tag(firmware: Firmware, pcr: int, events: bytes) -> None:
        """Measure `events` within a trust boundary."""
        firmware.add(pcr, EventType.EVENT_TAG, sipa(Sipa.TRUST_BOUNDARY, events))

    def quote(self) -> VerifiedQuote:
        """A quote after what really happened."""
        return quote(self.firmware())

    def read(self, told: Firmware | None = None, *, pcrs: tuple[int, ...] = WINDOWS_BOOT_PCRS) -> WindowsBoot:
        """What a verifier reads from `told`, by default the truth."""
        return read(told or self.firmware(), self.quote(), pcrs=pcrs)


def quote(firmware: Firmware) -> VerifiedQuote:
    return ATTESTER.quote(firmware.pcrs())


def replayed(
    told: Firmware, quoted: VerifiedQuote, *, pcrs: tuple[int, ...] = WINDOWS_BOOT_PCRS
) -> VerifiedEventLog:
    return replay_event_log(parse_event_log(told.log()), quoted, required_pcrs=pcrs)


def read(told: Firmware, quoted: VerifiedQuote, *, pcrs: tuple[int, ...] = WINDOWS_BOOT_PCRS) -> WindowsBoot:
    return read_windows_boot(
        replayed(told, quoted, pcrs=pcrs), expected_reset_count=quoted.clock_info.reset_count
    )


def position(firmware: Firmware, pcr: int, part: bytes = b"") -> int:
    """The first entry of a PCR whose data holds `part`."""
    return next(i for i, e in enumerate(firmware.entries) if e.pcr == pcr and part in e.data)


__all__ = ["Entry", "Machine"]
