"""Fact records: an EAT by the session key around compressed facts, and the form in which one is kept.

The session report travels inside, so that a record proves by itself which machine it speaks of and how
far that machine was proven then. Facts are JSON, because that is what scripts read, bit for bit, and
compressed with zlib.

A kept record is `[0, message]`, or `[1, challenge, sealed message]` where an operator's key was given:
it opens with the private key alone, wherever it lies.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from affiant.model.errors import ForgedError, MalformedError, SetupError
from affiant.model.fact_record import FactRecord
from affiant.model.session import SessionReport
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.certificates import verify_session_chain
from affiant.wire.claims import EAT_PROFILE, ISSUED, UEID, read_ueid
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.keys import thumbprint
from affiant.wire.plain_text import has_controls
from affiant.wire.seal import MAX_PLAINTEXT, SEALED_SIZES, Direction, open_sealed, seal
from affiant.wire.self_signed import (
    read_rules_used,
    read_self_signed,
    sign_with_chain,
    write_rules_used,
)
from affiant.wire.session_report import verify_session_report
from affiant.wire.writing import encode_checked

__all__ = [
    "MAX_FACTS",
    "MAX_KEPT",
    "MAX_PACKED",
    "SelfSignedFactRecord",
    "VerifiedFactRecord",
    "open_kept",
    "pack_facts",
    "read_fact_record",
    "sign_fact_record",
    "verify_fact_record",
    "write_kept",
]

MAX_FACTS = 16 << 20
"""How long the facts of one record may be as JSON, in bytes."""

MAX_PACKED = 960 << 10
"""How long they may be compressed."""

MAX_KEPT = SEALED_SIZES[-1] + 64
"""How long a kept record may be, sealed or not."""

_NAME = "fact record"
_PROFILE = "tag:affiant.dev,2026:affiant/facts#1"
_AFFIANT = -79140
_SESSION, _RULES, _REFERENCE, _CHAIN, _SEQUENCE, _PREVIOUS, _FACTS, _ORIGINS, _LEFT_OUT = range(1, 10)
_MAX_NAMES = 16384
_MAX_NAME = 192
_CHAIN_SIZE = 16
_LAST_SECOND = 253_402_300_799  # of the year 9999, after which no calendar tells it
_PLAIN, _SEALED = 0, 1


@dataclass(frozen=True, slots=True)
class SelfSignedFactRecord:
    """What somebody recorded, unchanged since; who that is, nobody has checked.

    `said` is signed by the key of the first of `certificates` (DER), which may be anybody's.
    """

    said: FactRecord
    session_report: bytes
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifiedFactRecord:
    """A record by a monitor that the service vouched for: made by `verify_fact_record` alone."""

    record: FactRecord
    session: SessionReport


def pack_facts(facts: Mapping[str, Any]) -> bytes:
    """Return facts as a record carries them: sorted JSON, compressed."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates become question marks, as on the way to a script.
    return zlib.compress(text.encode("utf-8", "replace"), 6)


def sign_fact_record(
    record: FactRecord, *, session_report: bytes, key: Signer, certificates: Sequence[bytes]
) -> bytes:
    """Return the message of `record`, whose `digest` is not read: the bytes define it.

    `key` is the session key, `certificates` (DER) its certificate and the session CA. Raises
    `ValueError` beyond the bounds.
    """
    origins: dict[Key, Item] = {name: origin for name, origin in record.origins.items()}  # noqa: C416  the keys' type
    ours: dict[Key, Item] = {
        _SESSION: session_report,
        _RULES: write_rules_used(record.rules),
        _CHAIN: record.chain,
        _SEQUENCE: record.sequence,
        _PREVIOUS: record.previous,
        _FACTS: pack_facts(record.facts),
        _ORIGINS: origins,
        _LEFT_OUT: list(record.left_out),
    }
    if record.reference is not None:
        ours[_REFERENCE] = record.reference
    claims: dict[Key, Item] = {
        ISSUED: record.taken_at,
        UEID: record.device,
        EAT_PROFILE: _PROFILE,
        _AFFIANT: ours,
    }
    payload = encode_checked(claims, lambda data: _read(data, digest=b""))
    return sign_with_chain(payload, key=key, certificates=certificates, name=_NAME, max_size=MAX_PLAINTEXT)


def read_fact_record(data: bytes) -> SelfSignedFactRecord:
    """Return what a record says and the certificates it brings.

    What holds then:
    - it follows its format and bounds, and each of its facts has an origin;
    - the key of its first certificate signed it, certificates included: it is unchanged.

    Raises `MalformedError` or `ForgedError` otherwise.
    """
    verified = read_self_signed(data, name=_NAME, max_size=MAX_PLAINTEXT)
    record, session_report = _read(verified.payload, digest=verified.digest)
    return SelfSignedFactRecord(record, session_report, verified.certificates)


