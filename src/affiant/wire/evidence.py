"""Evidence: a CMW collection, signed by the session key that the enclave report in it names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from affiant.model.evidence import Evidence, QuoteEvidence
from affiant.wire import cbor
from affiant.wire.cmw import EVIDENCE, RecordKind, encode_collection, open_collection
from affiant.wire.cose import Signer, parse_sign1, sign1, verify_sign1
from affiant.wire.enclave_report import claimed_session_key
from affiant.wire.fields import Fields
from affiant.wire.keys import load_point
from affiant.wire.pcrs import read_pcr_values, write_pcr_values
from affiant.wire.seal import MAX_PLAINTEXT

__all__ = ["MAX_EVENT_LOG", "VerifiedEvidence", "quote_binding", "sign_evidence", "verify_evidence"]

MAX_EVENT_LOG = 900 << 10
"""The longest event log that evidence can carry, in bytes."""

_COLLECTION = "tag:affiant.dev,2026:affiant/evidence#1"
_TYP = "application/cmw+cbor"
_NAME = "evidence"
_MAX_TPM_STRUCTURE = 4096
_MAX_PCR_BYTES = 2048

_ENCLAVE_REPORT = RecordKind("encl", "application/eat+cwt", EVIDENCE, 4096)
_LAUNCH_RECORD = RecordKind("launch", "application/vnd.affiant.launch-record+cbor", EVIDENCE, 1024)
_QUOTE = RecordKind(
    "quote", "application/vnd.affiant.quote+cbor", EVIDENCE, 3 * _MAX_TPM_STRUCTURE + _MAX_PCR_BYTES
)
_EVENT_LOG = RecordKind("log.tcg", "application/vnd.affiant.tcg-event-log", EVIDENCE, MAX_EVENT_LOG)
_REFERENCE = RecordKind("reference", "application/vnd.affiant.reference-digest", EVIDENCE, 32)


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Evidence whose sender holds the session key that it names: made by `verify_evidence` alone.

    Its parts remain unverified. `digest`: SHA-256 over the exact message, for the session report.
    `session_key`: the P-256 point that made the signature.
    """

    evidence: Evidence
    session_key: bytes
    digest: bytes


def quote_binding(*, challenge: bytes, enclave_report: bytes) -> bytes:
    """Return what a quote's extraData must hold (32 bytes), given the digests of the two messages.

    It ties the quote to one challenge and to one enclave report, so that the quote of one machine
    cannot stand beside the report of another.
    """
    if len(challenge) != 32 or len(enclave_report) != 32:
        raise ValueError("both digests have 32 bytes")
    return hashlib.sha256(cbor.encode(["affiant/1/quote", challenge, enclave_report])).digest()


def sign_evidence(evidence: Evidence, *, key: Signer, challenge: bytes) -> bytes:
    """Return the message of `evidence`, to be sealed.

    `key` is the session key, `challenge` the digest of the challenge. Raises `ValueError` for parts
    beyond their bounds.
    """
    records = [(_ENCLAVE_REPORT, evidence.enclave_report), (_LAUNCH_RECORD, evidence.launch_record)]
    if evidence.quote is not None:
        records.append((_QUOTE, _encode_quote(evidence.quote)))
    if evidence.event_log is not None:
        records.append((_EVENT_LOG, evidence.event_log))
    if evidence.reference is not None:
        records.append((_REFERENCE, evidence.reference))
    payload = encode_collection(_COLLECTION, records)
    return sign1(payload, key=key, typ=_TYP, external_aad=_binding(challenge))


def verify_evidence(data: bytes, *, expected_challenge: bytes) -> VerifiedEvidence:
    """Return the evidence that `data` holds.

    What holds then:
    - its sender holds the private session key that the enclave report inside names;
    - it was signed for the challenge with the digest `expected_challenge`, and not changed since;
    - each part is within its bounds; PCR values are 32 bytes, by ascending index.

    Nothing inside is verified: the enclave report's own signature, the quote and the log are for
    `affiant.appraisal`. Raises `MalformedError` or `ForgedError` otherwise.
    """
    message = parse_sign1(data, name=_NAME, max_size=MAX_PLAINTEXT)
    evidence = _read(message.payload)
    session_key = claimed_session_key(evidence.enclave_report)
    verify_sign1(
        message,
        key=load_point(session_key, name="session key"),
        typ=_TYP,
        external_aad=_binding(expected_challenge),
    )
    return VerifiedEvidence(evidence, session_key, message.digest)


def _binding(challenge: bytes) -> bytes:
    if len(challenge) != 32:
        raise ValueError("a challenge's digest has 32 bytes")
    return b"affiant/1/evidence" + challenge


def _encode_quote(quote: QuoteEvidence) -> bytes:
    return cbor.encode(
        {1: quote.attest, 2: quote.signature, 3: quote.ak_public, 4: write_pcr_values(quote.pcrs)}
    )


def _read(payload: bytes) -> Evidence:
    collection = open_collection(payload, collection_type=_COLLECTION, name=_NAME, max_size=MAX_PLAINTEXT)
    quote = _QUOTE.read_optional(collection)
    evidence = Evidence(
        enclave_report=_ENCLAVE_REPORT.read(collection),
        launch_record=_LAUNCH_RECORD.read(collection),
        quote=None if quote is None else _read_quote(quote),
        event_log=_EVENT_LOG.read_optional(collection),
        reference=_REFERENCE.read_optional(collection),
    )
    collection.close()
    if evidence.reference is not None and len(evidence.reference) != 32:
        raise collection.error("reference", "not 32 bytes")
    return evidence


def _read_quote(data: bytes) -> QuoteEvidence:
    name = f"{_NAME}: quote"
    fields = Fields.of_map(cbor.decode(data, max_size=_QUOTE.max_size, name=name), name)
    quote = QuoteEvidence(
        attest=fields.octets(1, "attest", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        signature=fields.octets(2, "signature", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        ak_public=fields.octets(3, "AK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        pcrs=read_pcr_values(fields, 4),
    )
    fields.close()
    return quote
