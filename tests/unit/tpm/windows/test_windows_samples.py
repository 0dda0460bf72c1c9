"""Real Windows logs: every fact that their sources state, or that was measured in them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import AttestationKey, verify_attestation_key
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.measurements import bind_measurements
from affiant.tpm.replay import replay_event_log
from affiant.tpm.secure_boot import SecureBootFacts, read_secure_boot
from affiant.tpm.windows.bank_capping import BankState, compare_capped_bank
from affiant.tpm.windows.bitlocker import BitLockerUnlock
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS, WindowsBoot, read_windows_boot
from affiant.tpm.windows.boot_manager import boot_manager_by_microsoft
from affiant.tpm.windows.configuration_log import is_windows_log, windows_bank
from affiant.tpm.windows.facts import Trust
from affiant.tpm.windows.trust_point import TrustPoint, read_trust_points, verify_trust_point
from tests.samples import bundle, octets
from tests.unit.tpm.test_evidence_samples import gce, windows_log, windows_quote

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
VBS = "win10_latitude7520_vbs_hvci"
NO_VBS = "win10_latitude7520_novbs_eset"
SERVER = "server2022_supermicro_trustpoint"
SHIELDED = "a GCE Shielded VM"


def source(name: str) -> dict[str, Any]:
    return bundle(f"windows/{name}.bundle.json")


def boot(name: str) -> WindowsBoot:
    if name == SHIELDED:
        quote, raw = gce()
        log = replay_event_log(parse_event_log(raw), quote, required_pcrs=WINDOWS_BOOT_PCRS)
        # An owner's key made that quote, so its resetCount is obfuscated.
        return read_windows_boot(log)
    quote = windows_quote(source(name))
    log = windows_log(source(name), quote)
    return read_windows_boot(log, expected_reset_count=quote.clock_info.reset_count)


SAFE = {
    "test_signing_disabled",
    "flight_signing_disabled",
    "boot_debugging_disabled",
    "kernel_debugging_disabled",
    "hypervisor_debugging_disabled",
    "code_integrity_enabled",
    "not_safe_mode",
    "not_winpe",
    "cold_boot",
    "elam_driver_loaded",
    "modules_validated",
    "windows_measurements_complete",
    "bitlocker_access_closed",
    "bitlocker_recovery_unused",
    "kernel_soft_reboot_absent",
}


@pytest.mark.parametrize("name", [VBS, NO_VBS, SERVER, SHIELDED])
def test_all_four_booted_safely(name: str) -> None:
    read = boot(name)
    assert {fact for fact in SAFE if read.claim(fact) is not True} == set()
    assert read.details.boot_manager_svn == 1
    assert read.details.driver_load_policy == 1
    assert read.details.unread == ()
    assert read.complete_pcrs == {11, 12, 13, 14}


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        (
            VBS,
            {
                "vbs_enabled": True,
                "hvci_enabled": True,
                "vsm_identity_key_measured": True,
                "hypervisor_launched": True,
                "vbs_required": True,
                "vbs_microsoft_boot_chain_required": True,
                "boot_dma_protection_enabled": False,
                "hypervisor_mmio_nx_enabled": True,
                "hypervisor_msr_filter_enabled": True,
                "boot_counter_matches": True,
                "boot_manager_by_microsoft": False,
                "bitlocker_enabled": True,
            },
        ),
        (
            NO_VBS,
            {
                "vbs_enabled": False,
                "hvci_enabled": False,
                "vsm_identity_key_measured": False,
                "hypervisor_launched": False,
                "boot_counter_matches": True,
                "boot_manager_by_microsoft": False,
            },
        ),
        (
            SERVER,
            {
                "vbs_enabled": False,
                "hvci_enabled": False,
                "boot_counter_matches": True,
                "boot_manager_by_microsoft": None,
                "bitlocker_enabled": False,
            },
        ),
        (
            SHIELDED,
            {
                "vbs_enabled": False,
                "hypervisor_launched": False,
                "boot_counter_matches": None,
                "boot_manager_by_microsoft": True,
                "data_execution_prevention_enabled": True,
                "bitlocker_enabled": False,
            },
        ),
    ],
)
def test_each_is_told_apart(name: str, claims: dict[str, bool | None]) -> None:
    read = boot(name)
    assert {fact: read.claim(fact) for fact in claims} == claims


@pytest.mark.parametrize(("name", "counter"), [(VBS, 187), (NO_VBS, 183), (SERVER, 14), (SHIELDED, 4)])
def test_boot_counters(name: str, counter: int) -> None:
    assert boot(name).details.boot_counter == counter


def test_vbs_is_running_with_its_identity_keys() -> None:
    details = boot(VBS).details
    assert details.signing_key is not None
    assert details.encryption_key is not None
    assert details.signing_key.bits == details.encryption_key.bits == 2048
    assert details.signing_key.modulus != details.encryption_key.modulus
    assert details.signing_key.exponent == 65537
    assert hex(details.signing_key.modulus).startswith("0xd2c7cdd80266866975eb4b61e216a181")
    assert details.transfers == (1, 5)
    assert (details.iommu_policy, details.data_execution_prevention) == (0, 0)
    (policy,) = details.code_integrity_policies
    assert (policy.name, policy.version) == ("DriverSiPolicy.p7b", 0xA000053020000)


def test_a_vendors_early_launch_driver_is_found() -> None:
    """The registry key is called Windows Defender, whatever driver is loaded."""
    before, after = boot(NO_VBS).details, boot(VBS).details
    for details in (before, after):
        assert [driver.file_name for driver in details.elam_drivers] == ["eelam.sys"]
        assert [key.key_name for key in details.elam_configurations] == ["Windows Defender"]
    assert before.elam_drivers[0].digest != after.elam_drivers[0].digest


def test_the_shielded_vm_is_as_its_source_says() -> None:
    details = boot(SHIELDED).details
    assert details.bitlocker_unlocks == (BitLockerUnlock(0), BitLockerUnlock(0))
    assert details.data_execution_prevention == 1
    (elam,) = details.elam_configurations
    assert elam.key_name == "Windows Defender"
    assert [value.hex()[:8] + ".." + value.hex()[-4:] for value in elam.measured] == ["067d5b9d..d2cc"]
    assert [driver.file_name for driver in details.elam_drivers] == ["wdboot.sys"]
    (storage,) = [module for module in details.modules if module.file_name == "vioscsi.sys"]
    assert storage.publisher == "Microsoft Windows Hardware Compatibility Publisher"
    assert len(details.secure_boot_policies) == 1


def test_a_regression_of_vbs_is_seen_on_one_machine() -> None:
    earlier, later = boot(NO_VBS), boot(VBS)
    regressed = {
        fact.name for fact in later.facts if fact.value is True and earlier.claim(fact.name) is not True
    }
    assert {"vbs_enabled", "hvci_enabled", "vsm_identity_key_measured"} <= regressed


def test_the_log_of_the_earlier_boot_does_not_replay_onto_the_later_quote() -> None:
    with pytest.raises(ForgedError, match="does not replay"):
        windows_log(source(NO_VBS), windows_quote(source(VBS)))


@pytest.mark.parametrize("name", [VBS, NO_VBS, SERVER])
def test_the_bank_is_known_from_the_log(name: str) -> None:
    log = parse_event_log(octets(source(name)["event_logs"][0]))
    assert is_windows_log(log)
    assert windows_bank(log) is SHA256


def test_the_bank_of_a_legacy_log_is_sha1() -> None:
    assert windows_bank(parse_event_log(gce()[1])) is SHA1


# Whose boot manager


def shielded_secure_boot() -> SecureBootFacts:
    quote, raw = gce()
    log = replay_event_log(parse_event_log(raw), quote, required_pcrs=WINDOWS_BOOT_PCRS)
    return read_secure_boot(bind_measurements(log))


def test_only_microsofts_own_authorities_stand_for_windows() -> None:
    facts = shielded_secure_boot()
    assert boot_manager_by_microsoft(facts) is True
    (authority,) = facts.authorities
    other = replace(authority, source=replace(authority.source, content=bytes(16) + b"shim's authority"))
    machine_owner = replace(authority, source=replace(authority.source, name="MokListRT"))
    driver = replace(authority, before_separator=True)
    for authorities in ((authority, other), (machine_owner,), (driver,), ()):
        assert boot_manager_by_microsoft(replace(facts, authorities=authorities)) is False
    assert boot_manager_by_microsoft(replace(facts, unexplained=1)) is False
    assert boot_manager_by_microsoft(replace(facts, secure_boot=False)) is False
    assert boot_manager_by_microsoft(replace(facts, secure_boot=None)) is None


# The quote that Windows kept


def server_log() -> EventLog:
    return parse_event_log(octets(source(SERVER)["event_logs"][0]))


def server_key() -> AttestationKey:
    blob = octets(source(SERVER)["pcp_quote_keys"]["bla"])
    # PCP_KEY_BLOB_WIN8: magic, size of the header, two words, size of the TPM2B_PUBLIC after the header.
    header, size = int.from_bytes(blob[4:8], "little"), int.from_bytes(blob[16:20], "little")
    return verify_attestation_key(blob[header : header + size], allowed_hashes=frozenset({SHA1, SHA256}))


def server_trust_point() -> TrustPoint:
    (point,) = read_trust_points(server_log())
    return point


def test_the_trust_points_quote_verifies_and_the_log_replays_onto_it() -> None:
    point = server_trust_point()
    assert point.key_name == "bla"
    verified = verify_trust_point(server_log(), point, attestation_key=server_key(), bank=SHA256)
    assert set(verified.quote.pcrs) == {*range(7), 8, 9, 10, 12, 13, 14, 15}
    read = read_windows_boot(verified.log)
    assert read.claim("vbs_enabled") is False
    assert read.claim("test_signing_disabled") is True
    # Its selection lacks PCR 7 and 11: nothing is said about them.
    assert read.fact("boot_manager_by_microsoft").trust is Trust.UNTRUSTED
    assert read.claim("bitlocker_access_closed") is None


def test_a_trust_point_of_another_key_is_refused() -> None:
    quote_key = windows_quote(source(SERVER))
    assert quote_key.key_name != server_key().name
    other = replace(server_trust_point(), key_digest=hashlib.sha1(b"another").digest())
    with pytest.raises(ForgedError, match="another key"):
        verify_trust_point(server_log(), other, attestation_key=server_key(), bank=SHA256)


def test_a_trust_point_with_another_signature_is_refused() -> None:
    point = server_trust_point()
    other = replace(point, signature=bytes([point.signature[0] ^ 1]) + point.signature[1:])
    with pytest.raises(ForgedError, match="signature"):
        verify_trust_point(server_log(), other, attestation_key=server_key(), bank=SHA256)


@pytest.mark.parametrize("dropped", [12, 13, 0])
def test_a_trust_point_behind_another_log_is_refused(dropped: int) -> None:
    log = server_log()
    place = max(event.index for event in log.events if event.pcr == dropped)
    events = tuple(event for event in log.events if event.index != place)
    with pytest.raises(ForgedError, match="PCR values"):
        verify_trust_point(
            replace(log, events=events), server_trust_point(), attestation_key=server_key(), bank=SHA256
        )


def test_a_trust_point_proves_no_bank_but_its_own() -> None:
    with pytest.raises(ForgedError, match="no sha1 bank"):
        verify_trust_point(server_log(), server_trust_point(), attestation_key=server_key(), bank=SHA1)


# The bank that Windows did not measure into


def server_sha1() -> dict[int, bytes]:
    return {int(pcr): bytes.fromhex(value) for pcr, value in source(SERVER)["pcrs"]["sha1"].items()}


def test_the_other_bank_is_capped() -> None:
    compared = compare_capped_bank(server_log(), bank=SHA1, pcrs=server_sha1())
    assert compared.pcrs(BankState.CAPPED) == {*range(14)}
    assert compared.pcrs(BankState.REPLAYED) == {14, 15}


def test_a_value_that_neither_replays_nor_is_capped_differs() -> None:
    values = server_sha1()
    values[4], values[11] = values[5], values[12]
    compared = compare_capped_bank(server_log(), bank=SHA1, pcrs=values)
    assert compared.pcrs(BankState.DIFFERENT) == {4, 11}


def test_the_bank_that_windows_measures_into_replays() -> None:
    values = {int(pcr): bytes.fromhex(value) for pcr, value in source(SERVER)["pcrs"]["sha256"].items()}
    compared = compare_capped_bank(server_log(), bank=SHA256, pcrs=values)
    assert compared.pcrs(BankState.REPLAYED) == {*range(16)}


def test_a_value_of_another_size_is_malformed() -> None:
    with pytest.raises(MalformedError, match="32 octets"):
        compare_capped_bank(server_log(), bank=SHA1, pcrs={0: bytes(32)})
