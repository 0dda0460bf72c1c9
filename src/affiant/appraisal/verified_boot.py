"""Level 2: did the machine boot, by Secure Boot, a kernel that is known?

What establishes it: facts that `affiant.tpm.boot_state` reads out of event data whose digests the
quoted PCRs contain (TCG PC Client Platform Firmware Profile 3.3.4), held against policy and
reference values. What it does not tell: what happened to that kernel since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from affiant.appraisal.boot_description import BootDescription, of_verified_boot
from affiant.appraisal.boot_judgement import judge_rules
from affiant.appraisal.enrolled_key import BootCounters
from affiant.appraisal.key_names import authority_identities, entry_identity, signers
from affiant.appraisal.levels import Judgement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.tpm.boot_state import VerifiedBoot
from affiant.tpm.secure_boot import Authority

__all__ = ["BootJudgement", "judge_boot_rules", "judge_keys", "judge_secure_boot", "judge_verified_boot"]

_CLAIMS = (
    "firmware_measured",
    "firmware_debugging_disabled",
    "secure_boot_enabled",
    "secure_boot_keys_accepted",
    "boot_signers_accepted",
    "kernel_known",
    "reference_matches_kernel",
    "boot_rules_met",
)
_LOADERS = 2  # shim and GRUB, which the firmware and shim start before any kernel
_SHOWN = 3
_LONGEST_CHAIN = 8
_LONGEST = 400  # characters that are shown; a session report bounds them at 512


@dataclass(frozen=True, slots=True)
class BootJudgement:
    """The claims of level 2; `kernel` is the reference value of the kernel that booted, if known."""

    judgements: tuple[Judgement, ...]
    kernel: ReferenceValue | None


def judge_verified_boot(
    boot: VerifiedBoot | None,
    *,
    counters: BootCounters | None,
    last_seen: BootCounters | None,
    shown_reference: bytes | None,
    policy: AppraisalPolicy,
    references: Iterable[ReferenceValue],
) -> BootJudgement:
    """Return the claims of level 2.

    `counters` are those of the quote, `last_seen` the highest that this device has quoted before.
    `shown_reference` is what the monitor says it compares with.
    """
    time_line = (_judge_resume(counters), _judge_rollback(counters, last_seen))
    if boot is None:
        why = "no trusted boot event log shows it"
        return BootJudgement((*(Judgement(claim, None, why) for claim in _CLAIMS), *time_line), None)
    kernel_known, kernel = _judge_kernel(boot, tuple(references))
    judgements = (
        _from_boot(boot, "firmware_measured", "PCR 0 to 7 do not begin and end as firmware measures them"),
        _from_boot(boot, "firmware_debugging_disabled", "the firmware measured its debug mode"),
        judge_secure_boot(boot),
        judge_keys(boot, policy),
        _judge_signers(boot, policy),
        kernel_known,
        _judge_reference(kernel, shown_reference),
        judge_boot_rules(of_verified_boot(boot, policy=policy), policy),
    )
    return BootJudgement((*judgements, *time_line), kernel)


def judge_boot_rules(description: BootDescription, policy: AppraisalPolicy) -> Judgement:
    """Return the claim that a boot meets the rules stated in `policy.boot`; a policy may state none."""
    claim = "boot_rules_met"
    findings = judge_rules(description, policy.boot).findings
    if not findings:
        return Judgement(claim, True)
    shown = "; ".join(
        f"{one.subject}: expected {one.expected}, found {one.found}" for one in findings[:_SHOWN]
    )
    more = len(findings) - _SHOWN
    # The log's own words are in it: whatever a terminal or a report could choke on is left out.
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in shown[:_LONGEST])
    return Judgement(claim, False, shown + (f"; and {more} more" if more > 0 else ""))


def _from_boot(boot: VerifiedBoot, claim: str, otherwise: str) -> Judgement:
    value = boot.claim(claim)
    if value is True:
        return Judgement(claim, True)
    return Judgement(claim, value, otherwise if value is False else "the boot event log does not tell")


def judge_secure_boot(boot: VerifiedBoot) -> Judgement:
    """Return the claim that the firmware enforced Secure Boot, in none of the modes that enforce nothing."""
    claim = "secure_boot_enabled"
    enabled = boot.claim("secure_boot_enabled")
    if enabled is None:
        return Judgement(claim, None, "the firmware's SecureBoot variable was not measured")
    if not enabled:
        return Judgement(claim, False, "the firmware measured SecureBoot as off")
    # UEFI, section 32.3: SecureBoot is off in these modes. Where firmware measures them, it must agree.
    for mode, name in ((boot.secure_boot.audit_mode, "audit"), (boot.secure_boot.setup_mode, "setup")):
        if mode:
            return Judgement(claim, False, f"the firmware was in {name} mode, which enforces nothing")
    return Judgement(claim, True)


def judge_keys(boot: VerifiedBoot, policy: AppraisalPolicy) -> Judgement:
    """Return the claim that db and dbx, as they were in force at boot, are what policy accepts."""
    claim = "secure_boot_keys_accepted"
    allowed, forbidden = boot.secure_boot.allowed, boot.secure_boot.forbidden
    if allowed is None or forbidden is None:
        return Judgement(claim, None, "the signature databases db and dbx were not measured")
    strange = [
        entry for entry in map(entry_identity, allowed.entries()) if entry not in policy.secure_boot_keys
    ]
    if strange:
        return Judgement(claim, False, f"db holds what policy does not accept: {_list(strange)}")
    # A dbx has hundreds of entries: they are looked at only where something is asked of them.
    missing = policy.required_revocations and (
        policy.required_revocations - {entry_identity(entry) for entry in forbidden.entries()}
    )
    if missing:
        return Judgement(claim, False, f"dbx does not revoke {_list(sorted(missing))}")
    return Judgement(claim, True)


def _judge_signers(boot: VerifiedBoot, policy: AppraisalPolicy) -> Judgement:
    claim = "boot_signers_accepted"
    if boot.claim("secure_boot_explained") is not True:
        count = boot.secure_boot.unexplained
        return Judgement(claim, None, f"{count} events in PCR 7 are unexplained, and may hide a signer")
    used = signers(boot.secure_boot)
    if not used:
        return Judgement(claim, None, "no authority was measured, so nothing was verified")
    strange = [authority for authority in used if not _accepted(authority, policy)]
    if strange:
        names = _list([authority_identities(authority)[-1] for authority in strange])
        return Judgement(
            claim, False, f"a boot component was accepted by a signer that policy is not: {names}"
        )
    return Judgement(claim, True)


def _judge_kernel(
    boot: VerifiedBoot, references: Sequence[ReferenceValue]
) -> tuple[Judgement, ReferenceValue | None]:
    """Hold what was started against the reference values: a unified kernel image, or what GRUB loaded."""
    started = {application.digest for application in boot.applications}
    if any(not started.isdisjoint(value.unified_images) for value in references):
        return _judge_unified_image(boot, references)
    return _judge_loaded_kernel(boot, {value.kernel: value for value in references})


def _judge_unified_image(
    boot: VerifiedBoot, references: Sequence[ReferenceValue]
) -> tuple[Judgement, ReferenceValue | None]:
    """Hold the images that were started (PCR 4) against the unified kernel images that are known.

    The digest of such an image covers the stub, the kernel in it and its command line. What PCR 11 says of
    its sections is not needed, and would prove less: the running guest may extend that register, too. From
    the first known image on there must be that one alone, with its add-ons; before it, at most as many
    others as stand between firmware and kernel (shim and a boot menu). GRUB has no part in it: it measures
    each of its commands, and one of them might load another kernel.
    """
    claim = "kernel_known"
    if boot.grub.strings or boot.grub.unexplained:
        return Judgement(claim, False, "GRUB ran commands, and a unified kernel image was started"), None
    started = [application.digest for application in boot.applications]
    images = frozenset[bytes]().union(*(value.unified_images for value in references))
    first = next(index for index, digest in enumerate(started) if digest in images)
    rest = set(started[first:])
    booted = [
        value
        for value in references
        if len(rest & value.unified_images) == 1 and rest <= value.unified_images | value.addons
    ]
    if first > _LOADERS or len(booted) != 1:
        shown = ", ".join(f"{digest.hex()[:16]}.." for digest in started[:_LONGEST_CHAIN])
        why = f"not one known unified kernel image and its add-ons alone were started, but {shown}"
        return Judgement(claim, False, why), None
    return Judgement(claim, True), booted[0]


def _judge_loaded_kernel(
    boot: VerifiedBoot, references: Mapping[bytes, ReferenceValue]
) -> tuple[Judgement, ReferenceValue | None]:
    """Hold what was started (PCR 4) and what was read (PCR 9) against the reference values.

    GRUB reads many files, and a hostile configuration may let it read a known kernel and start
    another; and whatever runs may extend PCR 4 once more, with the digest of a kernel that did not.
    So three things must agree: one load command only, *every* image after shim and GRUB (shim measures
    a kernel each time that it verifies it), and the kernel file that GRUB read.
    """
    claim = "kernel_known"
    known = [references[digest] for digest in boot.kernel_candidates if digest in references]
    if not known:
        why = "none of the files that GRUB read is a kernel that is known"
        if not boot.grub.strings:
            why = "no unified kernel image that is known was started, and no kernel was loaded by GRUB"
        return Judgement(claim, False, why), None
    if boot.claim("boot_commands_explained") is not True:
        return Judgement(
            claim, None, "commands of GRUB are missing from the log: one may load a kernel"
        ), None
    if len(boot.grub.load_commands) != 1:
        return Judgement(claim, False, f"GRUB was told to load {len(boot.grub.load_commands)} kernels"), None
    started = {application.digest for application in boot.applications[_LOADERS:]}
    booted = [value for value in known if value.authenticode is not None and started == {value.authenticode}]
    if len(known) != 1 or len(booted) != 1:
        names = ", ".join(value.release for value in known[:_SHOWN])
        shown = ", ".join(sorted(f"{digest.hex()[:16]}.." for digest in started)[:_SHOWN]) or "nothing"
        why = f"GRUB read {names}, but the images started after shim and GRUB are {shown}"
        return Judgement(claim, False, why), None
    return Judgement(claim, True), booted[0]


def _judge_reference(kernel: ReferenceValue | None, shown: bytes | None) -> Judgement:
    claim = "reference_matches_kernel"
    if kernel is None:
        return Judgement(claim, None, "the kernel is not known, so there is nothing to compare with")
    if shown is None:
        return Judgement(claim, None, f"the monitor has no reference image of {kernel.release}")
    if shown != kernel.reference:
        return Judgement(
            claim,
            False,
            f"the monitor compares with {shown.hex()[:16]}.., the reference of {kernel.release} is "
            f"{kernel.reference.hex()[:16]}..",
        )
    return Judgement(claim, True)


def _judge_resume(counters: BootCounters | None) -> Judgement:
    claim = "not_resumed"
    if counters is None:
        return Judgement(claim, None, "no trusted quote tells the TPM's counters")
    # TPM 2.0 Part 1, 12.2.3: restartCount grows with a Startup after Shutdown(STATE), as in sleep and
    # hibernation.
    if counters.restart_count:
        return Judgement(claim, False, f"the TPM was resumed {counters.restart_count} times since its reset")
    return Judgement(claim, True)


def _judge_rollback(counters: BootCounters | None, last_seen: BootCounters | None) -> Judgement:
    claim = "not_rolled_back"
    if counters is None:
        return Judgement(claim, None, "no trusted quote tells the TPM's counters")
    if last_seen is not None and counters < last_seen:
        return Judgement(
            claim,
            False,
            f"the TPM's reset counter and clock are at {counters.reset_count}/{counters.clock}, "
            f"and were at {last_seen.reset_count}/{last_seen.clock} before: an older state was restored",
        )
    return Judgement(claim, True)


def _accepted(authority: Authority, policy: AppraisalPolicy) -> bool:
    return any(identity in policy.boot_signers for identity in authority_identities(authority))


def _list(digests: list[bytes]) -> str:
    names = [digest.hex()[:16] + ".." for digest in digests[:_SHOWN]]
    more = len(digests) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
