"""What Affiant concludes from one entry of the corpus: the whole way from octets to claims."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.appraisal.enforced_code import judge_enforced_code
from affiant.appraisal.enrolled_key import BootCounters
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.appraisal.verified_boot import judge_verified_boot
from affiant.model.errors import EvidenceError, ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.boot_state import VerifiedBoot, verify_boot
from affiant.tpm.quote import verify_quote
from tests.forgeries.case import Case

__all__ = ["KERNEL", "POLICY", "Outcome", "conclude"]

# The machine of the recording: its kernel is known, and its dbx must hold the one entry that it has.
KERNEL = ReferenceValue(
    kernel=bytes.fromhex("51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275"),
    authenticode=bytes.fromhex("5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31"),
    reference=bytes(32),
    release="6.1.0-56-cloud-amd64",
    locks_down=True,
    verifies_modules=True,
)
POLICY = AppraisalPolicy(
    required_revocations=frozenset(
        {bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")}
    )
)


@dataclass(frozen=True)
class Outcome:
    """Either `refusal` (family and message), or what was concluded: claim to value and reason."""

    refusal: tuple[str, str] | None
    claims: dict[str, tuple[bool | None, str]]


def conclude(case: Case) -> Outcome:
    """Verify and judge the evidence of `case`."""
    try:
        boot = _verify(case)
    except EvidenceError as error:
        return Outcome(("forged" if isinstance(error, ForgedError) else "malformed", str(error)), {})
    return Outcome(None, _judge(case, boot))


def _verify(case: Case) -> VerifiedBoot:
    shown = case.evidence
    quote = verify_quote(
        bytes.fromhex(shown.attest),
        bytes.fromhex(shown.signature),
        attestation_key=verify_attestation_key(bytes.fromhex(shown.attestation_key)),
        expected_extra_data=bytes.fromhex(case.nonce),
        pcrs={int(pcr): bytes.fromhex(value) for pcr, value in shown.pcrs.items()},
        bank=HashAlgorithm[case.bank.upper()],
    )
    return verify_boot(quote, shown.log())


def _judge(case: Case, boot: VerifiedBoot) -> dict[str, tuple[bool | None, str]]:
    info = boot.clock_info
    judged = judge_verified_boot(
        boot,
        counters=BootCounters(info.reset_count, info.restart_count, info.clock),
        last_seen=None if case.last_seen is None else BootCounters(**case.last_seen),
        shown_reference=KERNEL.reference,
        policy=POLICY,
        references=[KERNEL],
    )
    enabled = any(one.claim == "secure_boot_enabled" and one.value for one in judged.judgements)
    enforced = judge_enforced_code(boot, kernel=judged.kernel, secure_boot_enabled=enabled, policy=POLICY)
    claims = {claim.name: (claim.value, claim.source) for claim in boot.claims}
    claims.update({one.claim: (one.value, one.explanation) for one in (*judged.judgements, *enforced)})
    return claims
