"""Verifying a passport: from bytes to what they prove.

Two steps, so that a person can tell a damaged file from a machine that must be refused. First, is
the passport whole? Its runtime report is signed, certificates included, and names the digest of its
session report: a passport with any bit changed fails here, as unusable. Then, is it an answer to
this question? Only what is whole and yet not acceptable raises `NotForUsError`: another root, nonce,
audience or device, expired, or two reports that do not belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from affiant.model.errors import ForgedError
from affiant.model.runtime_report import RuntimeReport
from affiant.model.session import SessionReport
from affiant.wire.certificates import SessionCertificate, load_root
from affiant.wire.keys import thumbprint
from affiant.wire.passport import decode_passport
from affiant.wire.runtime_report import read_runtime_report, verify_runtime_report
from affiant.wire.session_report import session_report_digest, verify_session_report

__all__ = ["NotForUsError", "VerifiedPassport", "verify_passport"]

_NONCE_SIZE = 32


class NotForUsError(ForgedError):
    """A whole passport that does not answer the question it was asked, or not under this root."""


@dataclass(frozen=True, slots=True)
class VerifiedPassport:
    """A passport that holds: made by `verify_passport` alone, at the time `verified_at`."""

    session: SessionReport
    runtime: RuntimeReport
    verified_at: int


def verify_passport(
    passport: bytes,
    *,
    root: x509.Certificate | bytes,
    expected_nonce: bytes,
    now: datetime | int,
    expected_audience: str | None,
    expected_device: bytes | None,
) -> VerifiedPassport:
    """Return what `passport` proves to the one who asked.

    `root` is the service's root certificate, also as PEM or DER bytes; `now` is an aware datetime or
    seconds since the epoch. `None` for audience or device means that the caller cannot tell: then a
    passport made for another relying party, or of another machine, is not noticed here.

    What holds then:
    - the session report is signed by the service that `root` vouches for, and is valid at `now`;
    - the runtime report is signed by the session key that the same root certifies at `now`, and that
      the session report is about;
    - it answers to `expected_nonce` (32 bytes) and to the expected audience, and is valid at `now`;
    - it names the digest of exactly this session report, its session and its device, which is the
      expected one;
    - it compared the kernel with no other reference image than the session report names, if any;
    - it was issued within the session.

    Whether what it reports is good enough is for `affiant.relying_party.decide`. Raises
    `NotForUsError` for a whole passport that is not acceptable, `MalformedError` and other
    `ForgedError`s for bytes that are no whole passport, `ValueError` for a nonce of another length
    or a naive datetime.
    """
    moment = _seconds(now)
    if len(expected_nonce) != _NONCE_SIZE:
        raise ValueError(f"a nonce has {_NONCE_SIZE} bytes")
    anchor = load_root(root) if isinstance(root, bytes) else root
    parts = decode_passport(passport)
    whole = read_runtime_report(parts.runtime_report)
    if whole.said.session_report != session_report_digest(parts.session_report):
        raise ForgedError("passport: its session report is not the one that its runtime report names")
    try:
        runtime = verify_runtime_report(
            whole,
            root=anchor,
            now=moment,
            expected_nonce=expected_nonce,
            expected_audience=expected_audience,
        )
        session = verify_session_report(parts.session_report, root=anchor, now=moment)
    except ForgedError as error:
        raise NotForUsError(str(error), hint=error.hint) from error
    _check_belonging(session, runtime.report, runtime.certificate)
    if expected_device is not None and session.device != expected_device:
        raise NotForUsError(f"passport: of the device {session.device.hex()}, not of {expected_device.hex()}")
    return VerifiedPassport(session=session, runtime=runtime.report, verified_at=moment)


def _check_belonging(session: SessionReport, runtime: RuntimeReport, certificate: SessionCertificate) -> None:
    agreement = {
        # AR4SI, augmented evidence: the key that signs is the key that was appraised.
        "key": session.session_key_thumbprint == thumbprint(certificate.point),
        "session": session.session_id == certificate.session_id,
        "device": session.device == runtime.device,
        # Where the boot log proves which kernel runs, a monitor that compares with another is mistaken.
        "reference image": None in (session.reference, runtime.reference)
        or session.reference == runtime.reference,
        "time": session.issued_at <= runtime.issued_at < session.expires_at,
    }
    for what, agrees in agreement.items():
        if not agrees:
            raise NotForUsError(f"passport: its two reports speak of another {what}")


def _seconds(now: datetime | int) -> int:
    if isinstance(now, int):
        return now
    if now.tzinfo is None:
        raise ValueError("now has no time zone")
    return int(now.timestamp())
