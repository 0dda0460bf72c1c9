"""Level 3: is the monitor the one that was launched, accepted, and out of the guest's reach?

What establishes it: the gateway hashes the launch record into PCR 17 by a D-RTM sequence at
locality 4 (TCG PC Client Platform TPM Profile, sections on locality and dynamic PCRs), which no
command of the guest can imitate. So a quoted PCR 17 that equals the hash of the record sent proves
that this record was launched; the identity key in it signed the enclave report.
"""

from __future__ import annotations

import hmac

from affiant.appraisal.attester import Attester
from affiant.appraisal.levels import Judgement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.rooted import NEVER_LAUNCHED
from affiant.model.errors import ForgedError
from affiant.model.launch_record import LaunchRecord
from affiant.tpm.drtm import expected_pcr17

__all__ = ["judge_isolation"]


def judge_isolation(
    attester: Attester, *, pcr17: bytes | None, policy: AppraisalPolicy
) -> tuple[Judgement, ...]:
    """Return the claims of level 3; `pcr17` is a verified quote's value, None without one.

    Raises ForgedError when PCR 17 holds another launch than the one that the record tells of.
    """
    if pcr17 is None:
        nothing = "no trusted quote shows what was launched"
        return (
            Judgement("launch_record_measured", None, nothing),
            Judgement("monitor_accepted", None, nothing),
            Judgement("monitor_debugging_disabled", None, nothing),
            Judgement("rules_root_accepted", None, nothing),
        )
    if pcr17 in NEVER_LAUNCHED:
        nothing = f"PCR 17 holds {pcr17[:1].hex()}..{pcr17[:1].hex()}: no monitor was launched"
        return (
            Judgement("launch_record_measured", False, nothing),
            Judgement("monitor_accepted", None, nothing),
            Judgement("monitor_debugging_disabled", None, nothing),
            Judgement("rules_root_accepted", None, nothing),
        )
    if not hmac.compare_digest(pcr17, expected_pcr17(attester.launch_record_bytes)):
        raise ForgedError("launch record: PCR 17 holds another launch than the one it tells of")
    record = attester.launch_record
    return (
        Judgement("launch_record_measured", True),
        _judge_monitor(record, policy),
        Judgement("monitor_debugging_disabled", True)
        if not record.debug
        else Judgement("monitor_debugging_disabled", False, "the monitor was launched with debug access"),
        _judge_rules_root(record, policy),
    )


def _judge_monitor(record: LaunchRecord, policy: AppraisalPolicy) -> Judgement:
    claim = "monitor_accepted"
    if record.security_version < policy.minimum_security_version:
        return Judgement(
            claim,
            False,
            f"the monitor's security version is {record.security_version}, "
            f"policy wants {policy.minimum_security_version} or above",
        )
    if policy.accept_any_monitor_image:
        return Judgement(claim, True)
    accepted = next((m for m in policy.monitors if m.image == record.monitor_image), None)
    image = record.monitor_image.hex()[:16]
    if accepted is None:
        return Judgement(claim, False, f"policy does not know the monitor image {image}..")
    # The number is the launcher's word; what counts is what the operator registered for the image.
    if (accepted.version, accepted.security_version) != (record.monitor_version, record.security_version):
        return Judgement(
            claim,
            False,
            f"the monitor image {image}.. is accepted as version {accepted.version} "
            f"({accepted.security_version}), the record says {record.monitor_version} "
            f"({record.security_version})",
        )
    return Judgement(claim, True)


def _judge_rules_root(record: LaunchRecord, policy: AppraisalPolicy) -> Judgement:
    claim = "rules_root_accepted"
    if record.rules_root is None:
        return Judgement(claim, True)
    if record.rules_root not in policy.rules_roots:
        root = record.rules_root.hex()[:16]
        return Judgement(claim, False, f"policy does not know the rules root {root}.. that the monitor pins")
    if policy.fleets and record.fleet not in policy.fleets:
        return Judgement(claim, False, f"policy does not accept the rules of the fleet {record.fleet}")
    return Judgement(claim, True)
