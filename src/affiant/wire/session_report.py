"""The session report: an EAR by the service about one monitor (draft-ietf-rats-ear-04).

Claims of others' making are ignored, as the draft demands of receivers; the map of our own claims
under `ear_verifier_claims` is strict. The draft's names may still change: the profile string and
the claim keys stand here and in `affiant.wire.claims`, nowhere else.
"""

from __future__ import annotations

import hashlib

from cryptography import x509

from affiant import __version__
from affiant.model.level import SecurityLevel, Shortfall
from affiant.model.session import SessionReport
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.claims import (
    CNF,
    CTI,
    EAR_APPRAISAL_POLICY_IDS,
    EAR_INPUT_DIGEST,
    EAR_STATUS,
    EAR_TRUSTWORTHINESS_VECTOR,
    EAR_VERIFIER_CLAIMS,
    EAR_VERIFIER_ID,
    EAT_CWT,
    EAT_NONCE,
    EAT_PROFILE,
    EXPIRES,
    ISSUED,
    ISSUER,
    SHA256,
    SUBMODS,
    UEID,
    check_period,
    read_tagged_digest,
    read_ueid,
)
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.service_message import sign_by_service, verify_by_service
from affiant.wire.writing import encode_checked

__all__ = ["MAX_SESSION_REPORT", "session_report_digest", "sign_session_report", "verify_session_report"]

MAX_SESSION_REPORT = 1 << 16
"""The longest session report, in bytes."""

_PROFILE = "tag:ietf.org,2026:rats/ear#04"
_NAME = "session report"
_PLATFORM = "platform"
_MAX_SECONDS = 3600
_MAX_SHORTFALLS = 64
_MAX_CLAIMS = 128
_MAX_EXPLANATION = 512

_THUMBPRINT = 5  # RFC 9679, section 5.6: ckt in cnf

_AFFIANT = -79110
_LEVEL, _POLICY, _MINIMUM_RULES, _SHORTFALLS, _CLAIMS, _KERNEL, _REFERENCE = 1, 2, 3, 5, 6, 7, 8


def sign_session_report(report: SessionReport, *, key: Signer, certificate: x509.Certificate) -> bytes:
    """Return the message of `report`, whose `digest` is not read: the bytes define it.

    `certificate` is the service's signing certificate. Raises `ValueError` for values beyond the
    message's bounds: the session id has 16 bytes, the trust vector at least one entry.
    """
    status = _worst_tier(report.trust_vector)
    ours: dict[Key, Item] = {
        _LEVEL: int(report.level),
        _POLICY: report.policy,
        _MINIMUM_RULES: report.minimum_rules_version,
        _SHORTFALLS: [[int(each.level), each.claim, each.explanation] for each in report.shortfalls],
        _CLAIMS: dict(report.claims),
    }
    if report.kernel is not None:
        ours[_KERNEL] = report.kernel
    if report.reference is not None:
        ours[_REFERENCE] = report.reference
    payload = encode_checked(
        {
            ISSUER: report.issuer,
            EXPIRES: report.expires_at,
            ISSUED: report.issued_at,
            CTI: report.session_id,
            CNF: {_THUMBPRINT: report.session_key_thumbprint},
            EAT_NONCE: report.nonce,
            UEID: report.device,
            EAT_PROFILE: _PROFILE,
            SUBMODS: {
                _PLATFORM: {
                    EAR_STATUS: status,
                    EAR_TRUSTWORTHINESS_VECTOR: dict(report.trust_vector),
                    EAR_APPRAISAL_POLICY_IDS: [f"tag:affiant.dev,2026:policy/{report.policy.hex()}"],
                    EAR_VERIFIER_CLAIMS: {_AFFIANT: ours},
                }
            },
            EAR_STATUS: status,
            EAR_VERIFIER_ID: {0: "https://affiant.dev", 1: f"affiant {__version__}"},
            EAR_INPUT_DIGEST: [SHA256, report.evidence],
        },
        lambda data: _read(data, digest=b""),
    )
    return sign_by_service(payload, key=key, certificate=certificate, typ=EAT_CWT)


def session_report_digest(data: bytes) -> bytes:
    """Return the digest by which runtime reports name the session report with the bytes `data`."""
    return hashlib.sha256(data).digest()


