"""Verifying a quote: which PCR values did this attestation key sign, and in answer to what?

TPM 2.0 Library, Part 3, section 18.4 (TPM2_Quote); Part 1, section 17.5 (digest of selected PCRs).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import Attest, ClockInfo, QuoteInfo, parse_attest
from affiant.tpm.attestation_key import AttestationKey
from affiant.tpm.signature import check_signature, parse_signature

__all__ = ["VerifiedQuote", "verify_quote"]

_NO_OTHER_BANKS: Final[Mapping[HashAlgorithm, Mapping[int, bytes]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """PCR values that an attestation key signed; made by `verify_quote` alone.

    `pcrs` holds the PCRs of `bank` inside the signed selection, and nothing else: what was sent
    beside them is gone. `key_name` is the attestation key's Name. `clock_info` and
    `firmware_version` are the TPM's own words.
    """

    bank: HashAlgorithm
    pcrs: Mapping[int, bytes]
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    qualified_signer: bytes
    key_name: bytes


def verify_quote(
    attest: bytes,
    signature: bytes,
    *,
    attestation_key: AttestationKey,
    expected_extra_data: bytes,
    pcrs: Mapping[int, bytes],
    bank: HashAlgorithm = HashAlgorithm.SHA256,
    other_banks: Mapping[HashAlgorithm, Mapping[int, bytes]] = _NO_OTHER_BANKS,
) -> VerifiedQuote:
    """Verify a TPMS_ATTEST (`attest`) with its TPMT_SIGNATURE against values read beside it.

    `pcrs` are unverified values of `bank`, by index; `other_banks` those of further banks where
    the quote selects some (their values go into the digest and are then dropped).

    When it returns,

    - the signature over `attest` is by `attestation_key`, with the key's own scheme and hash;
    - `attest` is a structure that a TPM made, and it is a quote;
    - its extraData is `expected_extra_data`;
    - its selection includes `bank`;
    - its PCR digest is the digest over the returned values, in the order of the signed selection;
    - the returned value holds PCRs inside the signed selection of `bank` only.

    Not checked: that the attestation key lives in a TPM, that the counters moved as they should,
    that required PCRs are selected. Raises MalformedError or ForgedError.
    """
    parsed = parse_attest(attest)
    parsed_signature = parse_signature(signature)
    scheme = (parsed_signature.algorithm, parsed_signature.hash)
    if scheme != (attestation_key.scheme, attestation_key.hash):
        raise ForgedError(f"quote: signed with {scheme[0].name} and {scheme[1].title}, not the key's scheme")
    check_signature(parsed_signature, attest, key=attestation_key.key, subject="quote")
    if not isinstance(parsed.attested, QuoteInfo):
        raise ForgedError("quote: the signed structure is a certification, not a quote")
    if not hmac.compare_digest(parsed.extra_data, expected_extra_data):
        raise ForgedError("quote: extraData is not the one expected: it answers to something else")
    banks = {**other_banks, bank: pcrs}
    selected = _selected_values(parsed.attested, banks)
    if bank not in selected:
        raise ForgedError(f"quote: the signed selection has no {bank.title} bank")
    _check_digest(parsed.attested, selected, attestation_key.hash)
    return _verified(parsed, bank, selected[bank], attestation_key)


def _selected_values(
    info: QuoteInfo, banks: Mapping[HashAlgorithm, Mapping[int, bytes]]
) -> dict[HashAlgorithm, dict[int, bytes]]:
    """The values named by the signed selection, in its order."""
    selected: dict[HashAlgorithm, dict[int, bytes]] = {}
    for selection in info.selections:
        values = banks.get(selection.bank, {})
        chosen = selected.setdefault(selection.bank, {})
        for pcr in selection.pcrs:
            value = values.get(pcr)
            if value is None:
                raise MalformedError(f"quote: the value of PCR {pcr} ({selection.bank.title}) is missing")
            if len(value) != selection.bank.digest_size:
                raise MalformedError(f"quote: PCR {pcr} ({selection.bank.title}) has {len(value)} octets")
            chosen[pcr] = value
    return selected


def _check_digest(
    info: QuoteInfo, selected: Mapping[HashAlgorithm, Mapping[int, bytes]], algorithm: HashAlgorithm
) -> None:
    # Part 1, section 17.5: the selected values are concatenated, banks in the order of the
    # selection, PCRs ascending, and hashed with the hash of the signing scheme.
    digest = algorithm.digest(b"".join(value for values in selected.values() for value in values.values()))
    if not hmac.compare_digest(digest, info.pcr_digest):
        raise ForgedError("quote: the PCR values are not those whose digest is signed")


def _verified(
    parsed: Attest, bank: HashAlgorithm, pcrs: dict[int, bytes], key: AttestationKey
) -> VerifiedQuote:
    return VerifiedQuote(
        bank=bank,
        pcrs=MappingProxyType(pcrs),
        extra_data=parsed.extra_data,
        clock_info=parsed.clock_info,
        firmware_version=parsed.firmware_version,
        qualified_signer=parsed.qualified_signer,
        key_name=key.name,
    )
