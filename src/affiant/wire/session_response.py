"""The session response: what the service answers to evidence, sealed to the monitor."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from affiant.model.challenge import Challenge
from affiant.model.errors import ForgedError
from affiant.model.session import SessionReport, SessionResponse
from affiant.wire import cbor
from affiant.wire.certificates import SessionCertificate, verify_session_chain
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.keys import thumbprint
from affiant.wire.service_message import sign_by_service, verify_by_service
from affiant.wire.session_report import MAX_SESSION_REPORT, verify_session_report
from affiant.wire.writing import encode_checked

__all__ = ["VerifiedSessionResponse", "sign_session_response", "verify_session_response"]

_TYP = "application/vnd.affiant.session-response+cbor"
_NAME = "session response"
_MAX_CERTIFICATE = 8192
_MAX_SIZE = MAX_SESSION_REPORT + 3 * _MAX_CERTIFICATE + 1024


@dataclass(frozen=True, slots=True)
class VerifiedSessionResponse:
    """An accepted response with its parts verified: made by `verify_session_response` alone."""

    response: SessionResponse
    report: SessionReport
    certificate: SessionCertificate


def sign_session_response(response: SessionResponse, *, key: Signer, certificate: x509.Certificate) -> bytes:
    """Return the message of `response`, to be sealed to the monitor.

    `certificate` is the service's signing certificate. Raises `ValueError` beyond the bounds.
    """
    payload = encode_checked(
        {
            1: response.challenge,
            2: response.evidence,
            3: list(response.certificates),
            4: response.session_report,
            5: response.refresh_by,
        },
        _read,
    )
    return sign_by_service(payload, key=key, certificate=certificate, typ=_TYP)


def verify_session_response(
    data: bytes,
    *,
    root: x509.Certificate,
    now: int,
    challenge: Challenge,
    evidence_digest: bytes,
    session_key: bytes,
) -> VerifiedSessionResponse:
    """Return the session that `data` grants to the monitor that asks.

    What holds then:
    - the service signed it: the chain of its certificate leads to `root`, at `now`;
    - it answers to `challenge` and to the evidence with the digest `evidence_digest`;
    - its session certificate leads to `root`, at `now`, and certifies `session_key` (65 bytes);
    - its session report is the service's, about the same key, session, challenge and evidence, and
      does not outlive the certificate;
    - the time to refresh by is not after the report's expiry.

    Raises `MalformedError` or `ForgedError` otherwise.
    """
    message = verify_by_service(data, name=_NAME, typ=_TYP, max_size=_MAX_SIZE, root=root, now=now)
    response = _read(message.payload)
    if response.challenge != challenge.digest:
        raise ForgedError(f"{_NAME}: answers to another challenge")
    if response.evidence != evidence_digest:
        raise ForgedError(f"{_NAME}: answers to other evidence")
    certificate = verify_session_chain(response.certificates, root=root, now=now)
    if certificate.point != session_key:
        raise ForgedError(f"{_NAME}: certifies another key")
    report = verify_session_report(response.session_report, root=root, now=now)
    _check_same_session(report, certificate, challenge, evidence_digest)
    if response.refresh_by > report.expires_at:
        raise ForgedError(f"{_NAME}: the time to refresh by is after the session's end")
    return VerifiedSessionResponse(response, report, certificate)


def _check_same_session(
    report: SessionReport, certificate: SessionCertificate, challenge: Challenge, evidence_digest: bytes
) -> None:
    agreement = {
        "key": report.session_key_thumbprint == thumbprint(certificate.point),
        "session": report.session_id == certificate.session_id,
        "challenge": report.nonce == challenge.nonce,
        "evidence": report.evidence == evidence_digest,
        "period": report.expires_at <= certificate.not_after,
    }
    for what, agrees in agreement.items():
        if not agrees:
            raise ForgedError(f"{_NAME}: the session report speaks of another {what}")


def _read(payload: bytes) -> SessionResponse:
    fields = Fields.of_map(cbor.decode(payload, max_size=_MAX_SIZE, name=_NAME), _NAME)
    response = SessionResponse(
        challenge=fields.digest(1, "challenge"),
        evidence=fields.digest(2, "evidence"),
        certificates=fields.each(3, "certificates", _read_certificate, minimum=2, maximum=2),
        session_report=fields.octets(4, "session report", minimum=1, maximum=MAX_SESSION_REPORT),
        refresh_by=fields.integer(5, "refresh by"),
    )
    fields.close()
    return response


def _read_certificate(certificates: Fields, index: int) -> bytes:
    return certificates.octets(index, str(index), minimum=1, maximum=_MAX_CERTIFICATE)