def verify_session_report(data: bytes, *, root: x509.Certificate, now: int) -> SessionReport:
    """Return the report that `data` holds.

    What holds then:
    - the service signed it: the chain of its certificate leads to `root`, at `now`;
    - `now` is before its expiry and not more than `CLOCK_LEEWAY` seconds before its issue;
    - it is valid for at most one hour, and its profile is the one known here;
    - its status is the worst tier of its trust vector, which is not empty.

    Which key, device and nonce it speaks of is for the caller to compare. Raises `MalformedError` or
    `ForgedError` otherwise.
    """
    message = verify_by_service(
        data, name=_NAME, typ=EAT_CWT, max_size=MAX_SESSION_REPORT, root=root, now=now
    )
    report = _read(message.payload, digest=message.digest)
    check_period(_NAME, issued_at=report.issued_at, expires_at=report.expires_at, now=now)
    return report


def _read(payload: bytes, *, digest: bytes) -> SessionReport:
    fields = Fields.of_map(cbor.decode(payload, max_size=MAX_SESSION_REPORT, name=_NAME), _NAME)
    fields.constant(EAT_PROFILE, "profile", _PROFILE)
    platform = fields.map(SUBMODS, "submodules").map(_PLATFORM, _PLATFORM)
    ours = platform.map(EAR_VERIFIER_CLAIMS, "verifier claims").map(_AFFIANT, "affiant")
    report = SessionReport(
        issuer=fields.text(ISSUER, "issuer", minimum=1),
        device=read_ueid(fields),
        issued_at=fields.integer(ISSUED, "issue time"),
        expires_at=fields.integer(EXPIRES, "expiry"),
        session_id=fields.octets(CTI, "session id", size=16),
        nonce=fields.octets(EAT_NONCE, "nonce", size=32),
        session_key_thumbprint=fields.map(CNF, "confirmation key").digest(_THUMBPRINT, "thumbprint"),
        level=_read_level(ours, _LEVEL),
        shortfalls=ours.each(_SHORTFALLS, "shortfalls", _read_shortfall, maximum=_MAX_SHORTFALLS),
        claims=_read_claims(ours),
        trust_vector=_read_trust_vector(platform),
        policy=ours.digest(_POLICY, "policy"),
        minimum_rules_version=ours.integer(_MINIMUM_RULES, "minimum rules version"),
        kernel=ours.optional(ours.digest, _KERNEL, "kernel"),
        reference=ours.optional(ours.digest, _REFERENCE, "reference"),
        evidence=read_tagged_digest(fields, EAR_INPUT_DIGEST, "input digest"),
        digest=digest,
    )
    ours.close()
    if not 0 < report.expires_at - report.issued_at <= _MAX_SECONDS:
        raise fields.error("expiry", f"not within {_MAX_SECONDS} s of the issue")
    # draft-ietf-rats-ear-04, section 3.2: a status is not better than the vector it stands for.
    for owner in (fields, platform):
        owner.constant(EAR_STATUS, "status", _worst_tier(report.trust_vector))
    return report


def _read_level(fields: Fields, key: int) -> SecurityLevel:
    return SecurityLevel(fields.integer(key, "level", maximum=max(SecurityLevel)))


def _read_shortfall(shortfalls: Fields, index: int) -> Shortfall:
    row = shortfalls.array(index, str(index), length=3)
    return Shortfall(
        level=_read_level(row, 0),
        claim=row.text(1, "claim", minimum=1, maximum=64),
        explanation=row.text(2, "explanation", maximum=_MAX_EXPLANATION),
    )


def _read_claims(ours: Fields) -> tuple[tuple[str, bool | None], ...]:
    claims: list[tuple[str, bool | None]] = []
    for name, value in ours.pairs(_CLAIMS, "claims", maximum=_MAX_CLAIMS):
        if not isinstance(name, str) or not 1 <= len(name) <= 64:
            raise ours.error("claims", "a name is not text of 1 to 64 characters")
        if not (value is None or isinstance(value, bool)):
            raise ours.error("claims", f"{name} is neither true, false nor null")
        claims.append((name, value))
    return tuple(claims)


def _read_trust_vector(platform: Fields) -> tuple[tuple[int, int], ...]:
    # draft-ietf-rats-ear-04, section 3.1: keys 0 to 7, values int8, at least one.
    vector = platform.map(EAR_TRUSTWORTHINESS_VECTOR, "trust vector", maximum=8)
    values = tuple(
        (key, vector.integer(key, str(key), minimum=-128, maximum=127)) for key in range(8) if key in vector
    )
    vector.close()
    if not values:
        raise platform.error("trust vector", "empty")
    return values


def _worst_tier(vector: tuple[tuple[int, int], ...]) -> int:
    return max((_tier(value) for _, value in vector), default=0)


def _tier(value: int) -> int:
    # AR4SI, section 2.3.2: none, affirming, warning, contraindicated.
    if -1 <= value <= 1:
        return 0
    if -32 <= value <= 31:
        return 2
    if -96 <= value <= 95:
        return 32
    return 96
