"""The level that one boot deserves by itself, for who explains a log without a service.

The service gives levels to sessions. Here a person brings the evidence and vouches for what only a service
can establish: that the attestation key was enrolled, that its TPM is a real one, and that the TPM's state
is not an older one restored. Those claims are taken as given and named as such; all others are judged as
the service judges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.enforced_code import judge_enforced_code
from affiant.appraisal.enrolled_key import BootCounters
from affiant.appraisal.levels import REQUIREMENTS, Judgement, explain_level
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.rooted import NEVER_LAUNCHED
from affiant.appraisal.verified_boot import judge_verified_boot
from affiant.appraisal.windows_levels import WINDOWS_REQUIREMENTS, judge_windows_boot
from affiant.model.level import SecurityLevel, Shortfall
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot
from affiant.tpm.quote import VerifiedQuote
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS

__all__ = ["ASSUMED", "BootLevel", "judge_boot_level"]

ASSUMED: Final = ("attestation_key_enrolled", "endorsement_trusted", "not_rolled_back")
"""What the person who names the attestation key vouches for: only a service remembers keys and quotes."""


@dataclass(frozen=True, slots=True)
class BootLevel:
    """A level, why it is not one higher, and the claims that were taken as given."""

    level: SecurityLevel
    shortfalls: tuple[Shortfall, ...]
    assumed: tuple[str, ...]


def judge_boot_level(
    description: BootDescription, *, quote: VerifiedQuote | None, policy: AppraisalPolicy
) -> BootLevel:
    """Return the level of a described boot; `quote` is the verified one that it rests on.

    What holds then: without a quote the level is 0; with one, every claim but those in `assumed` follows
    from the quote and from data that it covers. A quote that answers an empty nonce is not fresh.
    Raises ValueError when quote and description do not go together.
    """
    is_windows = description.windows is not None
    table = WINDOWS_REQUIREMENTS if is_windows else REQUIREMENTS
    if (quote is not None) != description.is_proven:
        raise ValueError("a proven description comes with its quote, no other does")
    if quote is None or not isinstance(description.boot, VerifiedBoot):
        why = "there is no quote, so nothing is proven"
        claims = ("attestation_key_enrolled", "endorsement_trusted", "quote_fresh", "event_log_replayed")
        level, shortfalls = explain_level(
            (Judgement(claim, None, why) for claim in claims), requirements=table
        )
        return BootLevel(level, shortfalls, ())
    root = (
        *(Judgement(claim, True) for claim in ASSUMED),
        _fresh(quote),
        _replayed(description, WINDOWS_BOOT_PCRS if is_windows else BOOT_PCRS),
    )
    judgements = (
        judge_windows_boot(description, policy=policy)
        if is_windows
        else _linux(description.boot, counters=_counters(description, quote), policy=policy)
    )
    level, shortfalls = explain_level((*root, *judgements), requirements=table)
    return BootLevel(level, shortfalls, ASSUMED)


def _fresh(quote: VerifiedQuote) -> Judgement:
    if quote.extra_data:
        return Judgement("quote_fresh", True)
    return Judgement("quote_fresh", False, "the quote answers no nonce: it may be of any time")


def _replayed(description: BootDescription, pcrs: tuple[int, ...]) -> Judgement:
    claim = "event_log_replayed"
    if missing := sorted(set(pcrs) - description.replayed):
        names = ", ".join(map(str, missing))
        return Judgement(claim, False, f"the quote does not select PCR {names}, which the boot extends")
    return Judgement(claim, True)


def _counters(description: BootDescription, quote: VerifiedQuote) -> BootCounters:
    """The quoted counters, without the restart that a dynamic launch counts as."""
    info = quote.clock_info
    launches = int(description.launch is not None and description.launch not in NEVER_LAUNCHED)
    return BootCounters(info.reset_count, max(0, info.restart_count - launches), info.clock)


def _linux(boot: VerifiedBoot, *, counters: BootCounters, policy: AppraisalPolicy) -> tuple[Judgement, ...]:
    judged = judge_verified_boot(
        boot, counters=counters, last_seen=None, shown_reference=None, policy=policy, references=()
    )
    enabled = any(one.claim == "secure_boot_enabled" and one.value is True for one in judged.judgements)
    enforced = judge_enforced_code(boot, kernel=None, secure_boot_enabled=enabled, policy=policy)
    return (*(one for one in judged.judgements if one.claim not in ASSUMED), *enforced)
