"""Quotes: what `verify_quote` promises, and each way to break it."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import CertifyInfo, QuoteInfo, parse_attest
from affiant.tpm.octets import sized
from affiant.tpm.quote import VerifiedQuote, verify_quote
from affiant.tpm.signature import parse_signature
from tests.unit.tpm.attester import EXTRA, Attester

PCRS = {pcr: bytes([pcr]) * 32 for pcr in range(24)}
SELECTED = (0, 7, 17)
ATTESTER = Attester()
ATTEST = ATTESTER.attest(PCRS, selected=SELECTED)
SIGNATURE = ATTESTER.sign(ATTEST)


def verify(
    attest: bytes = ATTEST,
    signature: bytes = SIGNATURE,
    *,
    attester: Attester = ATTESTER,
    extra: bytes = EXTRA,
    pcrs: dict[int, bytes] = PCRS,
    bank: HashAlgorithm = HashAlgorithm.SHA256,
) -> VerifiedQuote:
    return verify_quote(
        attest,
        signature,
        attestation_key=attester.attestation_key,
        expected_extra_data=extra,
        pcrs=pcrs,
        bank=bank,
    )


def test_a_quote_gives_the_signed_selection_and_nothing_else() -> None:
    quote = verify()
    assert dict(quote.pcrs) == {pcr: PCRS[pcr] for pcr in SELECTED}
    assert (quote.clock_info.clock, quote.clock_info.reset_count, quote.clock_info.restart_count) == (
        4242,
        7,
        1,
    )
    assert quote.clock_info.safe
    assert quote.firmware_version == 0x2026
    assert quote.key_name == ATTESTER.attestation_key.name
    with pytest.raises(TypeError):
        quote.pcrs[0] = bytes(32)  # type: ignore[index]


def test_any_flipped_bit_is_refused() -> None:
    for encoding, other in ((ATTEST, SIGNATURE), (SIGNATURE, ATTEST)):
        for position in range(len(encoding)):
            bent = bytearray(encoding)
            bent[position] ^= 0x01
            pair = (bytes(bent), other) if other is SIGNATURE else (other, bytes(bent))
            with pytest.raises(EvidenceError):
                verify(*pair)


def test_another_key_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(attester=Attester())


def test_a_quote_for_another_challenge_is_refused() -> None:
    with pytest.raises(ForgedError, match="extraData"):
        verify(extra=bytes(32))


def test_a_value_that_was_not_quoted_is_refused() -> None:
    with pytest.raises(ForgedError, match="PCR values"):
        verify(pcrs=PCRS | {7: bytes(32)})


def test_a_pcr_outside_the_selection_does_not_count() -> None:
    assert 8 not in verify(pcrs=PCRS | {8: b"x" * 32}).pcrs


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(MalformedError, match="PCR 17"):
        verify(pcrs={0: PCRS[0], 7: PCRS[7]})


@pytest.mark.parametrize("value", [b"", bytes(20), bytes(64)])
def test_a_value_of_another_size_is_refused(value: bytes) -> None:
    """Otherwise octets could move from one PCR to its neighbour under the same digest."""
    with pytest.raises(MalformedError, match="PCR 7"):
        verify(pcrs=PCRS | {7: value})


def test_another_bank_is_refused() -> None:
    with pytest.raises(ForgedError, match="sha384"):
        verify_quote(
            ATTEST,
            SIGNATURE,
            attestation_key=ATTESTER.attestation_key,
            expected_extra_data=EXTRA,
            pcrs={pcr: bytes(48) for pcr in PCRS},
            bank=HashAlgorithm.SHA384,
            other_banks={HashAlgorithm.SHA256: PCRS},
        )


def test_a_relabelled_bank_is_refused() -> None:
    attest = ATTEST.replace(b"\0\x0b\x03", b"\0\x04\x03")
    with pytest.raises(EvidenceError):
        verify(attest, ATTESTER.sign(attest), bank=HashAlgorithm.SHA1)


@pytest.mark.parametrize(
    ("attest", "reason"),
    [
        (ATTESTER.attest(PCRS, magic=0xFF544348), "TPM_GENERATED"),
        (ATTESTER.attest(PCRS, kind=0x8014), "neither quote nor certify"),
        (ATTEST + b"\0", "after its end"),
        (ATTEST[:-1], "ends early"),
        (ATTESTER.attest(PCRS, tail=struct.pack(">I", 17)), "17 banks"),
        (ATTESTER.attest(PCRS, tail=struct.pack(">I", 2) + b"\0\x0b\x03\0\0\0" * 2 + sized(b"")), "twice"),
        (ATTESTER.attest(PCRS, tail=struct.pack(">IHB", 1, 11, 5) + bytes(5) + sized(b"")), "bitmap"),
        (ATTESTER.attest(PCRS, tail=struct.pack(">IHB", 1, 0x9999, 3) + bytes(5)), "hash algorithm"),
    ],
)
def test_what_no_tpm_makes_is_malformed_even_when_signed(attest: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        verify(attest, ATTESTER.sign(attest))


def test_a_certification_is_not_a_quote() -> None:
    name = sized(b"\0\x0b" + bytes(32))
    attest = ATTESTER.attest(PCRS, kind=0x8017, tail=name + name)
    assert isinstance(parse_attest(attest).attested, CertifyInfo)
    with pytest.raises(ForgedError, match="certification"):
        verify(attest, ATTESTER.sign(attest))


def test_another_scheme_than_the_keys_is_refused() -> None:
    with pytest.raises(ForgedError, match="scheme"):
        verify(signature=SIGNATURE[:2] + b"\0\x0c" + SIGNATURE[4:])
    rsa = struct.pack(">HH", 0x14, 0x0B) + sized(bytes(256))
    with pytest.raises(ForgedError, match="scheme"):
        verify(signature=rsa)


@pytest.mark.parametrize(
    "signature", [b"", SIGNATURE[:-1], SIGNATURE + b"\0", b"\0\x1a" + SIGNATURE[2:], bytes(2000)]
)
def test_a_malformed_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(MalformedError):
        verify(signature=signature)


def test_zero_signatures_are_refused() -> None:
    with pytest.raises(ForgedError):
        verify(signature=SIGNATURE[:4] + sized(b"") + sized(b""))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_evidence_at_most(data: bytes) -> None:
    for read in (parse_attest, parse_signature):
        with contextlib.suppress(EvidenceError):
            read(data)


@given(st.integers(0, len(ATTEST) - 1), st.binary(max_size=6))
def test_spliced_bytes_are_evidence_at_most(position: int, splice: bytes) -> None:
    bent = ATTEST[:position] + splice + ATTEST[position + len(splice) :]
    try:
        attested = parse_attest(bent).attested
    except EvidenceError:
        return
    assert isinstance(attested, QuoteInfo | CertifyInfo)
