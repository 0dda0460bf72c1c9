"""Windows' facts: bend what happened and the claim is False, bend what is told and it is nothing."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.windows.bitlocker import BitLockerUnlock
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS, read_untrusted_windows_boot, read_windows_boot
from affiant.tpm.windows.configuration_log import is_windows_log, windows_bank
from affiant.tpm.windows.facts import Trust
from affiant.tpm.windows.sipa import Sipa
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.windows.machine import (
    ATTESTER,
    ONE,
    OTHER_KEY,
    PRIVATE_KEY,
    SHA256,
    ZERO,
    Machine,
    key_payload,
    module,
    position,
    quote,
    read,
    replayed,
    sipa,
    text,
    u64,
)

TRUE_CLAIMS = {
    "vbs_enabled",
    "hvci_enabled",
    "vsm_identity_key_measured",
    "hypervisor_debugging_disabled",
    "elam_driver_loaded",
    "modules_validated",
    "secure_boot_custom_policy_absent",
    "cold_boot",
    "kernel_soft_reboot_absent",
    "boot_counter_matches",
    "bitlocker_enabled",
    "bitlocker_recovery_unused",
    "bitlocker_access_closed",
    "windows_measurements_complete",
    "code_integrity_enabled",
    "test_signing_disabled",
    "flight_signing_disabled",
    "boot_debugging_disabled",
    "kernel_debugging_disabled",
    "not_safe_mode",
    "not_winpe",
    "data_execution_prevention_enabled",
    "hypervisor_launched",
    "boot_dma_protection_enabled",
    "vbs_required",
}


def test_a_healthy_machine_has_these_claims_and_no_others() -> None:
    boot = Machine().read()
    assert {fact.name for fact in boot.facts if boot.claim(fact.name) is True} == TRUE_CLAIMS
    # Its boot manager is signed by "a certificate", which is not Microsoft's.
    assert [fact.name for fact in boot.facts if fact.value is False] == ["boot_manager_by_microsoft"]
    assert boot.complete_pcrs == {11, 12, 13, 14}
    assert not any(boot.unexplained.values())


def test_details_are_those_measured() -> None:
    details = Machine().read().details
    assert details.signing_key is not None
    assert details.signing_key.modulus == PRIVATE_KEY.public_key().public_numbers().n
    assert details.encryption_key is None
    assert [loaded.file_name for loaded in details.elam_drivers] == ["wdboot.sys"]
    assert details.elam_configurations[0].key_name == "Windows Defender"
    assert details.elam_configurations[0].measured == (b"measured",)
    assert details.boot_manager_svn == 7
    assert details.bitlocker_unlocks == (BitLockerUnlock.TPM,)
    assert (details.boot_counter, details.event_counter) == (7, 99)
    assert details.transfers == (1, 5)
    assert details.system_root == "\\Windows"
    assert details.authorities == (b"a public key",)
    assert details.unread == ()


@pytest.mark.parametrize(
    ("identifier", "payload", "claim"),
    [
        (Sipa.TEST_SIGNING, ONE, "test_signing_disabled"),
        (Sipa.FLIGHT_SIGNING, ONE, "flight_signing_disabled"),
        (Sipa.BOOT_DEBUGGING, ONE, "boot_debugging_disabled"),
        (Sipa.OS_KERNEL_DEBUG, ONE, "kernel_debugging_disabled"),
        (Sipa.HYPERVISOR_DEBUG, ONE, "hypervisor_debugging_disabled"),
        (Sipa.SAFE_MODE, ONE, "not_safe_mode"),
        (Sipa.WINPE, ONE, "not_winpe"),
        (Sipa.CODE_INTEGRITY, ZERO, "code_integrity_enabled"),
        (Sipa.DATA_EXECUTION_PREVENTION, u64(2), "data_execution_prevention_enabled"),
        (Sipa.HYPERVISOR_BOOT_DMA_PROTECTION, ZERO, "boot_dma_protection_enabled"),
        (Sipa.VBS_HVCI_POLICY, u64(2), "hvci_enabled"),
        (Sipa.VSM_LAUNCH_TYPE, u64(0), "vbs_enabled"),
        (Sipa.VSM_LAUNCH_TYPE, u64(0), "hvci_enabled"),
        (Sipa.VBS_VSM_REQUIRED, ZERO, "vbs_required"),
        (Sipa.BITLOCKER_UNLOCK, bytes(4), "bitlocker_enabled"),
        (Sipa.BITLOCKER_UNLOCK, struct.pack("<I", 0x44), "bitlocker_recovery_unused"),
    ],
)
def test_an_unsafe_setting_is_told(identifier: int, payload: bytes, claim: str) -> None:
    machine = Machine()
    machine.settings[identifier] = payload
    boot = machine.read()
    assert boot.fact(claim).value is False
    assert boot.fact(claim).trust is Trust.VERIFIED


@pytest.mark.parametrize("claim", sorted(TRUE_CLAIMS))
def test_no_claim_survives_without_its_evidence(claim: str) -> None:
    """A machine that measured next to nothing, and closed its PCRs: True only what is about absence."""
    machine = Machine({Sipa.SYSTEM_ROOT: text("\\")}, [], [], [], 1)
    value = machine.read().claim(claim)
    absences = {
        "secure_boot_custom_policy_absent",
        "kernel_soft_reboot_absent",
        "windows_measurements_complete",
        "bitlocker_access_closed",
    }
    assert (value is True) == (claim in absences)


def test_a_setting_that_is_bad_once_is_bad() -> None:
    """Every hand-over measures again: what the first boot code saw must not hide behind the last."""
    machine = Machine()
    machine.extra.append(sipa(Sipa.TEST_SIGNING, ONE))
    assert machine.read().claim("test_signing_disabled") is False
    machine.extra[0] = sipa(Sipa.VSM_LAUNCH_TYPE, u64(0))
    assert machine.read().claim("vbs_enabled") is False


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", bytes(16)])
def test_a_setting_that_cannot_be_read_proves_nothing(payload: bytes) -> None:
    machine = Machine()
    machine.extra.append(sipa(Sipa.TEST_SIGNING, payload))
    assert machine.read().claim("test_signing_disabled") is None


def test_vbs_takes_an_identity_key() -> None:
    boot = Machine(keys=[]).read()
    assert boot.claim("vbs_enabled") is None
    assert boot.claim("hvci_enabled") is None
    assert boot.claim("vsm_identity_key_measured") is False


def test_two_identity_keys_are_none() -> None:
    keys = [sipa(Sipa.VSM_IDKS_INFO, key_payload(key.public_key())) for key in (PRIVATE_KEY, OTHER_KEY)]
    boot = Machine(keys=keys).read()
    assert boot.details.signing_key is None
    assert boot.claim("vbs_enabled") is None


def test_an_identity_key_that_cannot_be_read_is_none_and_told() -> None:
    boot = Machine(keys=[sipa(Sipa.VSM_IDKS_INFO, b"short")]).read()
    assert boot.details.signing_key is None
    assert "VSM_IDKS_INFO" in boot.details.unread[0]
    assert boot.claim("vsm_identity_key_measured") is False


@pytest.mark.parametrize("gone", ["hvix64.exe", "securekernel.exe"])
@pytest.mark.parametrize(
    "instead",
    [
        None,
        {"validated": ZERO},
        {"issuer": "Sectigo RSA Code Signing CA"},
        {"publisher": "Microsoft Windows Hardware Compatibility Publisher"},
    ],
)
def test_vbs_takes_windows_own_hypervisor_and_secure_kernel(
    gone: str, instead: dict[str, object] | None
) -> None:
    machine = Machine()
    place = next(i for i, loaded in enumerate(machine.modules) if gone.encode("utf-16-le") in loaded)
    del machine.modules[place]
    if instead is not None:
        machine.modules.append(module("\\Windows\\system32\\" + gone, **instead))  # type: ignore[arg-type]
    assert machine.read().claim("vbs_enabled") is None


def test_a_driver_that_was_not_validated_is_told() -> None:
    machine = Machine()
    machine.modules.append(module("\\Windows\\system32\\drivers\\evil.sys", validated=ZERO))
    assert machine.read().claim("modules_validated") is False


def test_an_early_launch_driver_needs_its_publisher() -> None:
    machine = Machine()
    machine.modules[-1] = module("\\Windows\\system32\\drivers\\wd\\WdBoot.sys")
    assert machine.read().claim("elam_driver_loaded") is False


def test_an_early_launch_driver_that_was_not_validated_does_not_count() -> None:
    machine = Machine()
    publisher = "Microsoft Windows Early Launch Anti-malware Publisher"
    machine.modules[-1] = module("\\Windows\\WdBoot.sys", publisher=publisher, validated=ZERO)
    assert machine.read().claim("elam_driver_loaded") is False


def test_a_module_in_two_words_is_unread() -> None:
    machine = Machine()
    twice = sipa(Sipa.IMAGE_VALIDATED, ONE)
    machine.modules.append(module("x.sys", validated=ZERO, extra=twice))
    boot = machine.read()
    assert boot.claim("modules_validated") is None
    assert boot.details.unread


def test_unknown_events_are_skipped() -> None:
    """Newer Windows adds events, also within modules: they must not make a log unreadable."""
    machine = Machine()
    machine.extra.append(sipa(0x00050999, b"new"))
    machine.extra.append(sipa(0x4001FFFF, b"an aggregation of which nothing is known"))
    machine.modules.append(module("new.sys", extra=sipa(0x0007000D, text("original"))))
    boot = machine.read()
    assert {fact.name for fact in boot.facts if boot.claim(fact.name) is True} == TRUE_CLAIMS


def test_a_resumed_machine_is_not_freshly_booted() -> None:
    assert Machine(transfers=[2]).read().claim("cold_boot") is False
    assert Machine(transfers=[1, 2]).read().claim("cold_boot") is False
    assert Machine(transfers=[5, 1]).read().claim("cold_boot") is False
    assert Machine(transfers=[]).read().claim("cold_boot") is None


def test_a_soft_reboot_is_told() -> None:
    machine = Machine()
    machine.extra.append(sipa(Sipa.KSR_AGGREGATION, b""))
    assert machine.read().claim("kernel_soft_reboot_absent") is False


def test_another_boot_counter_is_told() -> None:
    assert Machine(boot_counter=8).read().claim("boot_counter_matches") is False


def test_without_the_quotes_counter_nothing_matches() -> None:
    machine = Machine()
    log = replayed(machine.firmware(), machine.quote())
    assert read_windows_boot(log).claim("boot_counter_matches") is None


def test_a_hypervisor_that_was_not_launched_is_not_debugged() -> None:
    machine = Machine()
    del machine.settings[Sipa.HYPERVISOR_DEBUG]
    assert machine.read().claim("hypervisor_debugging_disabled") is None
    machine.settings[Sipa.HYPERVISOR_LAUNCH_TYPE] = u64(0)
    assert machine.read().claim("hypervisor_debugging_disabled") is True


def test_policies_are_read() -> None:
    digest = bytes(range(32))
    name = text("SiPolicy.p7b")
    machine = Machine()
    machine.settings[Sipa.SI_POLICY] = struct.pack("<QHHI", 5, len(name), 0x0B, 32) + name + digest
    machine.settings[Sipa.SBCP_INFO] = struct.pack("<IIHHII", 1, 20, 0x0B, 32, 3, 1) + digest
    revoked = struct.pack("<qIH", 132, 32, 0x0B) + digest
    machine.settings[Sipa.BOOT_REVOCATION_LIST] = revoked
    machine.settings[Sipa.OS_REVOCATION_LIST] = revoked
    boot = machine.read()
    (policy,) = boot.details.code_integrity_policies
    assert (policy.name, policy.version, policy.digest) == ("SiPolicy.p7b", 5, digest)
    (secure_boot,) = boot.details.secure_boot_policies
    assert (secure_boot.options, secure_boot.signers, secure_boot.digest) == (3, 1, digest)
    assert boot.details.boot_revocation_lists == boot.details.os_revocation_lists
    assert boot.details.boot_revocation_lists[0].creation_time == 132
    assert boot.claim("secure_boot_custom_policy_absent") is False


# What is told: the log lies about what was measured


def test_an_event_whose_data_was_replaced_is_never_used() -> None:
    """Test signing was on; the log says otherwise, and keeps the digest."""
    machine = Machine()
    machine.settings[Sipa.TEST_SIGNING] = ONE
    told = machine.firmware()
    honest = Machine().firmware()
    place = position(told, 12)
    told.edit(place, data=honest.entries[place].data)
    boot = read(told, machine.quote())
    fact = boot.fact("test_signing_disabled")
    assert (fact.value, fact.trust) == (False, Trust.UNTRUSTED)  # PCR 13 still tells
    assert boot.claim("test_signing_disabled") is None
    assert boot.unexplained[12] == 1
    assert 12 not in boot.complete_pcrs
    told.edit(position(told, 13), data=honest.entries[position(honest, 13)].data)
    boot = read(told, machine.quote())
    assert {boot.claim(name) for name in TRUE_CLAIMS - {"bitlocker_access_closed"}} <= {None, False}
    assert boot.details.boot_manager_svn is None
    assert boot.details.signing_key is None
    assert boot.details.modules == ()


def test_an_event_called_something_else_is_read_all_the_same() -> None:
    machine = Machine()
    machine.settings[Sipa.TEST_SIGNING] = ONE
    told = machine.firmware()
    for pcr in (12, 13):
        told.edit(position(told, pcr), type=EventType.IPL)
    assert read(told, machine.quote()).claim("test_signing_disabled") is False


def test_a_separator_called_something_else_still_closes() -> None:
    told = Machine().firmware()
    told.edit(position(told, 12, b"WBCL"), type=EventType.IPL, data=b"nothing to see")
    assert read(told, Machine().quote()).claim("vbs_enabled") is True


def test_nothing_counts_where_windows_did_not_close_its_pcrs() -> None:
    """Any other system could have measured the same events, and more to come."""
    boot = Machine(closed=False).read()
    assert {boot.claim(name) for name in TRUE_CLAIMS} <= {None, False}
    assert boot.fact("vbs_enabled").value is True
    assert boot.fact("vbs_enabled").trust is Trust.UNTRUSTED


def test_what_the_running_system_adds_has_no_effect() -> None:
    """A kernel may extend PCR 12 with an identity key of its own."""
    keys = [sipa(Sipa.VSM_IDKS_INFO, key_payload(OTHER_KEY.public_key()))]
    happened = Machine(keys=[]).firmware()
    Machine.tag(happened, 12, keys[0] + sipa(Sipa.VSM_LAUNCH_TYPE, u64(1)))
    boot = read(happened, quote(happened))
    assert boot.details.signing_key is None
    assert boot.claim("vbs_enabled") is None
    happened = Machine().firmware()
    Machine.tag(happened, 12, sipa(Sipa.TEST_SIGNING, ONE))
    assert read(happened, quote(happened)).claim("test_signing_disabled") is True


def test_a_second_separator_does_not_reopen() -> None:
    happened = Machine(keys=[]).firmware()
    Machine.tag(happened, 12, sipa(Sipa.VSM_IDKS_INFO, key_payload(OTHER_KEY.public_key())))
    happened.add(12, EventType.SEPARATOR, b"WBCL")
    assert read(happened, quote(happened)).details.signing_key is None


def test_octets_that_are_no_events_are_unexplained() -> None:
    happened = Machine().firmware()
    entry = happened.entries.pop(position(happened, 12, b"WBCL"))
    happened.add(12, EventType.IPL, b"kernel command line")
    happened.entries.append(entry)
    boot = read(happened, quote(happened))
    assert boot.unexplained[12] == 1
    assert boot.claim("vbs_enabled") is None


def test_the_log_of_another_machine_does_not_replay() -> None:
    with pytest.raises(ForgedError, match="PCR 12"):
        read(Machine(boot_counter=8).firmware(), Machine().quote())


def test_pcrs_that_were_not_replayed_prove_nothing() -> None:
    boot = Machine().read(pcrs=(7, 12))
    assert boot.claim("vsm_identity_key_measured") is True
    assert boot.claim("vbs_enabled") is None
    assert boot.claim("bitlocker_access_closed") is None
    assert boot.claim("drtm_launched") is None
    boot = Machine().read(pcrs=(12, 13))
    assert boot.claim("vbs_enabled") is True
    assert boot.fact("boot_manager_by_microsoft").trust is Trust.UNTRUSTED


def test_a_log_without_windows_events_is_refused() -> None:
    linux = Firmware.healthy()
    with pytest.raises(MalformedError, match="no Windows events"):
        read(linux, quote(linux))
    with pytest.raises(MalformedError, match="no Windows events"):
        Machine().read(pcrs=(0, 7, 11))
    with pytest.raises(MalformedError, match="no Windows events"):
        read_untrusted_windows_boot(parse_event_log(linux.log()))


def test_an_unknown_name_is_misuse() -> None:
    with pytest.raises(ValueError, match="no Windows fact"):
        Machine().read().claim("vbs_enable")


def test_an_unverified_log_tells_and_proves_nothing() -> None:
    boot = read_untrusted_windows_boot(parse_event_log(Machine().firmware().log()))
    assert {fact.trust for fact in boot.facts} == {Trust.UNTRUSTED}
    told = {fact.name for fact in boot.facts if fact.value}
    assert {"vbs_enabled", "test_signing_disabled"} <= told
    assert "windows_measurements_complete" not in told
    assert boot.untrusted_details.boot_manager_svn == 7


def test_a_windows_log_is_known_by_its_separators() -> None:
    assert is_windows_log(parse_event_log(Machine().firmware().log()))
    assert not is_windows_log(parse_event_log(Firmware.healthy().log()))


def test_the_bank_is_the_one_windows_measured_into() -> None:
    assert windows_bank(parse_event_log(Machine().firmware().log())) is SHA256
    with pytest.raises(MalformedError, match="no bank"):
        windows_bank(parse_event_log(Firmware().log()))


# What a dynamic launch changes


def launched(machine: Machine, *, smm_level: bytes = b"\x02", closed: bool = True) -> Firmware:
    happened = machine.firmware()
    happened.add(17, EventType.NONHOST_CODE, b"the launched environment")
    Machine.tag(happened, 20, sipa(Sipa.DRTM_SMM_LEVEL, smm_level))
    if closed:
        happened.add(20, EventType.SEPARATOR, b"WBCL")
    return happened


def launched_quote_pcrs(happened: Firmware) -> dict[int, bytes]:
    """What the TPM holds: a launch sets PCR 17 to 22 to zeros first."""
    values = happened.pcrs()
    for pcr in range(17, 23):
        value = bytes(32)
        for entry in happened.entries:
            if entry.pcr == pcr:
                value = SHA256.digest(value + entry.digest(SHA256))
        values[pcr] = value
    return values


PCRS_WITH_LAUNCH = (*WINDOWS_BOOT_PCRS, 17, 18, 19, 20, 21, 22)


def test_a_dynamic_launch_is_proven_by_its_start_from_zero() -> None:
    happened = launched(Machine())
    quoted = ATTESTER.quote(launched_quote_pcrs(happened))
    boot = read(happened, quoted, pcrs=PCRS_WITH_LAUNCH)
    assert boot.claim("drtm_launched") is True
    assert boot.details.smm_level == 2
    without = read(happened, quoted)
    assert without.claim("drtm_launched") is None
    assert without.details.smm_level is None


def test_extending_pcr_17_without_a_launch_is_none() -> None:
    """Software at a high locality can extend these PCRs, but not take them back to zero."""
    happened = launched(Machine())
    boot = read(happened, quote(happened), pcrs=PCRS_WITH_LAUNCH)
    assert boot.claim("drtm_launched") is False
    assert boot.details.smm_level is None


def test_a_dynamic_pcr_that_starts_from_neither_is_refused() -> None:
    happened = launched(Machine())
    values = launched_quote_pcrs(happened) | {17: SHA256.digest(b"neither ones nor zeros")}
    with pytest.raises(ForgedError, match="PCR 17"):
        read(happened, ATTESTER.quote(values), pcrs=PCRS_WITH_LAUNCH)


def test_only_dynamic_pcrs_may_start_anew() -> None:
    """A log that names another startup locality must not replay from zero instead."""
    told = Machine().firmware()
    told.startup_locality(3)
    with pytest.raises(ForgedError, match="PCR 0"):
        read(told, Machine().quote())


def test_a_launch_level_that_was_not_closed_is_not_told() -> None:
    happened = launched(Machine(), closed=False)
    quoted = ATTESTER.quote(launched_quote_pcrs(happened))
    boot = read(happened, quoted, pcrs=PCRS_WITH_LAUNCH)
    assert boot.claim("drtm_launched") is True
    assert boot.details.smm_level is None


def test_what_was_launched_can_take_a_claim_away() -> None:
    happened = Machine().firmware()
    Machine.tag(happened, 20, sipa(Sipa.TEST_SIGNING, ONE))
    boot = read(happened, quote(happened), pcrs=PCRS_WITH_LAUNCH)
    assert boot.claim("test_signing_disabled") is False


def test_what_was_launched_cannot_give_a_claim() -> None:
    machine = Machine()
    del machine.settings[Sipa.TEST_SIGNING]
    happened = machine.firmware()
    Machine.tag(happened, 20, sipa(Sipa.TEST_SIGNING, ZERO))
    boot = read(happened, quote(happened), pcrs=PCRS_WITH_LAUNCH)
    assert boot.claim("test_signing_disabled") is None


@given(st.binary(max_size=300), st.sampled_from([11, 12, 13, 14, 20]))
def test_arbitrary_events_are_evidence_at_most(data: bytes, pcr: int) -> None:
    """Whatever a machine measures, reading it yields facts or an evidence error."""
    happened = Machine().firmware()
    happened.entries.insert(0, type(happened.entries[0])(pcr, EventType.EVENT_TAG, data))
    with contextlib.suppress(EvidenceError):
        read(happened, quote(happened), pcrs=PCRS_WITH_LAUNCH)


IDENTIFIERS = st.one_of(st.sampled_from([int(one) for one in Sipa]), st.integers(0, 0xFFFFFFFF))
EVENTS = st.lists(st.tuples(IDENTIFIERS, st.binary(max_size=60)), max_size=8)


@given(EVENTS, EVENTS)
def test_arbitrary_well_formed_events_are_evidence_at_most(
    first: list[tuple[int, bytes]], second: list[tuple[int, bytes]]
) -> None:
    machine = Machine()
    machine.extra = [sipa(identifier, payload) for identifier, payload in first]
    inner = b"".join(sipa(identifier, payload) for identifier, payload in second)
    machine.modules.append(sipa(Sipa.LOADED_MODULE_AGGREGATION, inner))
    with contextlib.suppress(EvidenceError):
        machine.read()
    with contextlib.suppress(EvidenceError):
        read_untrusted_windows_boot(parse_event_log(machine.firmware().log()))
