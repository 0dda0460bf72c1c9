"""The level of a Windows machine: a healthy one, and what each weakness costs."""

from __future__ import annotations

import pytest

from affiant.appraisal.boot_description import describe_verified_boot
from affiant.appraisal.boot_level import ASSUMED, judge_boot_level
from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.levels import REQUIREMENTS
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.windows_levels import WINDOWS_REQUIREMENTS, judge_windows_boot
from affiant.model.level import SecurityLevel
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY
from affiant.tpm.event_types import EventType
from affiant.tpm.windows.sipa import Sipa
from tests.unit.appraisal.boots import ATTESTER, DEFAULTS, proven, told, windows_firmware
from tests.unit.tpm.firmware import Entry, Firmware, variable
from tests.unit.tpm.windows.machine import Machine, module, u64


def level_of(firmware: Firmware, *, policy: AppraisalPolicy = DEFAULTS) -> tuple[SecurityLevel, set[str]]:
    """The level, and the claims below level 5 that are missing."""
    quote = ATTESTER.quote(firmware.pcrs())
    description = describe_verified_boot(quote, firmware.log(), policy=policy)
    level = judge_boot_level(description, quote=quote, policy=policy)
    missing = {one.claim for one in level.shortfalls if one.level < SecurityLevel.HARDWARE_ROOTED_HOST}
    return level.level, missing


def setting(identifier: Sipa, payload: bytes) -> Machine:
    return Machine(settings={**Machine().settings, identifier: payload})


def test_a_healthy_machine_reaches_level_four_and_is_told_why_not_five() -> None:
    firmware = windows_firmware()
    quote = ATTESTER.quote(firmware.pcrs())
    level = judge_boot_level(proven(firmware), quote=quote, policy=DEFAULTS)
    assert level.level is SecurityLevel.ENFORCED_CODE, level.shortfalls
    assert {one.claim for one in level.shortfalls} == {"drtm_launched", "smm_isolated"}
    assert level.assumed == ASSUMED


WEAK: dict[str, tuple[Machine, int, set[str]]] = {
    "no secure kernel": (
        setting(Sipa.VSM_LAUNCH_TYPE, u64(0)),
        2,
        {"vbs_enabled", "hvci_enabled"},
    ),
    "no identity key": (
        Machine(keys=[]),
        2,
        {"vbs_enabled", "vsm_identity_key_measured", "hvci_enabled"},
    ),
    "hypervisor debugging": (
        setting(Sipa.HYPERVISOR_DEBUG, b"\x01"),
        2,
        {"hypervisor_debugging_disabled"},
    ),
    "no HVCI": (setting(Sipa.VBS_HVCI_POLICY, u64(0)), 3, {"hvci_enabled"}),
    "test signing": (setting(Sipa.TEST_SIGNING, b"\x01"), 3, {"test_signing_disabled"}),
    "preview signing": (setting(Sipa.FLIGHT_SIGNING, b"\x01"), 3, {"flight_signing_disabled"}),
    "kernel debugging": (setting(Sipa.OS_KERNEL_DEBUG, b"\x01"), 3, {"kernel_debugging_disabled"}),
    "no early-launch driver": (Machine(modules=Machine().modules[:3]), 3, {"elam_driver_loaded"}),
    "boot debugging": (setting(Sipa.BOOT_DEBUGGING, b"\x01"), 1, {"boot_debugging_disabled"}),
    "safe mode": (setting(Sipa.SAFE_MODE, b"\x01"), 1, {"not_safe_mode"}),
    "a rescue system": (setting(Sipa.WINPE, b"\x01"), 1, {"not_winpe"}),
    "no code integrity": (setting(Sipa.CODE_INTEGRITY, b"\0"), 1, {"code_integrity_enabled"}),
    "resumed": (Machine(transfers=[2]), 1, {"cold_boot"}),
    "a driver that was not validated": (
        Machine(modules=[*Machine().modules, module("\\bad.sys", validated=b"\0")]),
        1,
        {"modules_validated"},
    ),
}


@pytest.mark.parametrize(("machine", "level", "missing"), WEAK.values(), ids=WEAK)
def test_a_weakness_costs_its_level(machine: Machine, level: int, missing: set[str]) -> None:
    assert level_of(windows_firmware(machine)) == (level, missing)


