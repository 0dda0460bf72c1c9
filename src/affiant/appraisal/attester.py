"""Who speaks: from a message to a launch record, an enclave report and a session key that agree."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from affiant.model.challenge import Challenge
from affiant.model.enclave_report import EnclaveReport
from affiant.model.errors import ForgedError
from affiant.model.evidence import Evidence
from affiant.model.launch_record import LaunchRecord
from affiant.wire.enclave_report import verify_enclave_report
from affiant.wire.evidence import verify_evidence
from affiant.wire.launch_record import decode_launch_record

__all__ = ["Attester", "verify_attester"]


@dataclass(frozen=True, slots=True)
class Attester:
    """A monitor as it presents itself: made by `verify_attester` alone.

    `launch_record` and `enclave_report` agree with each other, but nothing yet says that this
    record was launched anywhere: that is for PCR 17 (`affiant.appraisal.isolated`). The quote, log
    and reference in `evidence` are unverified. `evidence_digest`: SHA-256 of the message.
    """

    evidence: Evidence
    evidence_digest: bytes
    launch_record: LaunchRecord
    launch_record_bytes: bytes
    enclave_report: EnclaveReport


def verify_attester(message: bytes, *, challenge: Challenge, service_root: bytes) -> Attester:
    """Return the attester that sent `message` (evidence, after its seal was opened).

    `service_root`: SHA-256 of this service's root certificate (DER).

    What holds then:

    - the sender holds the session key in the enclave report, and signed this evidence for this
      challenge;
    - the identity key in the launch record signed the enclave report, which answers this challenge;
    - the enclave report repeats the launch record in every field that both have;
    - the monitor was launched to accept this service's root and no other;
    - the monitor's rules are not older than the challenge demands.

    Raises MalformedError or ForgedError otherwise.
    """
    verified = verify_evidence(message, expected_challenge=challenge.digest)
    evidence = verified.evidence
    record = decode_launch_record(evidence.launch_record)
    report = verify_enclave_report(
        evidence.enclave_report, identity_key=record.identity_key, expected_challenge=challenge.digest
    )
    if report.session_key != verified.session_key:
        raise ForgedError("evidence: signed by another key than the enclave report's session key")
    repeated = {
        "monitor image": report.monitor_image == record.monitor_image,
        "monitor version": report.monitor_version == record.monitor_version,
        "security version": report.security_version == record.security_version,
        "debug flag": report.debug == record.debug,
        "service root": report.service_root == record.service_root,
        "rules root": report.rules_root == record.rules_root,
    }
    for what, agrees in repeated.items():
        if not agrees:
            raise ForgedError(f"enclave report: its {what} is not the launch record's")
    if not hmac.compare_digest(record.service_root, service_root):
        raise ForgedError("launch record: the monitor was launched for the root of another service")
    if report.rules_version < challenge.minimum_rules_version:
        raise ForgedError(
            f"enclave report: rules of version {report.rules_version}, "
            f"the challenge demands {challenge.minimum_rules_version} or above"
        )
    return Attester(
        evidence=evidence,
        evidence_digest=verified.digest,
        launch_record=record,
        launch_record_bytes=evidence.launch_record,
        enclave_report=report,
    )
