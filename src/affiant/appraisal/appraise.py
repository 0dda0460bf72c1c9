"""The flow of an appraisal: establish a root, judge each level's claims, explain the level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509

from affiant.appraisal.attester import Attester
from affiant.appraisal.enforced_code import judge_enforced_code
from affiant.appraisal.enrolled_key import BootCounters, EnrolledKey
from affiant.appraisal.isolated import judge_isolation
from affiant.appraisal.levels import explain_level
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.appraisal.rooted import establish_root
from affiant.appraisal.trust_vector import trust_vector
from affiant.appraisal.verified_boot import judge_verified_boot
from affiant.model.challenge import Challenge
from affiant.model.level import SecurityLevel, Shortfall

__all__ = ["AppraisalResult", "appraise"]


@dataclass(frozen=True, slots=True)
class AppraisalResult:
    """What the evidence deserves: made by `appraise` alone.

    `claims` are in the order of the table of requirements, without those that nothing was concluded
    about. `kernel` is the digest of the kernel file that the boot log proves and the reference
    values know, `reference` that of the reference image made from it *and* shown by the monitor;
    None otherwise. `counters` are those quoted by an enrolled, trusted TPM.
    """

    level: SecurityLevel
    shortfalls: tuple[Shortfall, ...]
    claims: tuple[tuple[str, bool | None], ...]
    trust_vector: tuple[tuple[int, int], ...]
    kernel: bytes | None
    reference: bytes | None
    counters: BootCounters | None


def appraise(
    attester: Attester,
    *,
    challenge: Challenge,
    enrolled: EnrolledKey | None,
    anchors: Sequence[x509.Certificate],
    policy: AppraisalPolicy,
    references: Iterable[ReferenceValue],
    now: int,
) -> AppraisalResult:
    """Appraise the evidence of an attester that `verify_attester` let through.

    `challenge` is the one it answers, `enrolled` the attestation key that the service knows under
    the name of the key shown (`affiant.appraisal.rooted.claimed_key_name`), `anchors` the trusted
    endorsement roots, `now` the service's time in seconds since the epoch.

    What holds then:

    - the level is the highest whose requirements, and those of all levels below, are met by claims
      that were verified here;
    - every requirement that is not met, of any level, is among the shortfalls with its reason;
    - nothing that a guest or a host says of itself counts: claims come from event data covered by
      a quote of an enrolled and endorsed TPM, from reference values, or from the policy.

    Raises an EvidenceError when anything shown is forged or malformed: that is no lower level but
    no session.
    """
    root = establish_root(
        attester, challenge=challenge, enrolled=enrolled, anchors=anchors, policy=policy, now=now
    )
    boot = judge_verified_boot(
        root.boot,
        counters=root.counters,
        last_seen=None if enrolled is None else enrolled.last_seen,
        shown_reference=attester.evidence.reference,
        policy=policy,
        references=references,
    )
    isolation = judge_isolation(attester, pcr17=root.launch, policy=policy)
    enabled = any(j.claim == "secure_boot_enabled" and j.value is True for j in boot.judgements)
    enforced = judge_enforced_code(root.boot, kernel=boot.kernel, secure_boot_enabled=enabled, policy=policy)
    judgements = (*root.judgements, *boot.judgements, *isolation, *enforced)
    level, shortfalls = explain_level(judgements)
    claims = {judgement.claim: judgement.value for judgement in judgements}
    matches = claims["reference_matches_kernel"] is True
    return AppraisalResult(
        level=level,
        shortfalls=shortfalls,
        claims=tuple(claims.items()),
        trust_vector=trust_vector(claims, recognised=root.recognised),
        kernel=None if boot.kernel is None else boot.kernel.kernel,
        reference=boot.kernel.reference if boot.kernel is not None and matches else None,
        counters=root.counters,
    )
