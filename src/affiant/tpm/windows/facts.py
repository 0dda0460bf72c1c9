"""Facts of a Windows boot as claims in positive polarity: what is missing counts as unsafe."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from affiant.tpm.windows.bitlocker import ACCESS_CAP, BITLOCKER_PCR, BitLockerUnlock
from affiant.tpm.windows.configuration_log import CONFIGURATION_PCRS, ConfigurationLog
from affiant.tpm.windows.details import WindowsDetails
from affiant.tpm.windows.microsoft import HYPERVISORS, SECURE_KERNEL, WINDOWS_ISSUERS, WINDOWS_PUBLISHERS
from affiant.tpm.windows.modules import LoadedModule
from affiant.tpm.windows.sipa import Sipa

__all__ = ["Trust", "WindowsFact", "read_facts"]

_SETTINGS: Final = frozenset({12, 13})
# What a dynamic launch measured may only take a claim away: those PCRs are never the reason for one.
_EVERYWHERE: Final = (12, 13, 19, 20)
_LOADER, _RESUME_LOADER = 1, 2
_DEP_ALWAYS_OFF: Final = 2
_HVCI: Final = 1


class Trust(enum.Enum):
    """What a fact rests on; the value is the word used in JSON and on screens."""

    VERIFIED = "verified"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, slots=True)
class WindowsFact:
    """One property of the boot, in positive polarity.

    `value` is None where the log does not tell; that counts as unsafe. `VERIFIED` means that every PCR
    the value depends on is complete, so that neither the value nor an absence can be a lie of the log.
    `source` names the event that decided, for people.
    """

    name: str
    value: bool | None
    trust: Trust
    source: str


@dataclass(frozen=True, slots=True)
class _Setting:
    """A claim that all events of one kind must support: `good` says of one number whether it does."""

    name: str
    identifier: Sipa
    good: Callable[[int], bool]


def _on(value: int) -> bool:
    return value == 1


def _off(value: int) -> bool:
    return value == 0


_SETTING_CLAIMS: Final = (
    _Setting("code_integrity_enabled", Sipa.CODE_INTEGRITY, _on),
    _Setting("test_signing_disabled", Sipa.TEST_SIGNING, _off),
    _Setting("flight_signing_disabled", Sipa.FLIGHT_SIGNING, _off),
    _Setting("boot_debugging_disabled", Sipa.BOOT_DEBUGGING, _off),
    _Setting("kernel_debugging_disabled", Sipa.OS_KERNEL_DEBUG, _off),
    _Setting("not_safe_mode", Sipa.SAFE_MODE, _off),
    _Setting("not_winpe", Sipa.WINPE, _off),
    _Setting(
        "data_execution_prevention_enabled", Sipa.DATA_EXECUTION_PREVENTION, lambda v: v != _DEP_ALWAYS_OFF
    ),
    _Setting("hypervisor_launched", Sipa.HYPERVISOR_LAUNCH_TYPE, lambda v: v != 0),
    _Setting("hypervisor_mmio_nx_enabled", Sipa.HYPERVISOR_MMIO_NX_POLICY, _on),
    _Setting("hypervisor_msr_filter_enabled", Sipa.HYPERVISOR_MSR_FILTER_POLICY, _on),
    _Setting("boot_dma_protection_enabled", Sipa.HYPERVISOR_BOOT_DMA_PROTECTION, _on),
    _Setting("vbs_required", Sipa.VBS_VSM_REQUIRED, _on),
    _Setting("vbs_secure_boot_required", Sipa.VBS_SECURE_BOOT_REQUIRED, _on),
    _Setting("vbs_iommu_required", Sipa.VBS_IOMMU_REQUIRED, _on),
    _Setting("vbs_mmio_nx_required", Sipa.VBS_MMIO_NX_REQUIRED, _on),
    _Setting("vbs_msr_filtering_required", Sipa.VBS_MSR_FILTERING_REQUIRED, _on),
    _Setting("vbs_mandatory", Sipa.VBS_MANDATORY_ENFORCEMENT, _on),
    _Setting("vbs_microsoft_boot_chain_required", Sipa.VBS_MICROSOFT_BOOT_CHAIN_REQUIRED, _on),
    _Setting("pagefile_encryption_enabled", Sipa.PAGEFILE_ENCRYPTION_ENABLED, _on),
    _Setting("hibernation_disabled", Sipa.HIBERNATION_DISABLED, _on),
    _Setting("dumps_disabled", Sipa.DUMPS_DISABLED, _on),
    _Setting("dump_encryption_enabled", Sipa.DUMP_ENCRYPTION_ENABLED, _on),
)


def read_facts(
    log: ConfigurationLog, details: WindowsDetails, *, expected_reset_count: int | None
) -> tuple[WindowsFact, ...]:
    """The facts that `log` and what was read from it tell; `boot` says what each name means."""
    facts = _Facts(log, details)
    found = {fact.name: fact for fact in map(facts.setting, _SETTING_CLAIMS)}
    launched = found["hypervisor_launched"]
    vbs = facts.vbs()
    others = (
        vbs,
        facts.hvci(vbs),
        facts.hypervisor_debugging(launched),
        facts.identity_key(),
        facts.elam(),
        facts.modules_validated(),
        facts.secure_boot_policy(),
        facts.cold_boot(),
        facts.soft_reboot(),
        facts.boot_counter(expected_reset_count),
        *facts.bitlocker(),
        facts.fact(
            "windows_measurements_complete",
            log.complete.issuperset(CONFIGURATION_PCRS),
            CONFIGURATION_PCRS,
            "PCR 12-14: separators, and every event before them",
        ),
    )
    return (*others, *found.values())


class _Facts:
    """One rule for each fact that more than one event decides."""

    def __init__(self, log: ConfigurationLog, details: WindowsDetails) -> None:
        self._log = log
        self._details = details

    def fact(self, name: str, value: bool | None, pcrs: Collection[int], source: str) -> WindowsFact:
        proven = self._log.complete.issuperset(pcrs)
        return WindowsFact(name, value, Trust.VERIFIED if proven else Trust.UNTRUSTED, source)

    def judge(self, identifier: Sipa, good: Callable[[int], bool]) -> tuple[bool | None, str]:
        """Whether all events of a kind are good: one that is not decides, none at all decides nothing."""
        found = self._log.find(identifier, _EVERYWHERE)
        for one in found:
            number = one.event.number
            if number is None:
                return None, f"{one.source} cannot be read"
            if not good(number):
                return False, f"{one.source} is {number}"
        if not any(one.pcr in _SETTINGS for one in found):
            return None, f"no {identifier.name} in PCR 12 or 13"
        return True, found[0].source

    def setting(self, claim: _Setting) -> WindowsFact:
        value, source = self.judge(claim.identifier, claim.good)
        return self.fact(claim.name, value, _SETTINGS, source)

    def vbs(self) -> WindowsFact:
        """VSM launched, with an identity key, by a hypervisor and a secure kernel that are Windows' own."""
        value, source = self.judge(Sipa.VSM_LAUNCH_TYPE, _on)
        if value is True:
            if self._details.signing_key is None:
                value, source = None, "no single VSM_IDKS_INFO in PCR 12"
            elif not any(_is_windows(module, {SECURE_KERNEL}) for module in self._details.modules):
                value, source = None, "no secure kernel of Windows in PCR 13"
            elif not any(_is_windows(module, HYPERVISORS) for module in self._details.modules):
                value, source = None, "no hypervisor of Windows in PCR 13"
        return self.fact("vbs_enabled", value, _SETTINGS, source)

    def hvci(self, vbs: WindowsFact) -> WindowsFact:
        """The secure kernel decides what code the kernel runs; that takes a secure kernel."""
        value, source = self.judge(Sipa.VBS_HVCI_POLICY, lambda number: bool(number & _HVCI))
        if vbs.value is not True and value is not False:
            value, source = vbs.value, vbs.source
        return self.fact("hvci_enabled", value, _SETTINGS, source)

    def hypervisor_debugging(self, launched: WindowsFact) -> WindowsFact:
        value, source = self.judge(Sipa.HYPERVISOR_DEBUG, _off)
        if value is None and launched.value is False:
            # Without a hypervisor there is nothing to debug, and Windows does not measure the setting.
            value, source = True, launched.source
        return self.fact("hypervisor_debugging_disabled", value, _SETTINGS, source)

    def identity_key(self) -> WindowsFact:
        found = self._log.find(Sipa.VSM_IDKS_INFO, (12,))
        source = found[0].source if found else "no VSM_IDKS_INFO in PCR 12"
        present = self._details.signing_key is not None
        return self.fact("vsm_identity_key_measured", present, (12,), source)

    def elam(self) -> WindowsFact:
        drivers = self._details.elam_drivers
        source = f"PCR 13: {drivers[0].path}" if drivers else "PCR 13: no early-launch driver"
        return self.fact("elam_driver_loaded", bool(drivers), (13,), source)

    def modules_validated(self) -> WindowsFact:
        modules = self._details.modules
        measured = self._log.find(Sipa.LOADED_MODULE_AGGREGATION, (13,))
        value: bool | None = True
        source = f"PCR 13: {len(modules)} modules"
        if not modules or len(modules) != len(measured):
            value, source = None, "PCR 13: no modules, or some that cannot be read"
        elif refused := [module for module in modules if module.validated is not True]:
            value, source = False, f"PCR 13: {refused[0].path or refused[0].digest.hex()}"
        return self.fact("modules_validated", value, (13,), source)

    def secure_boot_policy(self) -> WindowsFact:
        found = self._log.find(Sipa.SBCP_INFO, _SETTINGS)
        source = found[0].source if found else "no SBCP_INFO in PCR 12 or 13"
        return self.fact("secure_boot_custom_policy_absent", not found, _SETTINGS, source)

    def cold_boot(self) -> WindowsFact:
        """Whether the boot manager started the loader, not the one that resumes from hibernation.

        The first hand-over decides together with all others: on a machine with VBS the loader hands
        over a second time, to the hypervisor.
        """
        transfers = self._details.transfers
        value = None if not transfers else transfers[0] == _LOADER and _RESUME_LOADER not in transfers
        return self.fact("cold_boot", value, (12,), f"PCR 12: TRANSFER_CONTROL {transfers or 'absent'}")

    def soft_reboot(self) -> WindowsFact:
        kinds = (Sipa.KSR_AGGREGATION, Sipa.KSR_SIGNED_MEASUREMENT_AGGREGATION)
        found = [one for kind in kinds for one in self._log.find(kind, _EVERYWHERE)]
        source = found[0].source if found else "no KSR_AGGREGATION in PCR 12 or 13"
        return self.fact("kernel_soft_reboot_absent", not found, _SETTINGS, source)

    def boot_counter(self, expected: int | None) -> WindowsFact:
        counter = self._details.boot_counter
        value = None if expected is None or counter is None else counter == expected
        source = f"PCR 12: BOOT_COUNTER {'absent' if counter is None else counter}, the quote's {expected}"
        return self.fact("boot_counter_matches", value, (12,), source)

    def bitlocker(self) -> tuple[WindowsFact, ...]:
        unlocks = self._details.bitlocker_unlocks
        told = [flags.name or "NONE" for flags in unlocks]
        source = f"PCR 12: BITLOCKER_UNLOCK {', '.join(told) or 'absent'}"
        recovery = any(BitLockerUnlock.RECOVERY in flags for flags in unlocks)
        return (
            self.fact("bitlocker_enabled", any(unlocks) if unlocks else None, (12,), source),
            self.fact("bitlocker_recovery_unused", not recovery if unlocks else None, (12,), source),
            self.fact(
                "bitlocker_access_closed",
                ACCESS_CAP in self._log.access,
                (BITLOCKER_PCR,),
                "PCR 11: what closes it",
            ),
        )


def _is_windows(module: LoadedModule, names: Collection[str]) -> bool:
    return (
        module.file_name in names
        and module.validated is True
        and module.issuer in WINDOWS_ISSUERS
        and module.publisher in WINDOWS_PUBLISHERS
    )
