"""Level 4: does the guest's kernel admit only signed code, and nobody with a debugger?

What establishes it, and how far: lockdown and module signatures are not measured as such. They
follow from three things that are: the kernel (a reference value, whose configuration says that it
locks itself down when it finds Secure Boot on), Secure Boot being on, and a command line without a
parameter that undoes it. A kernel that is tampered with afterwards is for the runtime report.
"""

from __future__ import annotations

from affiant.appraisal.command_line import find_parameters
from affiant.appraisal.levels import Judgement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.tpm.boot_state import VerifiedBoot

__all__ = ["ENFORCED_CODE_CLAIMS", "judge_enforced_code"]

ENFORCED_CODE_CLAIMS = (
    "kernel_lockdown_enforced",
    "module_signatures_enforced",
    "test_signing_disabled",
    "machine_owner_keys_accepted",
    "kernel_debugging_disabled",
    "command_line_accepted",
)
"""The claims of level 4."""

_LONGEST_LIST = 200


def judge_enforced_code(
    boot: VerifiedBoot | None,
    *,
    kernel: ReferenceValue | None,
    secure_boot_enabled: bool,
    policy: AppraisalPolicy,
) -> tuple[Judgement, ...]:
    """Return the claims of level 4; `kernel` is the reference value of the kernel that booted."""
    if boot is None:
        return tuple(
            Judgement(claim, None, "no trusted boot event log shows it") for claim in ENFORCED_CODE_CLAIMS
        )
    return (
        _judge_property(
            "kernel_lockdown_enforced",
            None if kernel is None else kernel.locks_down,
            secure_boot_enabled=secure_boot_enabled,
            missing="is not known to lock itself down under Secure Boot",
            kernel=kernel,
        ),
        _judge_property(
            "module_signatures_enforced",
            None if kernel is None else kernel.locks_down and kernel.verifies_modules,
            secure_boot_enabled=secure_boot_enabled,
            missing="is not known to refuse unsigned modules under Secure Boot",
            kernel=kernel,
        ),
        _judge_shim(boot),
        _judge_owner_keys(boot, policy),
        *_judge_command_line(boot, policy),
    )


def _judge_property(
    claim: str, value: bool | None, *, secure_boot_enabled: bool, missing: str, kernel: ReferenceValue | None
) -> Judgement:
    if kernel is None or value is None:
        return Judgement(claim, None, "the kernel is not known")
    if not value:
        return Judgement(claim, False, f"the kernel {kernel.release} {missing}")
    if not secure_boot_enabled:
        return Judgement(claim, False, "the kernel does so under Secure Boot only, which is off")
    return Judgement(claim, True)


def _judge_shim(boot: VerifiedBoot) -> Judgement:
    claim = "test_signing_disabled"
    value = boot.claim("shim_validation_enabled")
    if value is None:
        return Judgement(claim, None, "shim did not measure whether it validates what it loads")
    return (
        Judgement(claim, True)
        if value
        else Judgement(claim, False, "shim's validation is switched off (MokSBState)")
    )


def _judge_owner_keys(boot: VerifiedBoot, policy: AppraisalPolicy) -> Judgement:
    claim = "machine_owner_keys_accepted"
    if boot.claim("machine_owner_keys_absent") is True:
        return Judgement(claim, True)
    measured = boot.shim.mok_measurements
    if not measured:
        return Judgement(claim, None, "shim measured no list of machine owner keys")
    digest = measured[0].digest
    if digest in policy.machine_owner_key_lists:
        return Judgement(claim, True)
    return Judgement(claim, False, f"policy does not know shim's MokList {digest.hex()[:16]}..")


def _judge_command_line(boot: VerifiedBoot, policy: AppraisalPolicy) -> tuple[Judgement, Judgement]:
    line = boot.command_line
    if line is None:
        why = "which command line the kernel got cannot be told from the log"
        return (
            Judgement("kernel_debugging_disabled", None, why),
            Judgement("command_line_accepted", None, why),
        )
    return (
        _judge_parameters("kernel_debugging_disabled", line, policy.debugging_parameters),
        _judge_parameters("command_line_accepted", line, policy.weakening_parameters),
    )


def _judge_parameters(claim: str, line: str, patterns: tuple[str, ...]) -> Judgement:
    found = find_parameters(line, patterns)
    if not found:
        return Judgement(claim, True)
    return Judgement(claim, False, f"the kernel was booted with {', '.join(found)[:_LONGEST_LIST]}")
