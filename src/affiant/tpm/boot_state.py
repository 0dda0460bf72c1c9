"""One boot, verified: from a quote and an event log to everything that appraisal asks about it.

The flow is: parse the log, replay it onto the quote, bind each event's data to its digest, and read
the facts of firmware, Secure Boot, shim and GRUB out of bound data.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import ClockInfo
from affiant.tpm.binding import BoundEvent, bind_event
from affiant.tpm.cel import append_userspace_log, parse_userspace_log
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.final_events import append_final_events
from affiant.tpm.gpt import PartitionTable, read_partition_tables
from affiant.tpm.grub import GrubFacts, read_grub
from affiant.tpm.measurements import Measurements, bind_measurements
from affiant.tpm.mok import MokFacts, read_mok
from affiant.tpm.os_separator import is_os_separator
from affiant.tpm.quote import VerifiedQuote
from affiant.tpm.replay import MeasuredEvent, replay_event_log
from affiant.tpm.secure_boot import SecureBootFacts, read_secure_boot
from affiant.tpm.shim import ShimFacts, read_shim
from affiant.tpm.uki import UkiFacts, read_uki

__all__ = [
    "BOOT_PCRS",
    "BootApplication",
    "Claim",
    "UntrustedBoot",
    "VerifiedBoot",
    "read_untrusted_boot",
    "verify_boot",
]

BOOT_PCRS: Final = (*range(10), 14)
"""The PCRs that firmware, shim and GRUB extend before Linux runs: what must replay by default."""

_FIRMWARE_PCRS: Final = range(8)
_APPLICATION_PCR: Final = 4
_LAUNCH_PCR: Final = 17
_DEBUG_ACTION: Final = "UEFI Debug Mode"
_DMA_ACTION: Final = "DMA Protection Disabled"


@dataclass(frozen=True, slots=True)
class Claim:
    """One property of the boot, in positive polarity, and where it comes from.

    `value` is None where the evidence does not tell; that counts as unsafe. `source` is for people.
    """

    name: str
    value: bool | None
    source: str


@dataclass(frozen=True, slots=True)
class BootApplication:
    """An EFI image measured into PCR 4 after the firmware handed over: its Authenticode digest.

    shim, GRUB and the kernel (which shim measures when it verifies it) in the order of their start.
    """

    digest: bytes
    untrusted_data: bytes


@dataclass(frozen=True, slots=True)
class VerifiedBoot:
    """What booted, as quoted PCRs prove it; made by `verify_boot` alone.

    `claims`: properties for the level, see `verify_boot`. `firmware_version`: S-CRTM version, text.
    `applications`: EFI images in PCR 4. `kernel_candidates`: digests of all files GRUB read
    (PCR 9), among them every kernel it loaded. `launch`: the quoted value of PCR 17, None
    when it is not in the signed selection. `log_truncated`: the log came from a buffer too small for it.
    `uki`: what systemd's boot loader and stub measured, empty unless PCR 11 to 13 were replayed too.
    `mok`: PCR 14, shim's machine owner keys. `partition_tables`: those that PCR 5 covers.
    """

    bank: HashAlgorithm
    replayed_pcrs: tuple[int, ...]
    claims: tuple[Claim, ...]
    firmware_version: str | None
    secure_boot: SecureBootFacts
    shim: ShimFacts
    grub: GrubFacts
    applications: tuple[BootApplication, ...]
    launch: bytes | None
    clock_info: ClockInfo
    log_truncated: bool
    uki: UkiFacts
    mok: MokFacts
    partition_tables: tuple[PartitionTable, ...]

    @property
    def kernel_candidates(self) -> tuple[bytes, ...]:
        """Digests of the files among which the booted kernel is, each once, in measured order."""
        return tuple(dict.fromkeys(file.digest for file in self.grub.files))

    @property
    def command_line(self) -> str | None:
        """The kernel's command line where only one can have been used (see `GrubFacts`)."""
        return self.grub.command_line

    def claim(self, name: str) -> bool | None:
        """The value of one claim; ValueError for a name that does not exist."""
        for claim in self.claims:
            if claim.name == name:
                return claim.value
        raise ValueError(f"there is no boot claim {name!r}")


