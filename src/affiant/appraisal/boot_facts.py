"""Facts of a boot under one set of names, from Linux and from Windows, each with what it rests on.

All names have positive polarity: true is the safe value, false the unsafe one, None means that the
evidence does not tell, which is as unsafe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from affiant.appraisal.command_line import find_parameters
from affiant.appraisal.policy import AppraisalPolicy
from affiant.tpm.boot_state import UntrustedBoot, VerifiedBoot
from affiant.tpm.windows.facts import Trust, WindowsFact

__all__ = [
    "FACT_NAMES",
    "ONLY_WINDOWS",
    "BootFact",
    "Trust",
    "command_lines",
    "firmware_facts",
    "linux_facts",
    "windows_facts",
]

# The claims of `verify_boot` that the firmware's own measurements decide, and the PCRs they rest on.
_FIRMWARE: Final[dict[str, Collection[int]]] = {
    "firmware_measured": range(8),
    "firmware_debugging_disabled": (7,),
    "dma_protection_enabled": (7,),
    "secure_boot_enabled": (7,),
    "secure_boot_explained": (7,),
}
_SHIM: Final[dict[str, Collection[int]]] = {
    "shim_validation_enabled": (7,),
    "machine_owner_keys_absent": (7, 14),
    "boot_commands_explained": (8,),
}
# A boot loader's own line stands in PCR 8; one passed to an EFI program in PCR 12, and PCR 11 tells whether
# that program was a unified kernel image with a line of its own.
_GRUB_PCRS: Final = frozenset({8})
_STUB_PCRS: Final = frozenset({11, 12})
_IMAGE_PCR: Final = 11
_LINUX_LOADERS: Final = frozenset({"linux", "linuxefi", "linux16"})
ONLY_WINDOWS: Final = "only Windows measures this"
"""The source of a fact that no other system can tell."""

# What only Windows measures, told as unknown of every other system.
_WINDOWS_ONLY: Final = (
    "vbs_enabled",
    "hvci_enabled",
    "vsm_identity_key_measured",
    "drtm_launched",
    "code_integrity_enabled",
    "boot_debugging_disabled",
    "hypervisor_debugging_disabled",
    "elam_driver_loaded",
)
# Windows facts with a rule of their own; the others are settings, see `affiant.tpm.windows.boot`.
_WINDOWS: Final = frozenset(
    {
        *_WINDOWS_ONLY,
        "modules_validated",
        "secure_boot_custom_policy_absent",
        "cold_boot",
        "kernel_soft_reboot_absent",
        "boot_counter_matches",
        "bitlocker_enabled",
        "bitlocker_recovery_unused",
        "bitlocker_access_closed",
        "boot_manager_by_microsoft",
        "windows_measurements_complete",
        "flight_signing_disabled",
        "not_safe_mode",
        "not_winpe",
        "data_execution_prevention_enabled",
        "hypervisor_launched",
        "hypervisor_mmio_nx_enabled",
        "hypervisor_msr_filter_enabled",
        "boot_dma_protection_enabled",
        "vbs_required",
        "vbs_secure_boot_required",
        "vbs_iommu_required",
        "vbs_mmio_nx_required",
        "vbs_msr_filtering_required",
        "vbs_mandatory",
        "vbs_microsoft_boot_chain_required",
        "pagefile_encryption_enabled",
        "hibernation_disabled",
        "dumps_disabled",
        "dump_encryption_enabled",
    }
)

FACT_NAMES: Final = frozenset(
    {*_FIRMWARE, *_SHIM, *_WINDOWS}
    | {"test_signing_disabled", "kernel_debugging_disabled", "command_line_accepted"}
)
"""Every name that a fact may have, hence every one that a policy may require."""


@dataclass(frozen=True, slots=True)
class BootFact:
    """One property of a boot; `source` tells people what decided it.

    `VERIFIED` means that the value follows from data which quoted PCRs cover. A value that is
    None proves nothing, whatever its trust.
    """

    name: str
    value: bool | None
    trust: Trust
    source: str


def firmware_facts(boot: VerifiedBoot | UntrustedBoot) -> tuple[BootFact, ...]:
    """Return what the firmware's own measurements tell, on any system."""
    return tuple(_claims(boot, _FIRMWARE))


def linux_facts(boot: VerifiedBoot | UntrustedBoot, *, policy: AppraisalPolicy) -> tuple[BootFact, ...]:
    """Return what shim, GRUB and systemd-stub measured; `policy` names the parameters that weaken."""
    claims = {fact.name: fact for fact in _claims(boot, _SHIM)}
    validated = claims["shim_validation_enabled"]
    lines = command_lines(boot)
    return (
        *claims.values(),
        BootFact("test_signing_disabled", validated.value, validated.trust, validated.source),
        _parameters(boot, "kernel_debugging_disabled", lines, policy.debugging_parameters),
        _parameters(boot, "command_line_accepted", lines, policy.weakening_parameters),
        *(BootFact(name, None, Trust.UNTRUSTED, ONLY_WINDOWS) for name in _WINDOWS_ONLY),
    )


def windows_facts(facts: Iterable[WindowsFact]) -> tuple[BootFact, ...]:
    """Return Windows' own facts as facts of a boot."""
    return tuple(BootFact(fact.name, fact.value, fact.trust, fact.source) for fact in facts)


def command_lines(boot: VerifiedBoot | UntrustedBoot) -> tuple[str, ...] | None:
    """Return all that may have been the kernel's command line; None where that cannot be told.

    A superset is meant: a rule must hold for every one of them. GRUB's begin with the kernel's path.
    """
    if boot.grub.unexplained or len(boot.grub.load_commands) > 1:
        return None
    if not all(_LINUX_LOADERS.intersection(command.split()) for command in boot.grub.load_commands):
        return None  # another boot loader follows, with command lines of its own
    if any(section.name == ".cmdline" for section in boot.uki.sections) or boot.uki.unexplained:
        return None  # a unified kernel image's own line: its digest is measured, its text is not
    if boot.uki.command_lines and isinstance(boot, VerifiedBoot) and _IMAGE_PCR not in boot.replayed_pcrs:
        return None  # whether the image has a line of its own, only PCR 11 tells
    return (*boot.grub.command_lines, *boot.uki.command_lines) or None


def _claims(boot: VerifiedBoot | UntrustedBoot, pcrs: dict[str, Collection[int]]) -> Iterable[BootFact]:
    for claim in boot.claims:
        if claim.name in pcrs:
            yield BootFact(claim.name, claim.value, _trust(boot, pcrs[claim.name]), claim.source)


def _trust(boot: VerifiedBoot | UntrustedBoot, pcrs: Collection[int]) -> Trust:
    proven = isinstance(boot, VerifiedBoot) and set(pcrs) <= set(boot.replayed_pcrs)
    return Trust.VERIFIED if proven else Trust.UNTRUSTED


def _parameters(
    boot: VerifiedBoot | UntrustedBoot, name: str, lines: tuple[str, ...] | None, patterns: tuple[str, ...]
) -> BootFact:
    if lines is None:
        return BootFact(name, None, Trust.UNTRUSTED, "which command line the kernel got cannot be told")
    found = [parameter for line in lines for parameter in find_parameters(line, patterns)]
    pcrs = (_GRUB_PCRS if boot.grub.command_lines else frozenset()) | (
        _STUB_PCRS if boot.uki.command_lines else frozenset()
    )
    source = "PCR " + " and ".join(map(str, sorted(pcrs))) + ": "
    source += ", ".join(found) if found else "the kernel's command line"
    return BootFact(name, not found, _trust(boot, pcrs), source)
