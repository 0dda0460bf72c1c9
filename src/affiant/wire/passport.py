"""The passport: session report and runtime report in one CMW collection, as bytes or as text.

The text form is base64url without padding (RFC 4648, section 5), for headers and tokens.
"""

from __future__ import annotations

import base64
import binascii

from affiant.model.errors import MalformedError
from affiant.model.passport import Passport
from affiant.wire.cmw import ATTESTATION_RESULTS, EVIDENCE, RecordKind, encode_collection, open_collection
from affiant.wire.runtime_report import MAX_RUNTIME_REPORT
from affiant.wire.session_report import MAX_SESSION_REPORT

__all__ = [
    "MAX_PASSPORT",
    "decode_passport",
    "decode_passport_text",
    "encode_passport",
    "encode_passport_text",
]

MAX_PASSPORT = MAX_SESSION_REPORT + MAX_RUNTIME_REPORT + 256
"""The longest passport, in bytes."""

_COLLECTION = "tag:affiant.dev,2026:affiant/passport#1"
_NAME = "passport"
_SESSION = RecordKind("session", "application/eat+cwt", ATTESTATION_RESULTS, MAX_SESSION_REPORT)
_RUNTIME = RecordKind("runtime", "application/eat+cwt", EVIDENCE, MAX_RUNTIME_REPORT)


def encode_passport(passport: Passport) -> bytes:
    """Return the collection. Raises `ValueError` for a report beyond its bound."""
    return encode_collection(
        _COLLECTION, [(_SESSION, passport.session_report), (_RUNTIME, passport.runtime_report)]
    )


def decode_passport(data: bytes) -> Passport:
    """Return the two messages, unverified. Raises `MalformedError`."""
    collection = open_collection(data, collection_type=_COLLECTION, name=_NAME, max_size=MAX_PASSPORT)
    passport = Passport(session_report=_SESSION.read(collection), runtime_report=_RUNTIME.read(collection))
    collection.close()
    return passport


def encode_passport_text(passport: bytes) -> str:
    """Return the text form of a passport's bytes."""
    return base64.urlsafe_b64encode(passport).rstrip(b"=").decode("ascii")


def decode_passport_text(text: str) -> bytes:
    """Return the bytes of a passport in text form.

    Guaranteed: `encode_passport_text` of the result is `text`. Raises `MalformedError`.
    """
    if len(text) > (MAX_PASSPORT + 2) // 3 * 4:
        raise MalformedError(f"{_NAME}: {len(text)} characters are too many")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"{_NAME}: not base64url") from None
    if encode_passport_text(data) != text:
        raise MalformedError(f"{_NAME}: not the one base64url form")
    return data