def verify_fact_record(record: SelfSignedFactRecord, *, root: x509.Certificate) -> VerifiedFactRecord:
    """Return the record of a monitor that the service vouched for when it looked.

    What holds then, beyond `read_fact_record`:
    - its session certificate led to `root` at the time of the look;
    - the session report inside is the service's, was valid then, and is about this key, this session
      and this device.

    The time is the monitor's word, within the at most one hour of its certificate. That no record is
    missing is for `sequence` and `previous` to show. Raises `MalformedError` or `ForgedError` otherwise.
    """
    said = record.said
    certificate = verify_session_chain(record.certificates, root=root, now=said.taken_at)
    session = verify_session_report(record.session_report, root=root, now=said.taken_at)
    agreement = {
        "key": session.session_key_thumbprint == thumbprint(certificate.point),
        "session": session.session_id == certificate.session_id,
        "device": session.device == said.device,
        "time": session.issued_at <= said.taken_at,
    }
    for what, agrees in agreement.items():
        if not agrees:
            raise ForgedError(f"{_NAME}: its session report speaks of another {what}")
    return VerifiedFactRecord(said, session)


def write_kept(message: bytes, *, recipient: bytes | None, challenge: bytes) -> bytes:
    """Return a record's message as it is kept: sealed to the X25519 key `recipient`, or in the clear.

    `challenge` is the digest of the challenge that the monitor's session began with. Raises
    `MalformedError` for a recipient that is no usable key.
    """
    if recipient is None:
        return cbor.encode([_PLAIN, message])
    sealed = seal(message, recipient=recipient, direction=Direction.TO_OPERATOR, challenge=challenge)
    return cbor.encode([_SEALED, challenge, sealed])


def open_kept(data: bytes, *, key: X25519PrivateKey | None) -> bytes:
    """Return the message of a kept record.

    Raises `MalformedError` for what is no kept record, `ForgedError` when the seal does not open with
    `key`, `SetupError` when it is sealed and no key was given.
    """
    parts = Fields.of_array(cbor.decode(data, max_size=MAX_KEPT, name="kept record"), "kept record")
    if parts.integer(0, "kind", maximum=1) == _PLAIN:
        message = parts.octets(1, "message", maximum=MAX_PLAINTEXT)
        parts.close()
        return message
    challenge = parts.digest(1, "challenge")
    sealed = parts.octets(2, "sealed message", maximum=MAX_KEPT)
    parts.close()
    if key is None:
        raise SetupError("the record is sealed to an operator's key", hint="give the private key: --key FILE")
    return open_sealed(sealed, key=key, direction=Direction.TO_OPERATOR, challenge=challenge)


def _read(payload: bytes, *, digest: bytes) -> tuple[FactRecord, bytes]:
    fields = Fields.of_map(cbor.decode(payload, max_size=MAX_PLAINTEXT, name=_NAME), _NAME)
    fields.constant(EAT_PROFILE, "profile", _PROFILE)
    ours = fields.map(_AFFIANT, "details")
    session_report = ours.octets(_SESSION, "session report", minimum=1, maximum=1 << 16)
    record = FactRecord(
        device=read_ueid(fields),
        taken_at=fields.integer(ISSUED, "time", maximum=_LAST_SECOND),
        chain=ours.octets(_CHAIN, "chain", size=_CHAIN_SIZE),
        sequence=ours.integer(_SEQUENCE, "sequence", minimum=1),
        previous=ours.digest(_PREVIOUS, "previous record"),
        rules=read_rules_used(ours, _RULES),
        reference=ours.optional(ours.digest, _REFERENCE, "reference"),
        facts=_unpack(ours.octets(_FACTS, "facts", maximum=MAX_PACKED)),
        origins=_read_origins(ours),
        left_out=ours.each(
            _LEFT_OUT,
            "left out",
            lambda names, index: names.text(index, str(index), maximum=_MAX_NAME),
            maximum=_MAX_NAMES,
        ),
        digest=digest,
    )
    ours.close()
    fields.close()
    if record.facts.keys() != record.origins.keys():
        raise ours.error("origins", "not those of its facts")
    if (record.sequence == 1) != (record.previous == bytes(32)):
        raise ours.error("previous record", "zeros belong to the first record, and to it alone")
    return record, session_report


def _read_origins(ours: Fields) -> dict[str, str]:
    origins = {}
    for name, origin in ours.pairs(_ORIGINS, "origins", maximum=_MAX_NAMES):
        if (
            not isinstance(name, str)
            or not isinstance(origin, str)
            or max(len(name), len(origin)) > _MAX_NAME
            or has_controls(name + origin)
        ):
            raise ours.error("origins", "a name or an origin is no text of a sensible size in one line")
        origins[name] = origin
    return origins


def _unpack(packed: bytes) -> dict[str, Any]:
    """Return the facts in compressed JSON; a small message cannot become a large heap."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_FACTS + 1)
    except zlib.error as error:
        raise MalformedError(f"{_NAME}: its facts cannot be unpacked: {error}") from None
    if len(text) > MAX_FACTS:
        raise MalformedError(f"{_NAME}: its facts have more than {MAX_FACTS} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedError(f"{_NAME}: its facts are cut off, or something follows them")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{_NAME}: its facts are no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise MalformedError(f"{_NAME}: its facts are no JSON object")
    return facts
