"""A small truthful world: one service, one launcher, one monitor, and every message they say.

Tests bend one thing of it and expect the refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.challenge import Challenge
from affiant.model.enclave_report import EnclaveReport
from affiant.model.enrolment import CredentialChallenge, EnrolmentRequest
from affiant.model.evidence import Evidence, QuoteEvidence
from affiant.model.finding import Finding
from affiant.model.heartbeat import HeartbeatAcknowledgement
from affiant.model.launch_record import LaunchRecord
from affiant.model.level import SecurityLevel, Shortfall
from affiant.model.outcome import Mode, Outcome
from affiant.model.passport import Passport
from affiant.model.runtime_report import AssertionReport, RulesFreshness, RulesUsed, RuntimeReport, Violation
from affiant.model.session import SessionReport, SessionResponse
from affiant.wire import (
    cbor,
    cose,
    enclave_report,
    enrolment,
    evidence,
    heartbeat,
    issuance,
    keys,
    launch_record,
    passport,
    runtime_report,
    session_report,
    session_response,
)
from affiant.wire import challenge as challenges

NOW = 1_800_000_000
NONCE = b"\x0e" * 32
AUDIENCE = "gate.example"
DEVICE = b"\x01" + b"\xde" * 16
SESSION_ID = b"\x5e" * 16
DAY = 86400


def key_of(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(0xA1F1A47 * number, ec.SECP256R1())


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return keys.point_of(key.public_key())


def bent(
    token: bytes,
    *path: int | str,
    value: object,
    key: ec.EllipticCurvePrivateKey,
    certificates: Sequence[bytes],
) -> bytes:
    """Return an EAT or EAR with one claim bent, signed as if it were true."""
    payload = cose.parse_sign1(token, name="token", max_size=1 << 20).payload
    claims: Any = cbor.decode(payload, max_size=1 << 20)
    owner = claims
    for part in path[:-1]:
        owner = owner[part]
    owner[path[-1]] = value
    return cose.sign1(cbor.encode(claims), key=key, typ="application/eat+cwt", certificates=certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


ROOT_KEY, SERVICE_KEY, AUTHORITY_KEY, IDENTITY_KEY, SESSION_KEY, STRANGER_KEY = map(key_of, range(1, 7))


@dataclass(frozen=True)
class Authority:
    """A service's certificates."""

    root: x509.Certificate
    service: x509.Certificate
    session_ca: x509.Certificate
    session: x509.Certificate

    @property
    def session_chain(self) -> tuple[bytes, bytes]:
        return der(self.session), der(self.session_ca)


def build_authority(root_key: ec.EllipticCurvePrivateKey = ROOT_KEY, name: str = "Test root") -> Authority:
    root = issuance.build_root(
        key=root_key, name=name, serial=1, not_before=NOW - DAY, not_after=NOW + 1000 * DAY
    )
    service = issuance.build_service_signing(
        key=SERVICE_KEY.public_key(),
        root=root,
        root_key=root_key,
        serial=2,
        not_before=NOW - DAY,
        not_after=NOW + 100 * DAY,
    )
    session_ca = issuance.build_session_ca(
        key=AUTHORITY_KEY.public_key(),
        root=root,
        root_key=root_key,
        serial=3,
        not_before=NOW - DAY,
        not_after=NOW + 100 * DAY,
    )
    session = issuance.build_session_certificate(
        key=SESSION_KEY.public_key(),
        session_id=SESSION_ID,
        authority=session_ca,
        authority_key=AUTHORITY_KEY,
        serial=4,
        not_before=NOW - 60,
        not_after=NOW + 3540,
    )
    return Authority(root, service, session_ca, session)


AUTHORITY = build_authority()
ROOT = AUTHORITY.root
OTHER_AUTHORITY = build_authority(STRANGER_KEY, "Other root")

LAUNCH_RECORD = LaunchRecord(
    monitor_image=b"\x11" * 32,
    monitor_version="0.1.0",
    security_version=3,
    debug=False,
    service_root=hashlib.sha256(der(ROOT)).digest(),
    identity_key=point(IDENTITY_KEY),
)
CHALLENGE = Challenge(
    issuer="https://attest.example",
    nonce=b"\x0c" * 32,
    issued_at=NOW,
    expires_at=NOW + 120,
    protocol_version=1,
    suites=(1,),
    sealing_key=b"\x09" + bytes(31),
    minimum_rules_version=1,
    pcrs=(0, 4, 7, 9, 14, 17),
    digest=b"",
)
CHALLENGE_BYTES = challenges.sign_challenge(CHALLENGE, key=SERVICE_KEY, certificate=AUTHORITY.service)
CHALLENGE = replace(CHALLENGE, digest=hashlib.sha256(CHALLENGE_BYTES).digest())

