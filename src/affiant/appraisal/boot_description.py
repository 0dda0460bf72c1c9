"""One boot, in the terms that a policy judges and a person reads, with what all of it rests on."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from affiant.appraisal.boot_facts import BootFact, firmware_facts, linux_facts, windows_facts
from affiant.appraisal.policy import AppraisalPolicy
from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import BOOT_PCRS, UntrustedBoot, VerifiedBoot, read_untrusted_boot, verify_boot
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.quote import VerifiedQuote
from affiant.tpm.replay import VerifiedEventLog, leads_to, replay_event_log, replay_values
from affiant.tpm.windows.boot import (
    WINDOWS_BOOT_PCRS,
    UntrustedWindowsBoot,
    WindowsBoot,
    read_untrusted_windows_boot,
    read_windows_boot,
)
from affiant.tpm.windows.configuration_log import CONFIGURATION_PCRS, is_windows_log, windows_bank
from affiant.tpm.windows.details import WindowsDetails

__all__ = [
    "BootDescription",
    "Proof",
    "bank_of",
    "describe_untrusted_boot",
    "describe_verified_boot",
    "of_verified_boot",
    "strongest_bank",
]


class Proof(enum.Enum):
    """What a description rests on; the value is the word used in JSON."""

    QUOTE = "quote"
    UNSIGNED_VALUES = "unsigned PCR values"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class BootDescription:
    """What one log tells; only with `Proof.QUOTE` is any of it more than somebody's word.

    `unreplayed`: PCRs of the quote (or of the values shown) that the log does not lead to, none of which
    anything here rests on. `launch`: the quoted value of PCR 17.
    """

    proof: Proof
    boot: VerifiedBoot | UntrustedBoot
    windows: WindowsBoot | UntrustedWindowsBoot | None
    facts: tuple[BootFact, ...]
    replayed: frozenset[int]
    unreplayed: frozenset[int]
    launch: bytes | None

    @property
    def is_proven(self) -> bool:
        """Whether a verified quote stands behind this."""
        return self.proof is Proof.QUOTE

    @property
    def details(self) -> WindowsDetails | None:
        """What Windows measured besides facts, for people; None for other systems. See `details_of`."""
        if isinstance(self.windows, WindowsBoot):
            return self.windows.details
        return None if self.windows is None else self.windows.untrusted_details

    def details_of(self, pcr: int) -> WindowsDetails | None:
        """The details as far as they come from one PCR, and are worth what this description is worth.

        None where a quote stands behind this description, but does not prove all that `pcr` holds.
        """
        if self.is_proven and not (
            isinstance(self.windows, WindowsBoot) and pcr in self.windows.complete_pcrs
        ):
            return None
        return self.details

    def fact(self, name: str) -> BootFact | None:
        """The fact of that name, None where this kind of boot has none."""
        return next((fact for fact in self.facts if fact.name == name), None)


def describe_verified_boot(
    quote: VerifiedQuote,
    log: bytes,
    *,
    policy: AppraisalPolicy,
    padded: bool = False,
    later: frozenset[int] = frozenset(),
) -> BootDescription:
    """Describe a boot by a log that replays onto a verified quote.

    `later` are PCRs that another log reaches together with this one: here they may be out of reach.

    When it returns,

    - the log replays onto all PCRs in the quote that the system's boot extends (`BOOT_PCRS` or
      `WINDOWS_BOOT_PCRS`) and are not `later`, and onto those in `replayed`;
    - every fact that is `VERIFIED` follows from data which these PCRs cover.

    PCRs that a running system extends too, and whose quoted value the log does not reach, are
    `unreplayed` and used for nothing. Raises MalformedError or ForgedError.
    """
    parsed = parse_event_log(log, padded=padded)
    is_windows = is_windows_log(parsed)
    core = set(WINDOWS_BOOT_PCRS if is_windows else BOOT_PCRS) & quote.pcrs.keys()
    if not core:
        raise ForgedError("quote: its signed selection has no PCR of the boot")
    core -= later
    further = _explained(parsed, quote, frozenset(quote.pcrs.keys() - core))
    verified = replay_event_log(parsed, quote, required_pcrs=core | further)
    boot = verify_boot(quote, log, required_pcrs=verified.pcrs, padded=padded)
    windows = _read_windows(parsed, verified, quote) if is_windows else None
    return BootDescription(
        proof=Proof.QUOTE,
        boot=boot,
        windows=windows,
        facts=_facts(boot, windows, policy),
        replayed=verified.pcrs,
        unreplayed=frozenset(quote.pcrs.keys() - verified.pcrs),
        launch=boot.launch,
    )


def of_verified_boot(boot: VerifiedBoot, *, policy: AppraisalPolicy) -> BootDescription:
    """Describe a boot that is verified already, as the service does with a Linux guest's."""
    return BootDescription(
        proof=Proof.QUOTE,
        boot=boot,
        windows=None,
        facts=_facts(boot, None, policy),
        replayed=frozenset(boot.replayed_pcrs),
        unreplayed=frozenset(),
        launch=boot.launch,
    )


