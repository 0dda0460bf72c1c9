"""Claim keys of our CWTs and EATs, and the readers of claims that several messages share.

Registered keys: RFC 8392, section 4 (CWT), RFC 8747 (cnf), RFC 9711, section 10.3 (EAT), and the EAR
draft (draft-ietf-rats-ear-04). Private keys lie below -65536, in -79100 to -79199.
"""

from __future__ import annotations

from affiant.model.errors import ForgedError
from affiant.wire.fields import Fields

__all__ = [
    "AUDIENCE",
    "CLOCK_LEEWAY",
    "CNF",
    "CTI",
    "DBGSTAT",
    "EAR_APPRAISAL_POLICY_IDS",
    "EAR_INPUT_DIGEST",
    "EAR_STATUS",
    "EAR_TRUSTWORTHINESS_VECTOR",
    "EAR_VERIFIER_CLAIMS",
    "EAR_VERIFIER_ID",
    "EAT_CWT",
    "EAT_NONCE",
    "EAT_PROFILE",
    "EXPIRES",
    "ISSUED",
    "ISSUER",
    "MEASRES",
    "MEASUREMENTS",
    "SHA256",
    "SUBMODS",
    "SWNAME",
    "SWVERSION",
    "UEID",
    "check_period",
    "read_tagged_digest",
    "read_ueid",
]

ISSUER, AUDIENCE, EXPIRES, ISSUED, CTI, CNF = 1, 3, 4, 6, 7, 8
EAT_NONCE, UEID, DBGSTAT, EAT_PROFILE, SUBMODS = 10, 256, 263, 265, 266
SWNAME, SWVERSION, MEASUREMENTS, MEASRES = 270, 271, 273, 274
EAR_STATUS, EAR_TRUSTWORTHINESS_VECTOR, EAR_APPRAISAL_POLICY_IDS = 1000, 1001, 1003
EAR_VERIFIER_ID, EAR_VERIFIER_CLAIMS, EAR_INPUT_DIGEST = 1004, 1006, 1008

EAT_CWT = "application/eat+cwt"
"""The media type of an EAT in CWT form (RFC 9782)."""

SHA256 = 1
"""SHA-256 in the Named Information registry, which EAT's digests use (not COSE's -16)."""

CLOCK_LEEWAY = 60
"""How many seconds a signer's clock may be ahead of the reader's."""

# RFC 9711, section 4.2.1.1: type RAND is 0x01 and 16, 24 or 32 random bytes.
_UEID_SIZES = (17, 25, 33)


def check_period(name: str, *, issued_at: int, expires_at: int, now: int) -> None:
    """Require that `now` lies between the two times; `name` is what errors call the message.

    A message issued up to `CLOCK_LEEWAY` seconds ahead of `now` is accepted; one is expired from
    `expires_at` on, without leeway (RFC 8392, section 3.1.4). Raises `ForgedError` otherwise.
    """
    if now >= expires_at:
        raise ForgedError(f"{name}: expired {now - expires_at} s ago")
    if issued_at > now + CLOCK_LEEWAY:
        raise ForgedError(f"{name}: not yet valid, issued {issued_at - now} s ahead of now")


def read_ueid(fields: Fields) -> bytes:
    """Return the UEID of type RAND. Raises `MalformedError` for other types and lengths."""
    ueid = fields.octets(UEID, "device", minimum=_UEID_SIZES[0], maximum=_UEID_SIZES[-1])
    if ueid[0] != 1 or len(ueid) not in _UEID_SIZES:
        raise fields.error("device", "not a UEID of type RAND")
    return ueid


def read_tagged_digest(fields: Fields, key: int, field: str) -> bytes:
    """Return the digest of `[1, SHA-256]`. Raises `MalformedError` for other algorithms."""
    pair = fields.array(key, field, length=2)
    pair.constant(0, "algorithm", SHA256)
    return pair.digest(1, "value")
