"""Establishing a session: challenge, enrolment, evidence, response.

The conversation is written once, here, in the order in which it is spoken. It holds no state
between sessions but the service's time, which may only go forward.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.model.challenge import Challenge
from affiant.model.enrolment import EnrolmentProof, EnrolmentRequest
from affiant.model.errors import ForgedError, SetupError, UnavailableError
from affiant.model.evidence import Evidence, QuoteEvidence
from affiant.model.session import SessionReport, SessionResponse
from affiant.monitor.clock import SessionClock, monotonic_ms
from affiant.monitor.courier_client import CourierClient
from affiant.monitor.launcher_client import LauncherClient
from affiant.wire.challenge import claimed_issue_time, verify_challenge
from affiant.wire.cose import parse_sign1
from affiant.wire.enrolment import (
    encode_enrolment_proof,
    encode_enrolment_request,
    prove_enrolment,
    verify_credential_challenge,
)
from affiant.wire.envelope import write_envelope
from affiant.wire.evidence import quote_binding, sign_evidence
from affiant.wire.keys import point_of
from affiant.wire.launcher_requests import (
    Activate,
    EnclaveReportFor,
    Endorsement,
    EndorsementOfTpm,
    Quote,
    Record,
)
from affiant.wire.seal import SUITE, Direction, open_sealed, seal
from affiant.wire.session_response import verify_session_response

__all__ = ["BootEvidence", "BootReader", "RulesTooOldError", "Session", "SessionMaker"]

_PROTOCOL_VERSION = 1
_LOG = logging.getLogger(__name__)


class RulesTooOldError(UnavailableError):
    """The service demands newer rules for a session than those in force."""

    def __init__(self, version: int, minimum: int) -> None:
        super().__init__(f"the rules here are of version {version}, the service demands {minimum} or later")
        self.minimum = minimum


@dataclass(frozen=True, slots=True)
class BootEvidence:
    """What guest memory gives to the boot evidence; both None while there is nothing yet."""

    event_log: bytes | None
    reference: bytes | None


class BootReader(Protocol):
    """Reads the boot evidence out of guest memory, choosing the log that fits the quoted PCRs."""

    def boot_evidence(self, quote: QuoteEvidence | None, *, binding: bytes) -> BootEvidence:
        """Return the log that replays onto `quote`, whose extraData is `binding`, and the reference."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session that the service granted to this monitor; its private key lives here alone.

    `reference` is what the evidence named; the session's report names it too if the service knows it.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    report: SessionReport
    response: SessionResponse
    challenge: Challenge
    clock: SessionClock
    reference: bytes | None


