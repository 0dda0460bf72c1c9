"""A truthful attester in memory, and the service that it speaks with.

Everything is the real thing but the machine: a software TPM that signs real structures, the boot
log of a real guest, messages by `affiant.wire`, the service's own code over its own database. A
test starts from the truth, bends one thing, and asserts the refusal and what stayed as it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.appraisal.policy import AcceptedMonitor
from affiant.appraisal.reference_value import ReferenceValue
from affiant.model.challenge import Challenge
from affiant.model.enclave_report import EnclaveReport
from affiant.model.enrolment import EnrolmentProof, EnrolmentRequest
from affiant.model.evidence import Evidence
from affiant.model.heartbeat import HeartbeatAcknowledgement
from affiant.model.launch_record import LaunchRecord
from affiant.model.outcome import Mode, Outcome
from affiant.model.passport import Passport
from affiant.model.runtime_report import AssertionReport, RulesUsed, RuntimeReport
from affiant.model.session import SessionReport
from affiant.service.administration import initialise, open_context
from affiant.service.attestation_service import AttestationService
from affiant.service.context import ServiceContext
from affiant.service.database import transaction
from affiant.service.settings import ServiceSettings
from affiant.service.trust_store import accept_monitor, add_reference, trust_endorsement_root
from affiant.wire.challenge import verify_challenge
from affiant.wire.enclave_report import sign_enclave_report
from affiant.wire.enrolment import (
    encode_enrolment_proof,
    encode_enrolment_request,
    prove_enrolment,
    verify_credential_challenge,
)
from affiant.wire.envelope import write_envelope
from affiant.wire.evidence import quote_binding, sign_evidence
from affiant.wire.heartbeat import first_heartbeat_nonce, verify_acknowledgement
from affiant.wire.keys import point_of
from affiant.wire.launch_record import encode_launch_record
from affiant.wire.passport import encode_passport
from affiant.wire.runtime_report import sign_runtime_report
from affiant.wire.seal import Direction, open_sealed, seal
from affiant.wire.session_response import verify_session_response
from tests.boot_log import BootLog
from tests.software_tpm import EndorsementAuthority, SoftwareTpm

START = 1_800_000_000
MONITOR_IMAGE = hashlib.sha256(b"monitor image").digest()
REFERENCE = hashlib.sha256(b"reference image").digest()
RELEASE = "6.1.0-cloud-amd64"
NONCE = bytes(range(32))
AUDIENCE = "gate"


class SimulatedService:
    """An attestation service over its real storage; `now` is the only clock there is."""

    def __init__(self, folder: Path, *, now: int = START, **settings: object) -> None:
        self.now = now
        self.settings = ServiceSettings(folder=folder, **settings)  # type: ignore[arg-type]
        initialise(self.settings, now=self.now)
        self.context: ServiceContext = open_context(self.settings, now=self.now)
        self.api = AttestationService(self.context)
        self.root = self.context.authority.root

    def trust_endorsements_of(self, authority: EndorsementAuthority) -> None:
        with transaction(self.context.engine) as connection:
            trust_endorsement_root(connection, authority.der, now=self.now)

    def accept(self, monitor: AcceptedMonitor) -> None:
        with transaction(self.context.engine) as connection:
            accept_monitor(connection, monitor, now=self.now)

    def know(self, reference: ReferenceValue) -> None:
        with transaction(self.context.engine) as connection:
            add_reference(connection, reference, now=self.now)

    def challenge(self) -> Challenge:
        return verify_challenge(self.api.challenge(b"", now=self.now), root=self.root, now=self.now)


@dataclass
class Answer:
    """Evidence on its way: everything in it may be bent before it is sent."""

    evidence: Evidence
    challenge: Challenge
    session_key: ec.EllipticCurvePrivateKey
    sealing_key: X25519PrivateKey

    def message(self) -> bytes:
        return sign_evidence(self.evidence, key=self.session_key, challenge=self.challenge.digest)

    def with_quote(self, **changes: object) -> Answer:
        assert self.evidence.quote is not None
        quote = replace(self.evidence.quote, **changes)  # type: ignore[arg-type]
        return replace(self, evidence=replace(self.evidence, quote=quote))

    def with_evidence(self, **changes: object) -> Answer:
        return replace(self, evidence=replace(self.evidence, **changes))  # type: ignore[arg-type]


@dataclass
class Machine:
    """One guest with its secure world, speaking the truth."""

    service: SimulatedService
    tpm: SoftwareTpm | None
    log: BootLog | None = field(default_factory=BootLog.recorded)
    reference: bytes | None = REFERENCE
    rules_root: bytes | None = None
    fleet: str = "web"
    identity_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    record: LaunchRecord = field(init=False)

    def __post_init__(self) -> None:
        self.record = LaunchRecord(
            monitor_image=MONITOR_IMAGE,
            monitor_version="0.1.0",
            security_version=1,
            debug=False,
            service_root=self.service.context.root_digest,
            identity_key=point_of(self.identity_key.public_key()),
            rules_root=self.rules_root,
            fleet=None if self.rules_root is None else self.fleet,
        )

    def boot(self) -> Machine:
        """Reset the TPM, launch the monitor, and measure firmware, shim, GRUB and kernel."""
        if self.tpm is not None:
            self.tpm.reset()
            self.tpm.launch(encode_launch_record(self.record))
            if self.log is not None:
                self.log.measure_into(self.tpm)
        return self

    def enrolment_request(self, challenge: Challenge) -> EnrolmentRequest:
        assert self.tpm is not None
        return EnrolmentRequest(
            challenge=challenge.digest,
            ek_certificates=self.tpm.ek_certificates,
            ek_public=self.tpm.ek_public,
            ak_public=self.tpm.ak_public,
        )

    def enrol(self) -> Machine:
        """Go through a whole enrolment."""
        assert self.tpm is not None
        challenge = self.service.challenge()
        request = encode_enrolment_request(self.enrolment_request(challenge))
        answer = self.service.api.enrolment(self.sealed(challenge, request), now=self.service.now)
        credential = verify_credential_challenge(
            answer, request=request, root=self.service.root, now=self.service.now
        )
        secret = self.tpm.activate(credential.credential_blob, credential.encrypted_secret)
        proof = EnrolmentProof(
            credential.enrolment_id, prove_enrolment(secret, request=request, challenge=answer)
        )
        self.service.api.enrolment_proof(
            self.sealed(challenge, encode_enrolment_proof(proof)), now=self.service.now
        )
        return self

    def sealed(self, challenge: Challenge, message: bytes) -> bytes:
        """Return a request body: sealed for the service, in its envelope."""
        return write_envelope(
            challenge.digest,
            seal(
                message,
                recipient=challenge.sealing_key,
                direction=Direction.TO_SERVICE,
                challenge=challenge.digest,
            ),
        )

    def enclave_report(self, challenge: Challenge, session_key: bytes, sealing_key: bytes) -> EnclaveReport:
        return EnclaveReport(
            challenge=challenge.digest,
            session_key=session_key,
            sealing_key=sealing_key,
            monitor_image=self.record.monitor_image,
            monitor_version=self.record.monitor_version,
            security_version=self.record.security_version,
            debug=self.record.debug,
            service_root=self.record.service_root,
            rules_version=1,
            digest=b"",
            rules_root=self.record.rules_root,
        )

    def answer(self, challenge: Challenge, **report_changes: object) -> Answer:
        """Return truthful evidence for a challenge; `report_changes` bend the enclave report."""
        session_key, sealing_key = ec.generate_private_key(ec.SECP256R1()), X25519PrivateKey.generate()
        report = self.enclave_report(
            challenge, point_of(session_key.public_key()), sealing_key.public_key().public_bytes_raw()
        )
        report = replace(report, **report_changes)  # type: ignore[arg-type]
        enclave_report = sign_enclave_report(report, key=self.identity_key)
        quote = None
        if self.tpm is not None:
            binding = quote_binding(
                challenge=challenge.digest, enclave_report=hashlib.sha256(enclave_report).digest()
            )
            quote = self.tpm.quote(binding, challenge.pcrs)
        evidence = Evidence(
            enclave_report=enclave_report,
            launch_record=encode_launch_record(self.record),
            quote=quote,
            event_log=None if self.log is None else self.log.encode(),
            reference=self.reference,
        )
        return Answer(evidence, challenge, session_key, sealing_key)

    def send(self, answer: Answer) -> Session:
        """Send evidence and take in the session, verifying all that a monitor verifies."""
        message = answer.message()
        sealed = self.service.api.session(self.sealed(answer.challenge, message), now=self.service.now)
        response = verify_session_response(
            open_sealed(
                sealed,
                key=answer.sealing_key,
                direction=Direction.TO_MONITOR,
                challenge=answer.challenge.digest,
            ),
            root=self.service.root,
            now=self.service.now,
            challenge=answer.challenge,
            evidence_digest=hashlib.sha256(message).digest(),
            session_key=point_of(answer.session_key.public_key()),
        )
        return Session(
            machine=self,
            key=answer.session_key,
            report=response.report,
            report_bytes=response.response.session_report,
            certificates=response.response.certificates,
            challenge=answer.challenge,
            nonce=first_heartbeat_nonce(response.report.digest),
        )

    def attest(self) -> Session:
        """Answer a fresh challenge with the truth."""
        return self.send(self.answer(self.service.challenge()))


@dataclass
class Session:
    """A monitor with a session: makes runtime reports, passports and heartbeats."""

    machine: Machine
    key: ec.EllipticCurvePrivateKey
    report: SessionReport
    report_bytes: bytes
    certificates: tuple[bytes, ...]
    challenge: Challenge
    nonce: bytes
    sequence: int = 0
    previous: bytes = bytes(32)

    def runtime_report(self, nonce: bytes, audience: str, **changes: object) -> bytes:
        """Return the next runtime report, all well unless bent."""
        now = self.machine.service.now
        self.sequence += 1
        report = RuntimeReport(
            audience=audience,
            nonce=nonce,
            issued_at=now,
            expires_at=now + 60,
            device=self.report.device,
            session_report=self.report.digest,
            sequence=self.sequence,
            previous=self.previous,
            elapsed_ms=1000,
            rules=RulesUsed("base", 1, bytes(32)),
            reference=self.report.reference,
            assertions=(
                AssertionReport("kernel_text_intact", 1, Mode.ENFORCE, Outcome.HOLDS, 500, 14_687_986, ""),
            ),
            violations=(),
            digest=b"",
        )
        message = sign_runtime_report(
            replace(report, **changes),  # type: ignore[arg-type]
            key=self.key,
            certificates=self.certificates,
        )
        self.previous = hashlib.sha256(message).digest()
        return message

    def passport(self, nonce: bytes = NONCE, audience: str = AUDIENCE) -> bytes:
        return encode_passport(Passport(self.report_bytes, self.runtime_report(nonce, audience)))

    def heartbeat(self, report: bytes | None = None) -> HeartbeatAcknowledgement:
        """Send a heartbeat (a truthful one unless given) and take the next nonce from the answer."""
        service = self.machine.service
        if report is None:
            report = self.runtime_report(self.nonce, service.settings.issuer)
        answer = service.api.heartbeat(self.machine.sealed(self.challenge, report), now=service.now)
        acknowledgement = verify_acknowledgement(
            answer, root=service.root, now=service.now, expected_report=hashlib.sha256(report).digest()
        )
        self.nonce = acknowledgement.next_nonce
        return acknowledgement


@dataclass
class World:
    """A service that trusts one maker of TPMs, one monitor and one kernel."""

    service: SimulatedService
    authority: EndorsementAuthority

    def machine(self, **fields: object) -> Machine:
        """Return a machine that was booted and enrolled."""
        tpm = SoftwareTpm(self.authority, now=self.service.now, ek="ecc")
        return Machine(self.service, tpm, **fields).boot().enrol()  # type: ignore[arg-type]


def reference_value(log: BootLog, **changes: object) -> ReferenceValue:
    """Return the reference value of the kernel in a recorded log."""
    authenticode = log.expected["authenticode"]
    assert isinstance(authenticode, list)
    value = ReferenceValue(
        kernel=bytes.fromhex(str(log.expected["kernel_file"])),
        authenticode=bytes.fromhex(authenticode[-1]),
        reference=REFERENCE,
        release=RELEASE,
        locks_down=True,
        verifies_modules=True,
    )
    return replace(value, **changes)  # type: ignore[arg-type]


def make_world(folder: Path, *, now: int = START, **settings: object) -> World:
    """Return a service with a trusted endorsement root, an accepted monitor and a known kernel."""
    service = SimulatedService(folder, now=now, **settings)
    authority = EndorsementAuthority(now=now)
    service.trust_endorsements_of(authority)
    service.accept(AcceptedMonitor(MONITOR_IMAGE, "0.1.0", 1))
    service.know(reference_value(BootLog.recorded()))
    return World(service, authority)


def root_pem(service: SimulatedService) -> bytes:
    """Return what a relying party is given."""
    return service.root.public_bytes(Encoding.PEM)
