"""The evidence of one boot as files: a log, and perhaps PCR values, a quote, its signature and key.

A log may come in a bundle, a JSON object that holds it beside the rest: with `event_logs` (base64) and
`pcrs`, `quote`, `signature`; or as go-attestation writes it (`Log`, `Quote`, `AK`). Nothing in a bundle
is believed more than in a file of its own, and its nonce is never used.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.boot.files import read_file
from affiant.boot.pcr_values import PcrValues, parse_pcr_values, pcr_values_of
from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import MAXIMUM_LOG
from affiant.tpm.octets import sized

__all__ = ["BootEvidence", "read_boot_evidence"]

_MAXIMUM_BUNDLE: Final = 4 << 20
_MAXIMUM_SMALL: Final = 1 << 16
_MAXIMUM_IMA_LIST: Final = 1 << 26
_GENERATED: Final = b"\xff\x54\x43\x47"
_BY_SIZE: Final = {bank.digest_size: bank for bank in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class BootEvidence:
    """Unverified: what was handed over; None is what was not.

    `quote` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE, `attestation_key` a TPM2B_PUBLIC.
    """

    log: bytes
    values: PcrValues | None = None
    quote: bytes | None = None
    signature: bytes | None = None
    attestation_key: bytes | None = None
    ima_list: bytes | None = None
    userspace_log: bytes | None = None


def read_boot_evidence(
    log: str,
    *,
    pcrs: str | None = None,
    quote: str | None = None,
    signature: str | None = None,
    attestation_key: str | None = None,
    ima_list: str | None = None,
    userspace_log: str | None = None,
) -> BootEvidence:
    """Read the files named; one that is named takes the place of the bundle's.

    Raises SetupError, UnavailableError or MalformedError.
    """
    content = read_file(log, limit=_MAXIMUM_BUNDLE, what="event log")
    evidence = _from_bundle(content) if content[:1] == b"{" else BootEvidence(content)
    if len(evidence.log) > MAXIMUM_LOG:
        raise MalformedError(f"event log of {len(evidence.log)} octets is longer than {MAXIMUM_LOG}")
    if pcrs is not None:
        octets = read_file(pcrs, limit=_MAXIMUM_BUNDLE, what="PCR values")
        evidence = replace(evidence, values=parse_pcr_values(octets))
    if quote is not None:
        octets = read_file(quote, limit=_MAXIMUM_SMALL, what="quote")
        evidence = replace(evidence, quote=_attest(octets))
    if signature is not None:
        octets = read_file(signature, limit=_MAXIMUM_SMALL, what="signature")
        evidence = replace(evidence, signature=octets)
    if attestation_key is not None:
        octets = read_file(attestation_key, limit=_MAXIMUM_SMALL, what="attestation key")
        evidence = replace(evidence, attestation_key=_public(octets))
    if ima_list is not None:
        octets = read_file(ima_list, limit=_MAXIMUM_IMA_LIST, what="IMA list")
        evidence = replace(evidence, ima_list=octets)
    if userspace_log is not None:
        octets = read_file(userspace_log, limit=_MAXIMUM_BUNDLE, what="userspace log")
        evidence = replace(evidence, userspace_log=octets)
    return evidence


def _attest(octets: bytes) -> bytes:
    """The TPMS_ATTEST, which some tools write with its length before it (TPM2B_ATTEST)."""
    is_sized = octets[2:6] == _GENERATED and int.from_bytes(octets[:2], "big") == len(octets) - 2
    return octets[2:] if is_sized else octets


def _public(octets: bytes) -> bytes:
    """The TPM2B_PUBLIC, which some tools write without its length (TPMT_PUBLIC)."""
    if octets.lstrip().startswith(b"-----BEGIN"):
        raise MalformedError(
            "attestation key: a PEM file does not tell whether its key signs for a TPM alone",
            hint="give the key's TPM2B_PUBLIC, as `tpm2_readpublic -c KEY -o FILE` writes it",
        )
    return octets if int.from_bytes(octets[:2], "big") == len(octets) - 2 else sized(octets[:0xFFFF])


def _from_bundle(content: bytes) -> BootEvidence:
    try:
        bundle = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"event log: begins like JSON and is none ({error})") from None
    if not isinstance(bundle, dict):
        raise MalformedError("bundle: no JSON object")
    if isinstance(bundle.get("Log"), dict):
        return _go_attestation(bundle)
    logs = bundle.get("event_logs")
    if not isinstance(logs, list) or len(logs) != 1:
        raise MalformedError("bundle: `event_logs` is no list of one event log")
    banks = bundle.get("pcrs")
    key = bundle.get("attestation_key")
    return BootEvidence(
        log=_octets(logs[0], "event_logs"),
        values=pcr_values_of(banks) if isinstance(banks, dict) else None,
        quote=_attest(_octets(bundle["quote"], "quote")) if "quote" in bundle else None,
        signature=_octets(bundle["signature"], "signature") if "signature" in bundle else None,
        attestation_key=None if key is None else _public(_octets(key, "attestation_key")),
    )


def _go_attestation(bundle: dict[str, Any]) -> BootEvidence:
    log, quote, key = bundle["Log"], bundle.get("Quote"), bundle.get("AK")
    values: PcrValues = {}
    pcrs = log.get("PCRs") or []
    if not isinstance(pcrs, list):
        raise MalformedError("bundle: `PCRs` is no list")
    for entry in pcrs:
        if not isinstance(entry, dict) or not isinstance(entry.get("Index"), int):
            raise MalformedError("bundle: `PCRs` has what is no PCR value")
        digest = _octets(entry.get("Digest"), "PCRs")
        if len(digest) in _BY_SIZE and 0 <= entry["Index"] < 24:
            values.setdefault(_BY_SIZE[len(digest)], {})[entry["Index"]] = digest
    evidence = BootEvidence(log=_octets(log.get("Raw"), "Log.Raw"), values=values or None)
    if isinstance(quote, dict):
        evidence = replace(
            evidence,
            quote=_attest(_octets(quote.get("Quote"), "Quote")),
            signature=_octets(quote.get("Signature"), "Signature"),
        )
    if isinstance(key, dict):
        evidence = replace(evidence, attestation_key=_public(_octets(key.get("Public"), "AK.Public")))
    return evidence


def _octets(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise MalformedError(f"bundle: {where} is not text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(f"bundle: {where} is not base64") from None