ENCLAVE_REPORT = EnclaveReport(
    challenge=CHALLENGE.digest,
    session_key=point(SESSION_KEY),
    sealing_key=b"\x08" * 32,
    monitor_image=LAUNCH_RECORD.monitor_image,
    monitor_version=LAUNCH_RECORD.monitor_version,
    security_version=3,
    debug=False,
    service_root=LAUNCH_RECORD.service_root,
    rules_version=7,
    digest=b"",
)
ENCLAVE_REPORT_BYTES = enclave_report.sign_enclave_report(ENCLAVE_REPORT, key=IDENTITY_KEY)
ENCLAVE_REPORT = replace(ENCLAVE_REPORT, digest=hashlib.sha256(ENCLAVE_REPORT_BYTES).digest())

EVIDENCE = Evidence(
    enclave_report=ENCLAVE_REPORT_BYTES,
    launch_record=launch_record.encode_launch_record(LAUNCH_RECORD),
    quote=QuoteEvidence(b"attest", b"signature", b"ak public", ((0, b"\x00" * 32), (17, b"\x17" * 32))),
    event_log=b"event log",
    reference=b"\x4e" * 32,
)
EVIDENCE_BYTES = evidence.sign_evidence(EVIDENCE, key=SESSION_KEY, challenge=CHALLENGE.digest)
EVIDENCE_DIGEST = hashlib.sha256(EVIDENCE_BYTES).digest()

SESSION_REPORT = SessionReport(
    issuer=CHALLENGE.issuer,
    device=DEVICE,
    issued_at=NOW,
    expires_at=NOW + 3000,
    session_id=SESSION_ID,
    nonce=CHALLENGE.nonce,
    session_key_thumbprint=keys.thumbprint(point(SESSION_KEY)),
    level=SecurityLevel.ISOLATED,
    shortfalls=(
        Shortfall(SecurityLevel.ENFORCED_CODE, "lockdown_enabled", "expected integrity, found none"),
        Shortfall(SecurityLevel.HARDWARE_ROOTED_HOST, "host_attested", "nothing was shown"),
    ),
    claims=(("lockdown_enabled", False), ("secure_boot_enabled", True), ("test_signing_disabled", None)),
    trust_vector=((0, 2), (2, 3), (5, 32)),
    policy=b"\x70" * 32,
    minimum_rules_version=5,
    kernel=b"\x6e" * 32,
    reference=b"\x4e" * 32,
    evidence=EVIDENCE_DIGEST,
    digest=b"",
)


def sign_session(report: SessionReport, authority: Authority = AUTHORITY) -> bytes:
    return session_report.sign_session_report(report, key=SERVICE_KEY, certificate=authority.service)


SESSION_REPORT_BYTES = sign_session(SESSION_REPORT)
SESSION_REPORT = replace(SESSION_REPORT, digest=hashlib.sha256(SESSION_REPORT_BYTES).digest())

SESSION_RESPONSE = SessionResponse(
    challenge=CHALLENGE.digest,
    evidence=EVIDENCE_DIGEST,
    certificates=AUTHORITY.session_chain,
    session_report=SESSION_REPORT_BYTES,
    refresh_by=NOW + 1800,
)
SESSION_RESPONSE_BYTES = session_response.sign_session_response(
    SESSION_RESPONSE, key=SERVICE_KEY, certificate=AUTHORITY.service
)

ASSERTION = AssertionReport("kernel_text_intact", 2, Mode.ENFORCE, Outcome.HOLDS, 150, 3500, "")
VIOLATION = Violation(
    assertion="syscall_table_intact",
    first_seen=5000,
    last_seen=6000,
    last_good=4000,
    standing=False,
    findings=(Finding("sys_call_table[59]", "ffffffff81200000", "ffffffffc0001000", "evil", "T1014"),),
    more=0,
)
RUNTIME_REPORT = RuntimeReport(
    audience=AUDIENCE,
    nonce=NONCE,
    issued_at=NOW,
    expires_at=NOW + 60,
    device=DEVICE,
    session_report=SESSION_REPORT.digest,
    sequence=1,
    previous=bytes(32),
    elapsed_ms=8000,
    rules=RulesUsed("base", 7, b"\x52" * 32),
    reference=b"\x4e" * 32,
    assertions=(
        ASSERTION,
        AssertionReport("syscall_table_intact", 1, Mode.ENFORCE, Outcome.HOLDS, 150, 451, ""),
        AssertionReport("modules_listed", 1, Mode.AUDIT, Outcome.INCONCLUSIVE, 900, 0, "unreadable"),
        AssertionReport("ftrace_off", 1, Mode.AUDIT, Outcome.NOT_APPLICABLE, 900, 0, "not built in"),
    ),
    violations=(),
    digest=b"",
    freshness=RulesFreshness(2_000, False, ""),
)