class SessionMaker:
    """Asks the service for sessions on behalf of one monitor.

    `clock` is the service's time by its last challenge, None before the first.
    """

    def __init__(
        self, *, launcher: LauncherClient, courier: CourierClient, boot: BootReader, root: x509.Certificate
    ) -> None:
        self._launcher = launcher
        self._courier = courier
        self._boot = boot
        self._root = root
        self._enrolled = False
        self._latest_service_time = 0
        self.clock: SessionClock | None = None

    def establish(self, *, rules_version: int) -> Session:
        """Return a new session, with a new key, for the guest as it is now.

        A TPM that the service does not know is enrolled first. Raises `UnavailableError` when the
        service or the TPM does not answer, `RulesTooOldError` when the service demands newer rules than
        `rules_version`, `EvidenceError` when an answer does not verify.
        """
        self._enrol_once()
        challenge, clock = self._challenge()
        if rules_version < challenge.minimum_rules_version:
            raise RulesTooOldError(rules_version, challenge.minimum_rules_version)
        key = ec.generate_private_key(ec.SECP256R1())
        sealing_key = X25519PrivateKey.generate()
        evidence = self._evidence(challenge, key, sealing_key, rules_version)
        message = sign_evidence(evidence, key=key, challenge=challenge.digest)
        answer = open_sealed(
            self._courier.post("/v1/session", self._envelope(challenge, message), timeout_s=60.0),
            key=sealing_key,
            direction=Direction.TO_MONITOR,
            challenge=challenge.digest,
        )
        verified = verify_session_response(
            answer,
            root=self._root,
            now=clock.now(monotonic_ms()),
            challenge=challenge,
            evidence_digest=parse_sign1(message, name="evidence", max_size=len(message)).digest,
            session_key=point_of(key.public_key()),
        )
        return Session(key, verified.report, verified.response, challenge, clock, evidence.reference)

    def _challenge(self) -> tuple[Challenge, SessionClock]:
        asked_at = monotonic_ms()
        data = self._courier.post("/v1/challenge", b"")
        # Without a clock of its own, the monitor takes the service's word for the time, as long as
        # it does not go back: an old challenge gains nothing, because the service refuses its nonce.
        issued_at = claimed_issue_time(data)
        if issued_at < self._latest_service_time:
            raise ForgedError("challenge: it is older than one that was seen before")
        challenge = verify_challenge(data, root=self._root, now=issued_at)
        if challenge.protocol_version != _PROTOCOL_VERSION or SUITE not in challenge.suites:
            raise SetupError(
                f"the service speaks protocol {challenge.protocol_version} with suites {challenge.suites}",
                hint=f"this monitor speaks protocol {_PROTOCOL_VERSION} with suite {SUITE}; renew the older",
            )
        self._latest_service_time = issued_at
        self.clock = SessionClock(issued_at, asked_at)
        return challenge, self.clock

    def _enrol_once(self) -> None:
        """Enrol the TPM unless that is done; a TPM that cannot be costs the session its level only."""
        if self._enrolled:
            return
        try:
            endorsement = self._launcher.ask(Endorsement())
            if endorsement is not None:
                self._enrol(endorsement)
                self._enrolled = True
        except UnavailableError as error:
            _LOG.warning("the TPM is not enrolled: %s", error)

    def _enrol(self, endorsement: EndorsementOfTpm) -> None:
        challenge, clock = self._challenge()
        request = encode_enrolment_request(
            EnrolmentRequest(
                challenge=challenge.digest,
                ek_certificates=endorsement.ek_certificates,
                ek_public=endorsement.ek_public,
                ak_public=endorsement.ak_public,
            )
        )
        answer = self._courier.post("/v1/enrolment", self._envelope(challenge, request))
        credential = verify_credential_challenge(
            answer, request=request, root=self._root, now=clock.now(monotonic_ms())
        )
        secret = self._launcher.ask(Activate(credential.credential_blob, credential.encrypted_secret))
        proof = EnrolmentProof(
            enrolment_id=credential.enrolment_id,
            proof=prove_enrolment(secret, request=request, challenge=answer),
        )
        self._courier.post("/v1/enrolment/proof", self._envelope(challenge, encode_enrolment_proof(proof)))

    def _evidence(
        self,
        challenge: Challenge,
        key: ec.EllipticCurvePrivateKey,
        sealing_key: X25519PrivateKey,
        rules_version: int,
    ) -> Evidence:
        enclave_report = self._launcher.ask(
            EnclaveReportFor(
                challenge=challenge.digest,
                session_key=point_of(key.public_key()),
                sealing_key=sealing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
                rules_version=rules_version,
            )
        )
        report_digest = parse_sign1(
            enclave_report, name="enclave report", max_size=len(enclave_report)
        ).digest
        binding = quote_binding(challenge=challenge.digest, enclave_report=report_digest)
        quote = self._quote(binding, challenge.pcrs)
        boot = self._boot.boot_evidence(quote, binding=binding)
        return Evidence(
            enclave_report=enclave_report,
            launch_record=self._launcher.ask(Record()),
            quote=quote,
            event_log=boot.event_log,
            reference=boot.reference,
        )

    def _quote(self, binding: bytes, pcrs: tuple[int, ...]) -> QuoteEvidence | None:
        try:
            return self._launcher.ask(Quote(binding, pcrs))
        except UnavailableError:
            # No TPM, or one that the guest broke: the service gives the level that remains.
            return None

    @staticmethod
    def _envelope(challenge: Challenge, message: bytes) -> bytes:
        """Seal a message to the service."""
        sealed = seal(
            message,
            recipient=challenge.sealing_key,
            direction=Direction.TO_SERVICE,
            challenge=challenge.digest,
        )
        return write_envelope(challenge.digest, sealed)
