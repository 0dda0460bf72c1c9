"""The challenge: a CWT by the service that fresh evidence must answer to."""

from __future__ import annotations

from itertools import pairwise

from cryptography import x509

from affiant.model.challenge import Challenge
from affiant.wire import cbor
from affiant.wire.claims import EAT_NONCE, EXPIRES, ISSUED, ISSUER, check_period
from affiant.wire.cose import Signer, parse_sign1
from affiant.wire.fields import Fields
from affiant.wire.pcrs import read_pcr_selection
from affiant.wire.service_message import sign_by_service, verify_by_service
from affiant.wire.writing import encode_checked

__all__ = ["MAX_CHALLENGE_SECONDS", "claimed_issue_time", "sign_challenge", "verify_challenge"]

MAX_CHALLENGE_SECONDS = 120
"""The longest time between a challenge's issue and expiry."""

_TYP = "application/vnd.affiant.challenge+cwt"
_NAME = "challenge"
_MAX_SIZE = 8192
_MAX_SUITES = 16

_AFFIANT = -79100
_VERSION, _SUITES, _SEALING_KEY, _MINIMUM_RULES, _PCRS = 1, 2, 3, 4, 5


def sign_challenge(challenge: Challenge, *, key: Signer, certificate: x509.Certificate) -> bytes:
    """Return the message of `challenge`, whose `digest` is not read: the bytes define it.

    `certificate` is the service's signing certificate. Raises `ValueError` for values beyond the
    message's bounds, such as an expiry after more than `MAX_CHALLENGE_SECONDS`.
    """
    payload = encode_checked(
        {
            ISSUER: challenge.issuer,
            EXPIRES: challenge.expires_at,
            ISSUED: challenge.issued_at,
            EAT_NONCE: challenge.nonce,
            _AFFIANT: {
                _VERSION: challenge.protocol_version,
                _SUITES: list(challenge.suites),
                _SEALING_KEY: challenge.sealing_key,
                _MINIMUM_RULES: challenge.minimum_rules_version,
                _PCRS: list(challenge.pcrs),
            },
        },
        lambda data: _read(data, digest=b""),
    )
    return sign_by_service(payload, key=key, certificate=certificate, typ=_TYP)


def verify_challenge(data: bytes, *, root: x509.Certificate, now: int) -> Challenge:
    """Return the challenge that `data` holds.

    What holds then:
    - the service signed it: the chain of its certificate leads to `root`, at `now`;
    - `now` is before its expiry and not more than `CLOCK_LEEWAY` seconds before its issue;
    - it is valid for at most `MAX_CHALLENGE_SECONDS`;
    - its suites and PCRs are ascending and not empty.

    Whether its version and suites are welcome is for the caller. Raises `MalformedError` or
    `ForgedError` otherwise.
    """
    message = verify_by_service(data, name=_NAME, typ=_TYP, max_size=_MAX_SIZE, root=root, now=now)
    challenge = _read(message.payload, digest=message.digest)
    check_period(_NAME, issued_at=challenge.issued_at, expires_at=challenge.expires_at, now=now)
    return challenge


def claimed_issue_time(data: bytes) -> int:
    """Return when a challenge says it was issued (seconds since the epoch); nothing is verified.

    For a monitor, which has no clock to trust: it verifies the challenge at this time, and the
    service alone decides whether an answer is in time. Raises `MalformedError`.
    """
    message = parse_sign1(data, name=_NAME, max_size=_MAX_SIZE)
    return _read(message.payload, digest=message.digest).issued_at


def _read(payload: bytes, *, digest: bytes) -> Challenge:
    fields = Fields.of_map(cbor.decode(payload, max_size=_MAX_SIZE, name=_NAME), _NAME)
    ours = fields.map(_AFFIANT, "parameters")
    challenge = Challenge(
        issuer=fields.text(ISSUER, "issuer", minimum=1),
        nonce=fields.octets(EAT_NONCE, "nonce", size=32),
        issued_at=fields.integer(ISSUED, "issue time"),
        expires_at=fields.integer(EXPIRES, "expiry"),
        protocol_version=ours.integer(_VERSION, "protocol version"),
        suites=ours.each(_SUITES, "suites", _read_suite, minimum=1, maximum=_MAX_SUITES),
        sealing_key=ours.octets(_SEALING_KEY, "sealing key", size=32),
        minimum_rules_version=ours.integer(_MINIMUM_RULES, "minimum rules version"),
        pcrs=read_pcr_selection(ours, _PCRS),
        digest=digest,
    )
    ours.close()
    fields.close()
    if any(later <= earlier for earlier, later in pairwise(challenge.suites)):
        raise ours.error("suites", "not ascending")
    if not 0 < challenge.expires_at - challenge.issued_at <= MAX_CHALLENGE_SECONDS:
        raise fields.error("expiry", f"not within {MAX_CHALLENGE_SECONDS} s of the issue")
    return challenge


def _read_suite(suites: Fields, index: int) -> int:
    return suites.integer(index, str(index), minimum=1, maximum=255)