def sign_runtime(report: RuntimeReport, authority: Authority = AUTHORITY) -> bytes:
    return runtime_report.sign_runtime_report(report, key=SESSION_KEY, certificates=authority.session_chain)


RUNTIME_REPORT_BYTES = sign_runtime(RUNTIME_REPORT)
RUNTIME_REPORT = replace(RUNTIME_REPORT, digest=hashlib.sha256(RUNTIME_REPORT_BYTES).digest())
PASSPORT = Passport(SESSION_REPORT_BYTES, RUNTIME_REPORT_BYTES)
PASSPORT_BYTES = passport.encode_passport(PASSPORT)

REQUEST = EnrolmentRequest(CHALLENGE.digest, (b"ek leaf", b"ek ca"), b"ek public", b"ak public")
REQUEST_BYTES = enrolment.encode_enrolment_request(REQUEST)
CREDENTIAL = CredentialChallenge(b"\xe1" * 16, b"credential blob", b"encrypted secret")
CREDENTIAL_BYTES = enrolment.sign_credential_challenge(
    CREDENTIAL, request=REQUEST_BYTES, key=SERVICE_KEY, certificate=AUTHORITY.service
)
ACKNOWLEDGEMENT = HeartbeatAcknowledgement(RUNTIME_REPORT.digest, b"\x4b" * 32, NOW, NOW + 30, b"\x4c" * 32)
ACKNOWLEDGEMENT_BYTES = heartbeat.sign_acknowledgement(
    ACKNOWLEDGEMENT, key=SERVICE_KEY, certificate=AUTHORITY.service
)


def accept_runtime(data: bytes) -> RuntimeReport:
    return runtime_report.verify_runtime_report(
        data, root=ROOT, now=NOW, expected_nonce=NONCE, expected_audience=AUDIENCE
    ).report


def accept_response(data: bytes) -> SessionResponse:
    return session_response.verify_session_response(
        data,
        root=ROOT,
        now=NOW,
        challenge=CHALLENGE,
        evidence_digest=EVIDENCE_DIGEST,
        session_key=point(SESSION_KEY),
    ).response


# Every signed message: its bytes, the verifier with truthful expectations, and what it returns.
SIGNED: dict[str, tuple[bytes, Callable[[bytes], object], object]] = {
    "challenge": (
        CHALLENGE_BYTES,
        lambda data: challenges.verify_challenge(data, root=ROOT, now=NOW),
        CHALLENGE,
    ),
    "credential challenge": (
        CREDENTIAL_BYTES,
        lambda data: enrolment.verify_credential_challenge(data, request=REQUEST_BYTES, root=ROOT, now=NOW),
        CREDENTIAL,
    ),
    "enclave report": (
        ENCLAVE_REPORT_BYTES,
        lambda data: enclave_report.verify_enclave_report(
            data, identity_key=point(IDENTITY_KEY), expected_challenge=CHALLENGE.digest
        ),
        ENCLAVE_REPORT,
    ),
    "evidence": (
        EVIDENCE_BYTES,
        lambda data: evidence.verify_evidence(data, expected_challenge=CHALLENGE.digest).evidence,
        EVIDENCE,
    ),
    "session report": (
        SESSION_REPORT_BYTES,
        lambda data: session_report.verify_session_report(data, root=ROOT, now=NOW),
        SESSION_REPORT,
    ),
    "session response": (SESSION_RESPONSE_BYTES, accept_response, SESSION_RESPONSE),
    "runtime report": (RUNTIME_REPORT_BYTES, accept_runtime, RUNTIME_REPORT),
    "heartbeat acknowledgement": (
        ACKNOWLEDGEMENT_BYTES,
        lambda data: heartbeat.verify_acknowledgement(
            data, root=ROOT, now=NOW, expected_report=RUNTIME_REPORT.digest
        ),
        ACKNOWLEDGEMENT,
    ),
}