def verify_boot(
    quote: VerifiedQuote,
    log: bytes,
    *,
    required_pcrs: Collection[int] = BOOT_PCRS,
    padded: bool = False,
    final_events: bytes | None = None,
    userspace_log: bytes | None = None,
) -> VerifiedBoot:
    """Verify a TCG event log against a quote, and read what booted.

    `final_events` is the final events table where the log was fetched before the boot had ended,
    `userspace_log` systemd's log of what it measured since; both are replayed with `log`, as one.

    When it returns,

    - the log replays to the quoted values of all `required_pcrs` in the quote's bank
      (`replay_event_log`);
    - every fact comes from data that a digest of these PCRs covers (`bind_event`), or is named untrusted;
    - facts of the firmware come from before the separator of their PCR, which nobody can add to later;
    - a claim is None, never True, where its PCR was not replayed.

    The claims are:

    - `firmware_measured`: PCR 0 starts with an S-CRTM version or content, and PCR 0 to 7 have a
      separator that reports no error;
    - `secure_boot_enabled`: the firmware measured SecureBoot as 1 (which it is neither in setup mode
      nor in audit mode: UEFI, section 32.3);
    - `secure_boot_explained`: no event in PCR 7 that could hide an authority;
    - `firmware_debugging_disabled`, `dma_protection_enabled`: no such action in PCR 7;
    - `shim_validation_enabled`: see `ShimFacts.validation_disabled`;
    - `machine_owner_keys_absent`: see `ShimFacts.owner_keys_absent`;
    - `boot_commands_explained`: the log holds every string in PCR 8.

    Raises MalformedError or ForgedError.
    """
    parsed = parse_event_log(log, padded=padded)
    if final_events is not None:
        parsed = append_final_events(parsed, final_events)
    if userspace_log is not None:
        parsed = append_userspace_log(parsed, parse_userspace_log(userspace_log))
    verified = replay_event_log(parsed, quote, required_pcrs=required_pcrs)
    measurements = bind_measurements(verified)
    secure_boot = read_secure_boot(measurements)
    shim = read_shim(measurements, secure_boot)
    grub = read_grub(measurements)
    return VerifiedBoot(
        bank=quote.bank,
        replayed_pcrs=tuple(sorted(verified.pcrs)),
        claims=_claims(measurements, secure_boot, shim, grub),
        firmware_version=_firmware_version(measurements),
        secure_boot=secure_boot,
        shim=shim,
        grub=grub,
        applications=_applications(measurements),
        launch=quote.pcrs.get(_LAUNCH_PCR),
        clock_info=quote.clock_info,
        log_truncated=parsed.truncated,
        uki=read_uki(measurements),
        mok=read_mok(measurements, vendor_certificates=shim.authorities),
        partition_tables=read_partition_tables(measurements),
    )


@dataclass(frozen=True, slots=True)
class UntrustedBoot:
    """What a log *says* that booted, for people; nothing in it is proven.

    The fields are those of `VerifiedBoot` as far as a log alone can tell them; made by
    `read_untrusted_boot`, and accepted by nothing that gives a level.
    """

    bank: HashAlgorithm
    claims: tuple[Claim, ...]
    firmware_version: str | None
    secure_boot: SecureBootFacts
    shim: ShimFacts
    grub: GrubFacts
    applications: tuple[BootApplication, ...]
    log_truncated: bool
    uki: UkiFacts


