"""What a boot proves, and that bent data, types and names prove nothing."""

from __future__ import annotations

import pytest

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.binding import Binding, bind_event
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot, verify_boot
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY, SHIM_LOCK
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import MeasuredEvent
from affiant.tpm.signature_database import encode_certificate_list
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import (
    COMMAND_LINE,
    KERNEL,
    KERNEL_IMAGE,
    SHA256,
    VENDOR_CERTIFICATE,
    Entry,
    Firmware,
    variable,
)

ATTESTER = Attester()
HEALTHY = Firmware.healthy()
CONFIG = EventType.EFI_VARIABLE_DRIVER_CONFIG
AUTHORITY = EventType.EFI_VARIABLE_AUTHORITY
IMAGE = EventType.EFI_BOOT_SERVICES_APPLICATION
ALL_TRUE = {
    "firmware_measured",
    "secure_boot_enabled",
    "secure_boot_explained",
    "firmware_debugging_disabled",
    "dma_protection_enabled",
    "shim_validation_enabled",
    "machine_owner_keys_absent",
    "boot_commands_explained",
}


def boot(firmware: Firmware, *, required: tuple[int, ...] = BOOT_PCRS) -> VerifiedBoot:
    """The log of `firmware` with a quote of what it really measured."""
    return verify_boot(ATTESTER.quote(firmware.pcrs()), firmware.log(), required_pcrs=required)


def utf16(name: str) -> bytes:
    return name.encode("utf-16-le")


def measured(kind: int, data: bytes, of: bytes) -> MeasuredEvent:
    return MeasuredEvent(1, 4, SHA256.digest(of), kind, data)


# the healthy machine


def test_a_healthy_boot_proves_every_claim() -> None:
    verified = boot(HEALTHY)
    assert {claim.name for claim in verified.claims if claim.value} == ALL_TRUE
    assert {claim.name for claim in verified.claims} == ALL_TRUE
    assert verified.firmware_version == "1.0"
    assert verified.command_line == COMMAND_LINE
    assert SHA256.digest(KERNEL) in verified.kernel_candidates
    assert verified.applications[-1].digest == SHA256.digest(KERNEL_IMAGE)
    assert verified.shim.authorities == (VENDOR_CERTIFICATE,)
    assert verified.launch == b"\xff" * 32
    with pytest.raises(ValueError, match="no boot claim"):
        verified.claim("healthy")


def test_a_claim_whose_pcr_was_not_replayed_is_unknown() -> None:
    for missing, unknown in (
        (7, {"secure_boot_enabled", "secure_boot_explained", "shim_validation_enabled", "firmware_measured"}),
        (8, {"boot_commands_explained"}),
        (14, {"machine_owner_keys_absent"}),
        (0, {"firmware_measured"}),
    ):
        verified = boot(HEALTHY, required=tuple(pcr for pcr in BOOT_PCRS if pcr != missing))
        for name in unknown:
            assert verified.claim(name) is None


def test_an_empty_log_claims_nothing() -> None:
    verified = boot(Firmware())
    assert verified.claim("firmware_measured") is False
    assert verified.claim("secure_boot_enabled") is None
    assert verified.claim("shim_validation_enabled") is None
    assert verified.command_line is None
    assert verified.kernel_candidates == ()


def test_a_selection_without_pcr_17_has_no_launch() -> None:
    quote = ATTESTER.quote(HEALTHY.pcrs(), selected=BOOT_PCRS)
    assert verify_boot(quote, HEALTHY.log()).launch is None


# binding


@pytest.mark.parametrize(
    "kind",
    [
        EventType.SEPARATOR,
        EventType.ACTION,
        EventType.EFI_ACTION,
        EventType.S_CRTM_VERSION,
        EventType.EFI_VARIABLE_DRIVER_CONFIG,
    ],
)
def test_changed_data_of_a_type_that_is_always_hashed_is_refused(kind: EventType) -> None:
    with pytest.raises(ForgedError, match="is not what was measured"):
        bind_event(measured(kind, b"what the log says", b"what was measured"), bank=SHA256)


