"""One Windows boot, read: from a verified log to the facts that a level asks about.

A hibernated machine: after the resume the PCRs hold the resume log (`cold_boot` is False, and it has
little more than counters and the boot manager's settings). What the system is that was resumed stands in
the log of the boot before; a trust point in that log (`trust_point`) proves it belongs to the same TPM,
and nothing proves that the hibernated memory is what that boot left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import EventLog
from affiant.tpm.measurements import Measurements, bind_measurements
from affiant.tpm.replay import VerifiedEventLog
from affiant.tpm.secure_boot import read_secure_boot
from affiant.tpm.windows.boot_manager import boot_manager_by_microsoft
from affiant.tpm.windows.configuration_log import (
    CONFIGURATION_PCRS,
    ConfigurationLog,
    read_configuration_log,
    read_untrusted_configuration_log,
)
from affiant.tpm.windows.details import WindowsDetails, read_details
from affiant.tpm.windows.facts import Trust, WindowsFact, read_facts

__all__ = [
    "WINDOWS_BOOT_PCRS",
    "UntrustedWindowsBoot",
    "WindowsBoot",
    "read_untrusted_windows_boot",
    "read_windows_boot",
]

WINDOWS_BOOT_PCRS: Final = (*range(8), 11, 12, 13, 14)
"""The PCRs of firmware, Secure Boot and Windows: what must replay for every claim to be verified."""

_SECURE_BOOT_PCR: Final = 7
_LAUNCH_PCR: Final = 17


@dataclass(frozen=True, slots=True)
class WindowsBoot:
    """What Windows measured, as a quote proves it; made by `read_windows_boot` alone.

    `facts`: each with its own trust label, see `read_windows_boot`. `details`: from complete PCRs only,
    so every one of them is proven. `complete_pcrs` and `unexplained`: see `ConfigurationLog`.
    """

    bank: HashAlgorithm
    facts: tuple[WindowsFact, ...]
    details: WindowsDetails
    complete_pcrs: frozenset[int]
    unexplained: Mapping[int, int]

    def fact(self, name: str) -> WindowsFact:
        """The fact of that name; ValueError when there is none."""
        for fact in self.facts:
            if fact.name == name:
                return fact
        raise ValueError(f"there is no Windows fact {name!r}")

    def claim(self, name: str) -> bool | None:
        """The value of a fact if it is verified, None otherwise; ValueError for an unknown name."""
        fact = self.fact(name)
        return fact.value if fact.trust is Trust.VERIFIED else None


@dataclass(frozen=True, slots=True)
class UntrustedWindowsBoot:
    """What a log *says* that Windows measured, for people; every fact in it is untrusted."""

    facts: tuple[WindowsFact, ...]
    untrusted_details: WindowsDetails


def read_windows_boot(log: VerifiedEventLog, *, expected_reset_count: int | None = None) -> WindowsBoot:
    """Read what Windows measured out of a verified log.

    `expected_reset_count` is the quote's resetCount, given only where it is not obfuscated (keys of the
    endorsement and platform hierarchies: TPM 2.0 Library, Part 1, section 36.7).

    When it returns, a fact that is `VERIFIED`

    - comes from data that a digest covers, in PCRs that replay onto the quote;
    - was measured before Windows closed its PCRs: what the running system adds has no effect;
    - holds for *every* event of its kind in PCR 12 and 13 (and what a dynamic launch measured);
    - misses nothing: all events of its PCRs are bound and decoded, or it is `UNTRUSTED`.

    The facts that more than one event decides are

    - `vbs_enabled`: VSM was launched, one IDKS was measured, and hypervisor and secure kernel were
      loaded, validated and signed as Windows';
    - `hvci_enabled`: `vbs_enabled`, and code integrity enforced by the hypervisor;
    - `vsm_identity_key_measured`: one readable IDKS (`details.signing_key`);
    - `hypervisor_debugging_disabled`: also where no hypervisor was launched;
    - `elam_driver_loaded`, `modules_validated`: by what the loader said of the modules in PCR 13;
    - `cold_boot`: not resumed from hibernation; `kernel_soft_reboot_absent`: nor by a soft reboot;
    - `boot_counter_matches`: BOOT_COUNTER is `expected_reset_count` (None without it);
    - `bitlocker_enabled`, `bitlocker_recovery_unused`: by the unlock flags in PCR 12;
      `bitlocker_access_closed`: PCR 11 was closed;
    - `drtm_launched`: PCR 17 starts from a dynamic launch and holds one (`VerifiedEventLog.launched_pcrs`);
    - `boot_manager_by_microsoft`: see `affiant.tpm.windows.boot_manager`; without it nothing says that
      Windows made these measurements;
    - `windows_measurements_complete`: PCR 12, 13 and 14 are complete.

    Each other fact says that all events of one kind have the value in its name.

    Raises MalformedError when no Windows event is in PCR 12 to 14, ForgedError where `bind_event` does.
    """
    measurements = bind_measurements(log)
    configuration = read_configuration_log(measurements)
    _require_windows(configuration)
    claimed = read_details(configuration)
    proven = claimed if configuration.is_proven else read_details(configuration.proven())
    launched = _LAUNCH_PCR in log.launched_pcrs
    if not launched:
        # Whoever can speak to the TPM can extend PCR 20; only after a launch does it tell of one.
        proven = replace(proven, smm_level=None)
    facts = (
        *read_facts(configuration, claimed, expected_reset_count=expected_reset_count),
        _drtm(log, measurements),
        _boot_manager(log, measurements),
    )
    return WindowsBoot(log.bank, facts, proven, configuration.complete, configuration.unexplained)


def read_untrusted_windows_boot(log: EventLog) -> UntrustedWindowsBoot:
    """Read what an unverified log says, for people; nothing in it is proven.

    Raises MalformedError when no Windows event is in PCR 12 to 14.
    """
    configuration = read_untrusted_configuration_log(log)
    _require_windows(configuration)
    details = read_details(configuration)
    return UntrustedWindowsBoot(read_facts(configuration, details, expected_reset_count=None), details)


def _require_windows(configuration: ConfigurationLog) -> None:
    found = (event for events in configuration.by_identifier.values() for event in events)
    if not any(event.pcr in CONFIGURATION_PCRS for event in found):
        raise MalformedError(
            "event log: no Windows events in PCR 12 to 14",
            hint="this is not a Windows boot configuration log, or its PCRs were not replayed",
        )


def _drtm(log: VerifiedEventLog, measurements: Measurements) -> WindowsFact:
    if _LAUNCH_PCR not in log.pcrs:
        return WindowsFact("drtm_launched", None, Trust.UNTRUSTED, "PCR 17 was not replayed")
    launched = _LAUNCH_PCR in log.launched_pcrs and bool(measurements.of(_LAUNCH_PCR))
    source = "PCR 17: starts from a launch" if launched else "PCR 17: no launch"
    return WindowsFact("drtm_launched", launched, Trust.VERIFIED, source)


def _boot_manager(log: VerifiedEventLog, measurements: Measurements) -> WindowsFact:
    name = "boot_manager_by_microsoft"
    if _SECURE_BOOT_PCR not in log.pcrs:
        return WindowsFact(name, None, Trust.UNTRUSTED, "PCR 7 was not replayed")
    value = boot_manager_by_microsoft(read_secure_boot(measurements))
    return WindowsFact(name, value, Trust.VERIFIED, "PCR 7: SecureBoot and authorities")
