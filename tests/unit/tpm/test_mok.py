"""PCR 14: what can be told of shim's machine owner keys, and what stays the log's word."""

from __future__ import annotations

from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.event_types import EventType
from affiant.tpm.mok import MokFacts, read_mok
from affiant.tpm.signature_database import encode_certificate_list
from tests.unit.tpm.firmware import VENDOR_CERTIFICATE, Firmware
from tests.unit.tpm.test_boot_vectors import VECTORS, boot
from tests.unit.tpm.test_uki import SHA256
from tests.unit.tpm.verified import measurements


def facts(firmware: Firmware) -> MokFacts:
    return read_mok(measurements(firmware), vendor_certificates=[VENDOR_CERTIFICATE])


def test_known_contents_are_told_and_hash_to_what_was_measured() -> None:
    mok = facts(Firmware.healthy())
    assert [one.untrusted_name for one in mok.measurements] == ["MokList", "MokListTrusted"]
    assert mok.measurements[0].content == encode_certificate_list(SHIM_LOCK, VENDOR_CERTIFICATE)
    assert mok.switches == (("MokListTrusted", True),)
    assert mok.has_switch_set
    assert all(SHA256.digest(one.content or b"") == one.digest for one in mok.measurements)


def test_a_list_with_another_key_has_no_known_content() -> None:
    firmware = Firmware.healthy()
    position = firmware.find(b"MokList\0")
    entry = firmware.entries[position]
    firmware.entries[position] = type(entry)(14, entry.type, entry.data, b"a list with the attacker's key")
    mok = facts(firmware)
    assert mok.measurements[0].content is None
    assert mok.measurements[0].digest == SHA256.digest(b"a list with the attacker's key")


def test_a_renamed_switch_keeps_its_value() -> None:
    """The name is not measured; a switch that is set cannot be made to look unset."""
    firmware = Firmware.healthy()
    firmware.add(14, EventType.IPL, b"MokSBState\0", b"\x01")
    firmware.edit(len(firmware.entries) - 1, data=b"MokListTrusted\0")
    mok = facts(firmware)
    assert mok.switches == (("MokListTrusted", True), ("MokListTrusted", True))
    assert mok.untrusted("MokListTrusted") is None
    assert mok.untrusted("MokList") is not None


def test_a_real_shim_is_told() -> None:
    path = next(path for path in VECTORS if path.stem == "debian12-secure-boot")
    _, verified = boot(path, SHA256)
    names = [one.untrusted_name for one in verified.mok.measurements]
    assert names == ["MokList", "MokListX", "MokListTrusted"]
    assert verified.mok.switches == (("MokListTrusted", True),)
    assert verified.mok.measurements[0].content is not None
    assert verified.mok.measurements[1].content is None