def test_changed_secure_boot_data_is_refused() -> None:
    firmware = Firmware.healthy()
    position = firmware.find(utf16("SecureBoot"))
    firmware.entries[position] = Entry(7, CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\0"))
    firmware.edit(position, data=variable(EFI_GLOBAL, "SecureBoot", b"\x01"))
    with pytest.raises(ForgedError, match="EV_EFI_VARIABLE_DRIVER_CONFIG, PCR 7"):
        boot(firmware)


@pytest.mark.parametrize(
    "kind", [EventType.EFI_BOOT_SERVICES_APPLICATION, EventType.IPL, EventType.EVENT_TAG, 0x12345678]
)
def test_data_that_no_digest_covers_stays_untrusted(kind: int) -> None:
    bound = bind_event(measured(kind, b"grub_cmd: a claim\0", b"something else"), bank=SHA256)
    assert bound.binding is Binding.NOTHING
    assert bound.covered is None
    assert bound.digest == SHA256.digest(b"something else")


@pytest.mark.parametrize(
    ("data", "of"),
    [
        (b"grub_cmd: boot\0", b"boot"),
        (b"kernel_cmdline: boot\0", b"boot"),
        (b"grub_cmd boot\0", b"boot\0"),
        (b"grub_kernel_cmdline boot\0", b"boot\0"),
    ],
)
def test_strings_are_covered_without_their_prefix(data: bytes, of: bytes) -> None:
    bound = bind_event(measured(EventType.IPL, data, of), bank=SHA256)
    assert (bound.binding, bound.covered) == (Binding.STRING, b"boot")


def test_a_boot_variable_is_covered_without_its_name() -> None:
    data = variable(EFI_GLOBAL, "BootOrder", b"\1\0")
    bound = bind_event(measured(EventType.EFI_VARIABLE_BOOT, data, b"\1\0"), bank=SHA256)
    assert (bound.binding, bound.covered) == (Binding.VARIABLE_CONTENT, b"\1\0")


def test_a_separator_is_one_under_any_name() -> None:
    for kind in (EventType.SEPARATOR, EventType.IPL, EventType.EFI_ACTION, EventType.POST_CODE):
        bound = bind_event(measured(kind, b"nothing of the kind", bytes(4)), bank=SHA256)
        assert bound.is_separator
        assert not bound.is_error_separator
    assert bind_event(measured(EventType.SEPARATOR, b"why", b"\1\0\0\0"), bank=SHA256).is_error_separator


# firmware and Secure Boot


def test_secure_boot_off_is_told() -> None:
    firmware = Firmware.healthy()
    firmware.entries[firmware.find(utf16("SecureBoot"))] = Entry(
        7, CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\0")
    )
    assert boot(firmware).claim("secure_boot_enabled") is False


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x01\x01"])
def test_secure_boot_is_on_only_when_it_is_one(content: bytes) -> None:
    firmware = Firmware.healthy()
    data = variable(EFI_GLOBAL, "SecureBoot", content)
    firmware.entries[firmware.find(utf16("SecureBoot"))] = Entry(7, CONFIG, data)
    assert boot(firmware).claim("secure_boot_enabled") is False


def test_secure_boot_switched_on_after_the_firmware_does_not_count() -> None:
    """A guest may extend PCR 7 with a true-looking event once it runs."""
    firmware = Firmware.healthy()
    position = firmware.find(utf16("SecureBoot"))
    del firmware.entries[position]
    firmware.add(7, CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\x01"))
    verified = boot(firmware)
    assert verified.claim("secure_boot_enabled") is None
    assert verified.claim("secure_boot_explained") is False


def test_a_renamed_separator_does_not_move_the_end_of_the_firmware() -> None:
    firmware = Firmware.healthy()
    del firmware.entries[firmware.find(utf16("SecureBoot"))]
    separator = next(i for i, e in enumerate(firmware.entries) if e.pcr == 7 and e.data == bytes(4))
    firmware.edit(separator, type=EventType.EFI_ACTION, data=b"just an action")
    firmware.add(7, CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\x01"))
    firmware.add(7, EventType.SEPARATOR, bytes(4))
    assert boot(firmware).claim("secure_boot_enabled") is None


def test_secure_boot_twice_proves_nothing() -> None:
    firmware = Firmware.healthy()
    firmware.entries.insert(0, Entry(7, CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\x01")))
    assert boot(firmware).claim("secure_boot_enabled") is None


def test_a_variable_of_another_vendor_is_not_secure_boot() -> None:
    firmware = Firmware.healthy()
    data = variable(SHIM_LOCK, "SecureBoot", b"\x01")
    firmware.entries[firmware.find(utf16("SecureBoot"))] = Entry(7, CONFIG, data)
    assert boot(firmware).claim("secure_boot_enabled") is None


def test_without_a_separator_in_pcr_7_nothing_is_the_firmwares() -> None:
    firmware = Firmware.healthy()
    firmware.entries = [e for e in firmware.entries if not (e.pcr == 7 and e.data == bytes(4))]
    verified = boot(firmware)
    assert verified.claim("secure_boot_enabled") is None
    assert verified.claim("firmware_measured") is False


def test_an_error_separator_is_no_good_end() -> None:
    firmware = Firmware.healthy()
    position = next(i for i, e in enumerate(firmware.entries) if e.pcr == 7 and e.data == bytes(4))
    firmware.entries[position] = Entry(7, EventType.SEPARATOR, b"\1\0\0\0")
    verified = boot(firmware)
    assert verified.claim("firmware_measured") is False
    assert verified.claim("secure_boot_enabled") is None


def test_an_authority_cannot_hide_under_another_type() -> None:
    """Types are not measured: an attacker's authority called an action must still be seen."""
    data = variable(SHIM_LOCK, "MokListRT", b"\x30\x82\x00\x04evil")
    for kind in (EventType.EFI_ACTION, EventType.IPL, CONFIG, EventType.EVENT_TAG):
        firmware = Firmware.healthy()
        firmware.add(7, kind, data)
        assert boot(firmware).claim("secure_boot_explained") is False


def test_an_authority_without_its_data_is_not_explained() -> None:
    firmware = Firmware.healthy()
    firmware.edit(firmware.find(utf16("MokListRT")), data=b"")
    verified = boot(firmware)
    assert verified.claim("secure_boot_explained") is False
    assert verified.claim("shim_validation_enabled") is None
    assert verified.claim("machine_owner_keys_absent") is None


def test_firmware_debugging_and_dma_are_told() -> None:
    for action, claim in (
        (b"UEFI Debug Mode", "firmware_debugging_disabled"),
        (b"DMA Protection Disabled", "dma_protection_enabled"),
    ):
        firmware = Firmware.healthy()
        firmware.entries.insert(0, Entry(7, EventType.EFI_ACTION, action))
        assert boot(firmware).claim(claim) is False


def test_a_malformed_database_is_refused() -> None:
    firmware = Firmware.healthy()
    position = next(i for i, e in enumerate(firmware.entries) if e.type == CONFIG and utf16("dbx") in e.data)
    firmware.entries[position] = Entry(7, CONFIG, variable(IMAGE_SECURITY, "dbx", b"no list"))
    with pytest.raises(MalformedError, match="signature database"):
        boot(firmware)


# shim


def test_disabled_shim_validation_is_told() -> None:
    firmware = Firmware.healthy()
    firmware.add(7, AUTHORITY, variable(SHIM_LOCK, "MokSBState", b"\x01"))
    assert boot(firmware).claim("shim_validation_enabled") is False


def test_shim_that_says_nothing_proves_nothing() -> None:
    firmware = Firmware.healthy()
    firmware.entries = [e for e in firmware.entries if not e.data.startswith(SHIM_LOCK.bytes_le)]
    assert boot(firmware).claim("shim_validation_enabled") is None


def test_a_machine_owner_key_is_seen() -> None:
    """A list with the vendor's certificate and another one is not the vendor's list."""
    firmware = Firmware.healthy()
    position = firmware.find(b"MokList\0")
    lists = encode_certificate_list(SHIM_LOCK, VENDOR_CERTIFICATE)
    lists += encode_certificate_list(SHIM_LOCK, b"\x30\x82\x00\x04evil")
    firmware.entries[position] = Entry(14, EventType.IPL, b"MokList\0", lists)
    assert boot(firmware).claim("machine_owner_keys_absent") is None


def test_the_vendors_list_added_later_does_not_hide_owner_keys() -> None:
    firmware = Firmware.healthy()
    position = firmware.find(b"MokList\0")
    firmware.entries[position] = Entry(14, EventType.IPL, b"MokList\0", b"a list with owner keys")
    vendors = encode_certificate_list(SHIM_LOCK, VENDOR_CERTIFICATE)
    firmware.add(14, EventType.IPL, b"MokList\0", vendors)
    assert boot(firmware).claim("machine_owner_keys_absent") is None


# GRUB


def grub(*events: tuple[str, str]) -> Firmware:
    """A boot whose PCR 8 holds `events` (prefix, string) and nothing else."""
    firmware = Firmware.healthy()
    firmware.entries = [entry for entry in firmware.entries if entry.pcr != 8]
    for prefix, text in events:
        firmware.command(text, prefix=prefix)
    return firmware


def test_a_harmless_line_planted_as_an_unknown_command_is_not_the_command_line() -> None:
    """GRUB measures unknown commands too, and the prefix that tells them apart is not measured."""
    firmware = grub(
        ("kernel_cmdline: ", "/vmlinuz quiet"),  # really an unknown command
        ("grub_cmd: ", "linux /vmlinuz init=/evil"),
        ("grub_cmd: ", "/vmlinuz init=/evil"),  # really the command line
    )
    assert boot(firmware).command_line == "/vmlinuz init=/evil"


def test_two_loads_leave_the_command_line_open() -> None:
    firmware = grub(
        ("grub_cmd: ", "linux /vmlinuz quiet"),
        ("kernel_cmdline: ", "/vmlinuz quiet"),
        ("grub_cmd: ", "linux /vmlinuz init=/evil"),
        ("kernel_cmdline: ", "/vmlinuz init=/evil"),
    )
    verified = boot(firmware)
    assert verified.command_line is None
    assert verified.grub.command_lines == ("/vmlinuz quiet", "/vmlinuz init=/evil")


@pytest.mark.parametrize("command", ["! linux", "time linux", "chainloader", "linuxefi"])
def test_every_way_to_load_counts(command: str) -> None:
    firmware = grub(
        ("grub_cmd: ", "linux /vmlinuz quiet"),
        ("kernel_cmdline: ", "/vmlinuz quiet"),
        ("grub_cmd: ", f"{command} /vmlinuz init=/evil"),
    )
    assert boot(firmware).command_line is None


def test_a_failed_load_is_not_followed_by_its_command_line() -> None:
    firmware = grub(("grub_cmd: ", "linux /missing quiet"), ("kernel_cmdline: ", "/vmlinuz planted"))
    assert boot(firmware).grub.command_lines == ("/missing quiet",)


def test_quotes_that_grub_adds_are_kept() -> None:
    firmware = grub(
        ("grub_cmd: ", "linux /vmlinuz a=two words"), ("kernel_cmdline: ", '/vmlinuz "a=two words"')
    )
    assert boot(firmware).command_line == '/vmlinuz "a=two words"'


def test_a_hidden_command_leaves_the_command_line_open() -> None:
    firmware = Firmware.healthy()
    firmware.command("linux /vmlinuz init=/evil")
    firmware.edit(len(firmware.entries) - 1, data=b"grub_cmd: set timeout=0\0")
    verified = boot(firmware)
    assert verified.grub.unexplained == 1
    assert verified.claim("boot_commands_explained") is False
    assert verified.command_line is None


def test_a_kernel_cannot_hide_under_another_type_or_path() -> None:
    for kind in (EventType.EVENT_TAG, EventType.EFI_ACTION, EventType.SEPARATOR, EventType.POST_CODE):
        firmware = Firmware.healthy()
        firmware.file("/evil", b"an unknown kernel")
        firmware.edit(len(firmware.entries) - 1, type=kind, data=b"/boot/grub/grub.cfg\0")
        try:
            candidates = boot(firmware).kernel_candidates
        except ForgedError:
            assert kind in (EventType.EFI_ACTION, EventType.SEPARATOR)
            continue
        assert SHA256.digest(b"an unknown kernel") in candidates


def test_an_image_cannot_hide_under_another_type() -> None:
    for kind in (EventType.IPL, EventType.EVENT_TAG, EventType.EFI_GPT_EVENT):
        firmware = Firmware.healthy()
        firmware.add(4, IMAGE, b"device path", b"an unknown image")
        firmware.edit(len(firmware.entries) - 1, type=kind)
        assert boot(firmware).applications[-1].digest == SHA256.digest(b"an unknown image")


def test_an_image_cannot_hide_behind_its_own_octets() -> None:
    """A log that holds what was hashed explains the digest, and the image still ran."""
    firmware = Firmware.healthy()
    firmware.add(4, EventType.EFI_ACTION, b"MZ\0an unknown image")
    assert boot(firmware).applications[-1].digest == SHA256.digest(b"MZ\0an unknown image")


def test_actions_are_no_images() -> None:
    firmware = Firmware.healthy()
    firmware.add(4, EventType.EFI_ACTION, b"Returning from EFI Application from Boot Option")
    assert boot(firmware).applications == boot(HEALTHY).applications