def describe_untrusted_boot(
    log: EventLog,
    *,
    policy: AppraisalPolicy,
    values: Mapping[HashAlgorithm, Mapping[int, bytes]] | None = None,
    later: frozenset[int] = frozenset(),
) -> BootDescription:
    """Describe what a log says, for people; all facts are untrusted.

    `values` are PCR values that nobody signed. When it returns, the log leads to those of the boot (but
    `later`, see `describe_verified_boot`); that shows a log which was not mixed up, and proves nothing.
    Raises ForgedError where it does not, or contradicts itself, and MalformedError.
    """
    shown = {bank: pcrs for bank, pcrs in (values or {}).items() if pcrs}
    bank = bank_of(log, shown)
    boot = read_untrusted_boot(log, bank=bank)
    windows = read_untrusted_windows_boot(log) if is_windows_log(log) else None
    replayed, unreplayed = _compare(log, bank, shown.get(bank, {}), windows is not None, later)
    return BootDescription(
        proof=Proof.UNSIGNED_VALUES if shown else Proof.NOTHING,
        boot=boot,
        windows=windows,
        facts=_facts(boot, windows, policy),
        replayed=replayed,
        unreplayed=unreplayed,
        launch=None,
    )


def bank_of(log: EventLog, values: Mapping[HashAlgorithm, Mapping[int, bytes]]) -> HashAlgorithm:
    """Return the bank to read an unverified log in where these PCR values are shown with it.

    Raises MalformedError where the log has no digests of their banks.
    """
    bank = strongest_bank(log)
    shown = {one for one, pcrs in values.items() if pcrs}
    if not shown or bank in shown:
        return bank
    usable = [other for other in sorted(shown, reverse=True) if _has_digests(log, other)]
    if not usable:
        names = ", ".join(other.title for other in values)
        raise MalformedError(f"PCR values: the log has no digests of the bank that they are of ({names})")
    return usable[0]


def strongest_bank(log: EventLog) -> HashAlgorithm:
    """Return the bank to read an unverified log in: Windows' own, else the strongest all events have.

    Raises MalformedError where there is none.
    """
    if is_windows_log(log):
        return windows_bank(log)
    for bank in sorted(HashAlgorithm, reverse=True):
        # SHA-256 before stronger ones: it is the bank that most logs have, so that digests compare.
        if bank <= HashAlgorithm.SHA256 and _has_digests(log, bank):
            return bank
    for bank in (HashAlgorithm.SHA384, HashAlgorithm.SHA512):
        if _has_digests(log, bank):
            return bank
    raise MalformedError("event log: no bank that is known here has all events")


def _has_digests(log: EventLog, bank: HashAlgorithm) -> bool:
    measured = [event for event in log.events if event.digests and event.pcr < 24]
    return bool(measured) and all(int(bank) in event.digests for event in measured)


def _facts(
    boot: VerifiedBoot | UntrustedBoot,
    windows: WindowsBoot | UntrustedWindowsBoot | None,
    policy: AppraisalPolicy,
) -> tuple[BootFact, ...]:
    further = linux_facts(boot, policy=policy) if windows is None else windows_facts(windows.facts)
    return (*firmware_facts(boot), *further)


def _explained(log: EventLog, quote: VerifiedQuote, candidates: frozenset[int]) -> frozenset[int]:
    """The PCRs among `candidates` whose quoted value the log leads to, by its events or by having none."""
    found = set()
    for pcr in candidates:
        try:
            replay_event_log(log, quote, required_pcrs=(pcr,))
        except ForgedError:
            continue
        found.add(pcr)
    return frozenset(found)


def _read_windows(
    parsed: EventLog, log: VerifiedEventLog, quote: VerifiedQuote
) -> WindowsBoot | UntrustedWindowsBoot:
    if not log.pcrs.intersection(CONFIGURATION_PCRS):
        # Nothing that Windows measured is in the quote: it is told, and every fact in it is untrusted.
        return read_untrusted_windows_boot(parsed)
    windows = read_windows_boot(log)
    # Keys outside the endorsement and platform hierarchies quote an obfuscated counter (Part 1, section
    # 36.7), and a key does not tell its hierarchy: the same number is no accident, another proves nothing.
    counter = quote.clock_info.reset_count
    if windows.details.boot_counter == counter:
        return read_windows_boot(log, expected_reset_count=counter)
    return windows


def _compare(
    log: EventLog,
    bank: HashAlgorithm,
    shown: Mapping[int, bytes],
    is_windows: bool,
    later: frozenset[int],
) -> tuple[frozenset[int], frozenset[int]]:
    reached = replay_values(log, bank=bank, pcrs=shown.keys())
    same = frozenset(pcr for pcr in shown if leads_to(pcr, reached[pcr], shown[pcr], bank=bank))
    different = frozenset(shown) - same
    core = frozenset(WINDOWS_BOOT_PCRS if is_windows else BOOT_PCRS)
    if wrong := sorted(different & core - later):
        names = ", ".join(map(str, wrong))
        raise ForgedError(f"event log: does not replay to the values shown of PCR {names}")
    return same, different
