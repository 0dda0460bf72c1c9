"""The security levels of a Windows machine: the table of requirements, and who meets them.

The levels are those of `affiant.model.level`; what each asks for follows Windows' own chain: the boot
manager that Secure Boot lets start, the secure kernel (VTL 1) whose identity key (IDKS) the boot log
proves, the hypervisor that enforces code integrity, and the dynamic launch that takes the firmware out
of what must be trusted. The table in `docs/security-levels.md` is checked against this one.

What it does not cover: a VBS enclave's report, which `affiant.tpm.windows.vbs_enclave` verifies against the
IDKS that a verified boot names, and what the running system does.
"""

from __future__ import annotations

from typing import Final

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust
from affiant.appraisal.levels import REQUIREMENTS, Judgement, Requirement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.verified_boot import judge_boot_rules, judge_keys, judge_secure_boot
from affiant.model.level import SecurityLevel
from affiant.tpm.boot_state import VerifiedBoot

__all__ = ["WINDOWS_REQUIREMENTS", "judge_windows_boot"]

_BOOT: Final = SecurityLevel.VERIFIED_BOOT
_ISOLATED: Final = SecurityLevel.ISOLATED
_CODE: Final = SecurityLevel.ENFORCED_CODE
_HARDWARE: Final = SecurityLevel.HARDWARE_ROOTED_HOST

# The same claims as of a Linux guest, in the same words.
_SHARED: Final = frozenset(
    {
        "attestation_key_enrolled",
        "endorsement_trusted",
        "quote_fresh",
        "event_log_replayed",
        "firmware_measured",
        "firmware_debugging_disabled",
        "secure_boot_enabled",
        "secure_boot_keys_accepted",
        "boot_rules_met",
        "not_rolled_back",
    }
)

WINDOWS_REQUIREMENTS: Final[tuple[Requirement, ...]] = (
    *(requirement for requirement in REQUIREMENTS if requirement.claim in _SHARED),
    Requirement(
        _BOOT,
        "boot_manager_by_microsoft",
        "All that was started after the firmware's own drivers is signed as Microsoft signs Windows.",
    ),
    Requirement(
        _BOOT,
        "windows_measurements_complete",
        "Windows closed PCR 12 to 14, and every event before that is bound to its digest and read.",
    ),
    Requirement(
        _BOOT,
        "cold_boot",
        "Windows was started, not resumed from hibernation.",
    ),
    Requirement(
        _BOOT,
        "kernel_soft_reboot_absent",
        "No kernel was started from a running one without a reset of the machine.",
    ),
    Requirement(
        _BOOT,
        "not_safe_mode",
        "Windows did not start in safe mode, which leaves its defences out.",
    ),
    Requirement(
        _BOOT,
        "not_winpe",
        "It is an installed system, not a set-up or rescue environment.",
    ),
    Requirement(
        _BOOT,
        "code_integrity_enabled",
        "The kernel checks the signatures of what it loads.",
    ),
    Requirement(
        _BOOT,
        "modules_validated",
        "The loaders accepted the signature of every module that they put into memory.",
    ),
    Requirement(
        _BOOT,
        "boot_debugging_disabled",
        "Boot manager and loader ran without a debugger.",
    ),
    Requirement(
        _ISOLATED,
        "vbs_enabled",
        "The secure kernel and the hypervisor below it were started, both signed as Windows'.",
    ),
    Requirement(
        _ISOLATED,
        "vsm_identity_key_measured",
        "One identity key (IDKS) of the secure kernel was measured: reports signed with it are its own.",
    ),
    Requirement(
        _ISOLATED,
        "hypervisor_debugging_disabled",
        "The hypervisor ran without a debugger.",
    ),
    Requirement(
        _CODE,
        "hvci_enabled",
        "The hypervisor lets the kernel run only code whose signature the secure kernel checked (HVCI).",
    ),
    Requirement(
        _CODE,
        "test_signing_disabled",
        "Test-signed drivers are refused.",
    ),
    Requirement(
        _CODE,
        "flight_signing_disabled",
        "Drivers signed for preview builds are refused.",
    ),
    Requirement(
        _CODE,
        "kernel_debugging_disabled",
        "The kernel ran without a debugger.",
    ),
    Requirement(
        _CODE,
        "elam_driver_loaded",
        "An early-launch anti-malware driver saw every driver that started after it.",
    ),
    Requirement(
        _HARDWARE,
        "drtm_launched",
        "A dynamic launch (D-RTM) measured what started the hypervisor, so the firmware need not be trusted.",
    ),
    Requirement(
        _HARDWARE,
        "boot_dma_protection_enabled",
        "Devices could not write to memory before the hypervisor protected it.",
    ),
    Requirement(
        _HARDWARE,
        "smm_isolated",
        "System Management Mode was confined by the dynamic launch.",
    ),
)
"""What each level asks of Windows, in the order of the levels."""

_SMM = Judgement(
    "smm_isolated", None, "Windows does not publish what its measured SMM levels mean, so none counts"
)


def judge_windows_boot(
    description: BootDescription | None, *, policy: AppraisalPolicy
) -> tuple[Judgement, ...]:
    """Return the claims of level 2 to 5; `description` is a verified boot of Windows, None without one.

    What holds then: a claim is True only where its fact is verified and true; claims of level 1 and
    `not_rolled_back` are not among them, since they are not the log's to tell. Raises ValueError for a
    description that is not proven, or of another system.
    """
    own = [requirement.claim for requirement in WINDOWS_REQUIREMENTS if requirement.level >= _BOOT]
    if description is None:
        why = "no trusted boot event log shows it"
        return tuple(Judgement(claim, None, why) for claim in own if claim != "not_rolled_back")
    if not isinstance(description.boot, VerifiedBoot) or description.windows is None:
        raise ValueError("levels are given to verified boots of Windows alone")
    derived = {
        "secure_boot_enabled": judge_secure_boot(description.boot),
        "secure_boot_keys_accepted": judge_keys(description.boot, policy),
        "boot_rules_met": judge_boot_rules(description, policy),
        "smm_isolated": _SMM,
    }
    return tuple(
        derived[claim] if claim in derived else _from_fact(description, claim)
        for claim in own
        if claim != "not_rolled_back"
    )


def _from_fact(description: BootDescription, claim: str) -> Judgement:
    fact = description.fact(claim)
    if fact is None:
        return Judgement(claim, None, "the boot event log does not tell")
    if fact.trust is not Trust.VERIFIED:
        return Judgement(claim, None, f"the quoted PCRs do not prove it ({fact.source})")
    if fact.value is True:
        return Judgement(claim, True)
    return Judgement(claim, fact.value, fact.source)
