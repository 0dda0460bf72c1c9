"""The table of requirements for each security level, as data, and the level that claims deserve.

Claims have positive polarity: `True` is the safe value, `False` the unsafe one, and `None` means
that nothing was seen, which is as unsafe. Only `True` meets a requirement. The table in
`docs/security-levels.md` is checked against this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from affiant.model.level import SecurityLevel, Shortfall

__all__ = ["HIGHEST_ATTAINABLE", "REQUIREMENTS", "Judgement", "Requirement", "explain_level"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """`claim` must be true for `level` and all above; `sentence` is what it means when it is."""

    level: SecurityLevel
    claim: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was concluded about one claim.

    `explanation` is one sentence: what was expected and what was found, or that nothing was. It is
    shown when the claim does not hold, and is empty otherwise.
    """

    claim: str
    value: bool | None
    explanation: str = ""

    def __post_init__(self) -> None:
        if (self.value is True) == bool(self.explanation):
            raise ValueError(f"{self.claim}: a claim that does not hold is explained, no other is")


_ROOTED = SecurityLevel.ROOTED
_VERIFIED_BOOT = SecurityLevel.VERIFIED_BOOT
_ISOLATED = SecurityLevel.ISOLATED
_ENFORCED_CODE = SecurityLevel.ENFORCED_CODE
_HARDWARE_ROOTED_HOST = SecurityLevel.HARDWARE_ROOTED_HOST

HIGHEST_ATTAINABLE = SecurityLevel.ENFORCED_CODE
"""No evidence that Affiant carries today can prove what lies above."""

REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement(
        _ROOTED,
        "attestation_key_enrolled",
        "The attestation key proved, by credential activation, that it lives in a known device's TPM.",
    ),
    Requirement(
        _ROOTED,
        "endorsement_trusted",
        "That TPM's endorsement certificate leads to a root that the operator trusts, now.",
    ),
    Requirement(
        _ROOTED,
        "quote_fresh",
        "A quote by that key covers this challenge, this enclave report and every PCR that was asked for.",
    ),
    Requirement(
        _ROOTED,
        "event_log_replayed",
        "The boot event log reproduces the quoted PCRs; event data counts only where it was measured.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "firmware_measured",
        "The firmware measured itself from its first code on, and ended its measurements without an error.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "firmware_debugging_disabled",
        "The firmware did not run in its debug mode.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "secure_boot_enabled",
        "The firmware enforced UEFI Secure Boot: on, and neither in setup nor in audit mode.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "secure_boot_keys_accepted",
        "Policy accepts every certificate and hash in db, and dbx revokes all that policy wants revoked.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "boot_signers_accepted",
        "Every authority that vouched for a boot component is one of the signers that policy accepts.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "kernel_known",
        "Exactly one kernel was loaded and started, and it is one of the reference values.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "reference_matches_kernel",
        "The reference image that the monitor compares with is the one made from that kernel.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "boot_rules_met",
        "The boot meets every rule that the operator's policy states beyond this table.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "not_resumed",
        "The machine was started, not resumed from sleep or hibernation, since its TPM was last reset.",
    ),
    Requirement(
        _VERIFIED_BOOT,
        "not_rolled_back",
        "The TPM's counters did not go back since this device was last seen.",
    ),
    Requirement(
        _ISOLATED,
        "launch_record_measured",
        "PCR 17 holds the launch record whose identity key signed the enclave report.",
    ),
    Requirement(
        _ISOLATED,
        "monitor_accepted",
        "The launch record names a monitor that policy accepts, at its minimum security version or above.",
    ),
    Requirement(
        _ISOLATED,
        "monitor_debugging_disabled",
        "The monitor was launched without debug access.",
    ),
    Requirement(
        _ISOLATED,
        "rules_root_accepted",
        "The monitor judges by the rules in its image, or by rules whose root and fleet policy accepts.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "kernel_lockdown_enforced",
        "The kernel is one that locks itself down under Secure Boot, and it was booted under it.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "module_signatures_enforced",
        "The kernel is one that then admits only modules signed by keys it was built with or policy accepts.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "test_signing_disabled",
        "Shim validated what it loaded: its validation was not switched off.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "machine_owner_keys_accepted",
        "Shim's list of machine owner keys is empty, or one that policy accepts as a whole.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "kernel_debugging_disabled",
        "No boot parameter opens the kernel to a debugger or plants probes.",
    ),
    Requirement(
        _ENFORCED_CODE,
        "command_line_accepted",
        "No boot parameter weakens what protects the kernel's code, or brings parameters from elsewhere.",
    ),
    Requirement(
        _HARDWARE_ROOTED_HOST,
        "host_attested",
        "The host's own TPM attests the host's boot, DMA protection and launcher, and endorses the vTPM.",
    ),
)

_HOST_NOT_ATTESTED = (
    "nothing attests the host yet: its kernel, QEMU, swtpm and launcher are trusted, so no machine can reach "
    "this level"
)


def explain_level(
    judgements: Iterable[Judgement], *, requirements: tuple[Requirement, ...] = REQUIREMENTS
) -> tuple[SecurityLevel, tuple[Shortfall, ...]]:
    """Return the level that the claims deserve by a table, and every requirement that is not met.

    A level is reached when each requirement of it and of all levels below is `True`. A requirement
    without a judgement was not looked at, and is not met. The shortfalls are in the order of the
    table, so the first one is a reason why the next level was not reached.

    Raises ValueError for a claim that is judged twice or stands in no requirement.
    """
    found: dict[str, Judgement] = {}
    known = {requirement.claim for requirement in requirements}
    for judgement in judgements:
        if judgement.claim in found or judgement.claim not in known:
            raise ValueError(f"{judgement.claim}: judged twice, or in no requirement")
        found[judgement.claim] = judgement
    shortfalls = tuple(
        _shortfall(requirement, found.get(requirement.claim))
        for requirement in requirements
        if (met := found.get(requirement.claim)) is None or met.value is not True
    )
    level = min((shortfall.level for shortfall in shortfalls), default=_HARDWARE_ROOTED_HOST + 1) - 1
    return SecurityLevel(min(level, HIGHEST_ATTAINABLE)), shortfalls


def _shortfall(requirement: Requirement, judgement: Judgement | None) -> Shortfall:
    if judgement is not None:
        explanation = judgement.explanation
    elif requirement.claim == "host_attested":
        explanation = _HOST_NOT_ATTESTED
    else:
        explanation = "nothing was seen of it"
    return Shortfall(requirement.level, requirement.claim, explanation)