def test_without_secure_boot_nobody_knows_that_it_was_windows() -> None:
    """VBS runs, and any other system could have said so: level 1."""
    firmware = windows_firmware()
    position = firmware.find("SecureBoot".encode("utf-16-le"))
    off = Entry(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(EFI_GLOBAL, "SecureBoot", b"\0"))
    firmware.entries[position] = off
    level, missing = level_of(firmware)
    assert level is SecurityLevel.ROOTED
    assert missing == {"secure_boot_enabled", "boot_manager_by_microsoft"}


def test_another_boot_manager_is_not_windows() -> None:
    firmware = windows_firmware()
    data = variable(IMAGE_SECURITY, "db", EFI_GLOBAL.bytes_le + b"somebody's certificate")
    firmware.add(7, EventType.EFI_VARIABLE_AUTHORITY, data)
    assert level_of(firmware) == (SecurityLevel.ROOTED, {"boot_manager_by_microsoft"})


def test_a_machine_that_did_not_close_its_pcrs_proves_none_of_it() -> None:
    firmware = windows_firmware()
    firmware.entries = [e for e in firmware.entries if not (e.data == b"WBCL" and e.pcr == 12)]
    level, missing = level_of(firmware)
    assert level is SecurityLevel.ROOTED
    assert {"vbs_enabled", "hvci_enabled", "windows_measurements_complete", "cold_boot"} <= missing


def test_a_log_without_any_end_of_windows_is_not_taken_for_windows() -> None:
    level, missing = level_of(windows_firmware(Machine(closed=False)))
    assert level is SecurityLevel.ROOTED
    assert "kernel_known" in missing


def test_stated_rules_cost_level_two() -> None:
    policy = AppraisalPolicy(boot=BootRules(minimum_boot_manager_svn=8))
    assert level_of(windows_firmware(), policy=policy) == (SecurityLevel.ROOTED, {"boot_rules_met"})


def test_a_boot_without_a_quote_has_no_level() -> None:
    level = judge_boot_level(told(windows_firmware().log()), quote=None, policy=DEFAULTS)
    assert level.level is SecurityLevel.UNPROVEN
    assert level.assumed == ()
    assert [one.claim for one in level.shortfalls] == [r.claim for r in WINDOWS_REQUIREMENTS]


def test_a_quote_that_does_not_select_what_windows_measured_proves_no_level() -> None:
    firmware = windows_firmware()
    quote = ATTESTER.quote(firmware.pcrs(), selected=range(8))
    description = describe_verified_boot(quote, firmware.log(), policy=DEFAULTS)
    level = judge_boot_level(description, quote=quote, policy=DEFAULTS)
    assert level.level is SecurityLevel.UNPROVEN
    assert "PCR 11, 12, 13, 14" in next(one for one in level.shortfalls).explanation


def test_proof_and_quote_go_together() -> None:
    description = told(windows_firmware().log())
    with pytest.raises(ValueError, match="quote"):
        judge_boot_level(description, quote=ATTESTER.quote(windows_firmware().pcrs()), policy=DEFAULTS)
    with pytest.raises(ValueError, match="verified boots of Windows"):
        judge_windows_boot(description, policy=DEFAULTS)
    with pytest.raises(ValueError, match="verified boots of Windows"):
        judge_windows_boot(proven(Firmware.healthy()), policy=DEFAULTS)


def test_the_table_goes_up_and_names_every_claim_once() -> None:
    levels = [requirement.level for requirement in WINDOWS_REQUIREMENTS]
    assert levels == sorted(levels)
    claims = [requirement.claim for requirement in WINDOWS_REQUIREMENTS]
    assert len(set(claims)) == len(claims)
    assert set(levels) == {requirement.level for requirement in REQUIREMENTS}


def test_no_evidence_at_all_is_explained() -> None:
    judged = judge_windows_boot(None, policy=DEFAULTS)
    assert judged
    assert all(one.value is None and one.explanation for one in judged)


def test_a_linux_boot_alone_is_rooted_with_reasons() -> None:
    """Its kernel and its monitor are for a session: a log by itself names no reference."""
    firmware = Firmware.healthy()
    quote = ATTESTER.quote(firmware.pcrs())
    level = judge_boot_level(proven(firmware), quote=quote, policy=DEFAULTS)
    missing = {one.claim for one in level.shortfalls}
    assert level.level is SecurityLevel.ROOTED
    assert {"kernel_known", "reference_matches_kernel", "launch_record_measured"} <= missing
    assert not missing & {"secure_boot_enabled", "firmware_measured", "test_signing_disabled"}
