"""Trust points: quotes that Windows takes itself, at the end of booting, and keeps in the log.

Where a key is configured for it (Platform Crypto Provider), Windows ends the log with an EV_NO_ACTION
event of no PCR that aggregates, for each key, its name, the SHA-1 of its RSA modulus, a TPMS_ATTEST
and the raw signature (SIPAEVENT_TRUSTPOINT_AGGREGATION of `wbcl.h`). Kept logs of earlier boots can so
be verified later, without a nonce: that *a* boot of this TPM went like that, not that it is the last.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import QuoteInfo, parse_attest
from affiant.tpm.attestation_key import AttestationKey
from affiant.tpm.event_log import EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.octets import sized
from affiant.tpm.public_area import RsaKey
from affiant.tpm.quote import VerifiedQuote, verify_quote
from affiant.tpm.replay import VerifiedEventLog, replay_event_log, replay_values
from affiant.tpm.windows.little_endian import decode_utf16
from affiant.tpm.windows.sipa import Sipa, SipaEvent, read_sipa_events

__all__ = ["TrustPoint", "VerifiedTrustPoint", "read_trust_points", "verify_trust_point"]

_NO_PCR: Final = 0xFFFFFFFF
_MAXIMUM_TRUST_POINTS: Final = 64
_MAXIMUM_NAME: Final = 512


@dataclass(frozen=True, slots=True)
class TrustPoint:
    """Unverified: a quote kept in a log at event `index`, and the key that is said to have made it.

    `key_digest` is said to be the SHA-1 of the key's RSA modulus.
    """

    index: int
    key_name: str
    key_digest: bytes
    quote: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedTrustPoint:
    """A boot of the TPM with that key; made by `verify_trust_point` alone.

    `quote.extra_data` is what Windows put there, not a challenge: a replayed log has a replayed quote.
    Compare `quote.clock_info` with that of a fresh quote by the same key to place the boot in time.
    """

    quote: VerifiedQuote
    log: VerifiedEventLog


def read_trust_points(log: EventLog) -> tuple[TrustPoint, ...]:
    """Read the trust points of a log; nothing about them is verified.

    Raises MalformedError: one that is not decodable or lacks a part, more than 64.
    """
    points: list[TrustPoint] = []
    for event in log.events:
        if event.pcr != _NO_PCR or event.type != EventType.NO_ACTION:
            continue
        points += [
            _read_trust_point(node, event.index)
            for top in read_sipa_events(event.data)
            for node in top.walk()
            if node.identifier == Sipa.TRUST_POINT_AGGREGATION and node.all(Sipa.QUOTE)
        ]
    if len(points) > _MAXIMUM_TRUST_POINTS:
        raise MalformedError(f"event log: {len(points)} trust points")
    return tuple(points)


def _read_trust_point(node: SipaEvent, index: int) -> TrustPoint:
    parts = []
    for identifier in (Sipa.AIK_ID, Sipa.AIK_PUBLIC_DIGEST, Sipa.QUOTE, Sipa.QUOTE_SIGNATURE):
        found = node.all(identifier)
        if len(found) != 1:
            raise MalformedError(f"trust point: {len(found)} events {identifier.name}")
        parts.append(found[0].payload)
    name, digest, quote, signature = parts
    if len(name) > _MAXIMUM_NAME:
        raise MalformedError(f"trust point: key name of {len(name)} octets")
    return TrustPoint(index, decode_utf16(name, "trust point"), digest, quote, signature)


def verify_trust_point(
    log: EventLog, trust_point: TrustPoint, *, attestation_key: AttestationKey, bank: HashAlgorithm
) -> VerifiedTrustPoint:
    """Verify a trust point of `log`, and the events before it in `bank`.

    When it returns,

    - the trust point names `attestation_key`, an RSA key, by the SHA-1 of its modulus;
    - the signature over its quote is by that key (`verify_quote`);
    - the quote's PCR digest is over the values that the events before the trust point lead to;
    - the returned log holds the events before the trust point, of the quoted PCRs, and no others.

    Not checked: freshness (there is no challenge), that the key lives in a TPM, that required PCRs are
    selected. Raises MalformedError or ForgedError.
    """
    public = attestation_key.public.key
    if not isinstance(public, RsaKey):
        raise ForgedError("trust point: the attestation key is not RSA")
    modulus_digest = hashlib.sha1(public.modulus, usedforsecurity=False).digest()
    if not hmac.compare_digest(modulus_digest, trust_point.key_digest):
        raise ForgedError("trust point: it names another key than the attestation key")
    attest = parse_attest(trust_point.quote)
    if not isinstance(attest.attested, QuoteInfo):
        raise ForgedError("trust point: the signed structure is a certification, not a quote")
    before = EventLog(
        tuple(event for event in log.events if event.index < trust_point.index),
        log.algorithms,
        log.crypto_agile,
        log.truncated,
    )
    values = {
        selection.bank: replay_values(before, bank=selection.bank, pcrs=selection.pcrs)
        for selection in attest.attested.selections
    }
    if bank not in values or not values[bank]:
        raise ForgedError(f"trust point: the signed selection has no {bank.title} bank")
    quote = verify_quote(
        trust_point.quote,
        _signature(attestation_key, trust_point.signature),
        attestation_key=attestation_key,
        expected_extra_data=attest.extra_data,
        pcrs=values.pop(bank),
        bank=bank,
        other_banks=values,
    )
    return VerifiedTrustPoint(quote, replay_event_log(before, quote, required_pcrs=quote.pcrs))


def _signature(key: AttestationKey, value: bytes) -> bytes:
    """The TPMT_SIGNATURE around a raw RSA value: the log leaves the key's scheme out."""
    if len(value) > 0xFFFF:
        raise MalformedError(f"trust point: signature of {len(value)} octets")
    return key.scheme.to_bytes(2, "big") + key.hash.to_bytes(2, "big") + sized(value)