def read_untrusted_boot(log: EventLog, *, bank: HashAlgorithm) -> UntrustedBoot:
    """Read what an unverified log says, for people.

    When it returns, the log at least agrees with itself: data that must be what was measured hashes to
    the digest beside it in `bank`. Anybody can write such a log. Raises ForgedError where the data do
    not, MalformedError for an event without a digest of `bank`.
    """
    by_pcr: dict[int, list[BoundEvent]] = {}
    for event in log.events:
        if event.type == EventType.NO_ACTION:
            continue
        digest = event.digests.get(int(bank))
        if digest is None:
            raise MalformedError(f"event log: event {event.index} has no {bank.title} digest")
        if is_os_separator(event.pcr, digest, bank=bank):
            continue
        claimed = MeasuredEvent(event.index, event.pcr, digest, event.type, event.data)
        by_pcr.setdefault(event.pcr, []).append(bind_event(claimed, bank=bank))
    claimed_measurements = Measurements(bank, {pcr: tuple(events) for pcr, events in by_pcr.items()})
    secure_boot = read_secure_boot(claimed_measurements)
    shim = read_shim(claimed_measurements, secure_boot)
    grub = read_grub(claimed_measurements)
    return UntrustedBoot(
        bank=bank,
        claims=_claims(claimed_measurements, secure_boot, shim, grub),
        firmware_version=_firmware_version(claimed_measurements),
        secure_boot=secure_boot,
        shim=shim,
        grub=grub,
        applications=_applications(claimed_measurements),
        log_truncated=log.truncated,
        uki=read_uki(claimed_measurements),
    )


def _claims(
    measurements: Measurements, secure_boot: SecureBootFacts, shim: ShimFacts, grub: GrubFacts
) -> tuple[Claim, ...]:
    complete = measurements.has_separator(7)
    actions = secure_boot.actions
    return (
        Claim("firmware_measured", _firmware_measured(measurements), "PCR 0-7: S-CRTM and separators"),
        Claim("secure_boot_enabled", secure_boot.secure_boot if complete else None, "PCR 7: SecureBoot"),
        Claim(
            "secure_boot_explained", secure_boot.unexplained == 0 if complete else None, "PCR 7: all events"
        ),
        Claim(
            "firmware_debugging_disabled",
            _DEBUG_ACTION not in actions if complete else None,
            "PCR 7: actions",
        ),
        Claim("dma_protection_enabled", _DMA_ACTION not in actions if complete else None, "PCR 7: actions"),
        Claim("shim_validation_enabled", _negate(shim.validation_disabled), "PCR 7: MokSBState"),
        Claim("machine_owner_keys_absent", shim.owner_keys_absent, "PCR 14: MokList"),
        Claim("boot_commands_explained", _commands_explained(measurements, grub), "PCR 8: all events"),
    )


def _negate(value: bool | None) -> bool | None:
    return None if value is None else not value


def _firmware_measured(measurements: Measurements) -> bool | None:
    if any(pcr not in measurements.by_pcr for pcr in _FIRMWARE_PCRS):
        return None
    # Platform Firmware Profile, section 3.3.4.1: the S-CRTM's version or contents come first in PCR 0.
    started = bool(measurements.before_separator(0))
    return started and all(measurements.has_separator(pcr) for pcr in _FIRMWARE_PCRS)


def _commands_explained(measurements: Measurements, grub: GrubFacts) -> bool | None:
    if not measurements.of(8):
        return None
    return grub.unexplained == 0


def _firmware_version(measurements: Measurements) -> str | None:
    for bound in measurements.before_separator(0):
        if bound.event.untrusted_type == EventType.S_CRTM_VERSION and bound.covered is not None:
            return bound.covered.decode("utf-16-le", "replace").rstrip("\0")
    return None


def _applications(measurements: Measurements) -> tuple[BootApplication, ...]:
    # Not chosen by type, and not by whether the log holds what was hashed: whoever writes the log could call
    # an image anything, or put the image itself there. Only text, which no image is, is left out.
    return tuple(
        BootApplication(bound.digest, bound.event.untrusted_data)
        for bound in measurements.after_separator(_APPLICATION_PCR)
        if not bound.is_separator and not _is_text(bound.covered)
    )


def _is_text(covered: bytes | None) -> bool:
    return covered is not None and covered.isascii() and covered.decode("ascii").isprintable()
