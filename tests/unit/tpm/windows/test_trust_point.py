"""Quotes that Windows keeps in its log, and banks that it caps: made here, so that they can be bent."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import AttestationKey, verify_attestation_key
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.octets import sized
from affiant.tpm.pcr_selection import PcrSelection, encode_pcr_selections
from affiant.tpm.windows.bank_capping import BankState, compare_capped_bank
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS, read_windows_boot
from affiant.tpm.windows.sipa import Sipa
from affiant.tpm.windows.trust_point import VerifiedTrustPoint, read_trust_points, verify_trust_point
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.windows.machine import OTHER_KEY, PRIVATE_KEY, Machine, position, sipa, text

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
ATTRIBUTES = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign


def public(key: rsa.RSAPrivateKey) -> bytes:
    """The TPM2B_PUBLIC of an RSA attestation key with RSASSA-SHA256."""
    modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHIHHHHHI", 1, 0x0B, ATTRIBUTES, 0, 0x10, 0x14, 0x0B, 2048, 0)
    return sized(head + sized(modulus))


def attestation_key(key: rsa.RSAPrivateKey = PRIVATE_KEY) -> AttestationKey:
    return verify_attestation_key(public(key))


def certification() -> bytes:
    head = struct.pack(">IH", 0xFF544347, 0x8017) + sized(b"signer") + sized(b"")
    return head + struct.pack(">QIIBQ", 1, 1, 0, 1, 1) + sized(b"name") + sized(b"qualified")


def attest(pcrs: dict[int, bytes]) -> bytes:
    digest = SHA256.digest(b"".join(pcrs[pcr] for pcr in sorted(pcrs)))
    body = encode_pcr_selections([PcrSelection(SHA256, tuple(sorted(pcrs)))]) + sized(digest)
    head = struct.pack(">IH", 0xFF544347, 0x8018) + sized(b"signer") + sized(bytes(20))
    return head + struct.pack(">QIIBQ", 4242, 6, 0, 1, 0x2026) + body


def with_trust_point(
    machine: Machine, *, quote: bytes | None = None, key: rsa.RSAPrivateKey = PRIVATE_KEY
) -> Firmware:
    """What the machine's log holds after Windows quoted itself."""
    firmware = machine.firmware()
    quote = attest({pcr: firmware.pcrs()[pcr] for pcr in WINDOWS_BOOT_PCRS}) if quote is None else quote
    modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
    parts = [
        sipa(Sipa.AIK_ID, text("key")),
        sipa(Sipa.AIK_PUBLIC_DIGEST, hashlib.sha1(modulus).digest()),
        sipa(Sipa.QUOTE, quote),
        sipa(Sipa.QUOTE_SIGNATURE, key.sign(quote, padding.PKCS1v15(), hashes.SHA256())),
    ]
    inner = sipa(Sipa.TRUST_POINT_AGGREGATION, b"".join(parts))
    firmware.add(0xFFFFFFFF, EventType.NO_ACTION, sipa(Sipa.TRUST_POINT_AGGREGATION, inner), b"")
    return firmware


def parsed(firmware: Firmware) -> EventLog:
    return parse_event_log(firmware.log())


def verify(
    log: EventLog, *, key: AttestationKey | None = None, bank: HashAlgorithm = SHA256
) -> VerifiedTrustPoint:
    (point,) = read_trust_points(log)
    return verify_trust_point(log, point, attestation_key=key or attestation_key(), bank=bank)


def test_a_kept_log_is_verified_by_its_own_quote() -> None:
    verified = verify(parsed(with_trust_point(Machine())))
    assert verified.quote.clock_info.reset_count == 6
    assert read_windows_boot(verified.log).claim("vbs_enabled") is True


def test_events_after_the_trust_point_are_not_in_its_log() -> None:
    firmware = with_trust_point(Machine())
    firmware.add(12, EventType.EVENT_TAG, b"later")
    verified = verify(parsed(firmware))
    assert all(event.untrusted_data != b"later" for event in verified.log.events)


def test_a_log_with_another_past_is_refused() -> None:
    happened = with_trust_point(Machine())
    told = with_trust_point(Machine(boot_counter=9), quote=b"")
    told.entries[-1] = happened.entries[-1]
    with pytest.raises(ForgedError, match="PCR values"):
        verify(parsed(told))


def test_a_left_out_event_is_refused() -> None:
    firmware = with_trust_point(Machine())
    del firmware.entries[position(firmware, 13)]
    with pytest.raises(ForgedError, match="PCR values"):
        verify(parsed(firmware))


def test_another_key_than_the_callers_is_refused() -> None:
    with pytest.raises(ForgedError, match="another key"):
        verify(parsed(with_trust_point(Machine(), key=OTHER_KEY)))
    with pytest.raises(ForgedError, match="not RSA"):
        verify(parsed(with_trust_point(Machine())), key=Attester().attestation_key)


def test_a_signature_by_another_key_is_refused() -> None:
    log = parsed(with_trust_point(Machine()))
    (point,) = read_trust_points(log)
    (other,) = read_trust_points(parsed(with_trust_point(Machine(), key=OTHER_KEY)))
    forged = replace(point, signature=other.signature)
    with pytest.raises(ForgedError, match="signature"):
        verify_trust_point(log, forged, attestation_key=attestation_key(), bank=SHA256)
    with pytest.raises(EvidenceError):
        verify_trust_point(
            log, replace(point, signature=bytes(70000)), attestation_key=attestation_key(), bank=SHA256
        )


def test_a_certification_is_no_quote() -> None:
    with pytest.raises(ForgedError, match="certification"):
        verify(parsed(with_trust_point(Machine(), quote=certification())))


def test_a_bank_that_was_not_quoted_is_refused() -> None:
    with pytest.raises(ForgedError, match="no sha1 bank"):
        verify(parsed(with_trust_point(Machine())), bank=SHA1)
    with pytest.raises(ForgedError, match="no sha256 bank"):
        verify(parsed(with_trust_point(Machine(), quote=attest({}))))


def test_a_log_without_trust_points_has_none() -> None:
    assert read_trust_points(parsed(Machine().firmware())) == ()


def trust_point_log(data: bytes, count: int = 1) -> EventLog:
    firmware = Machine().firmware()
    for _ in range(count):
        firmware.add(0xFFFFFFFF, EventType.NO_ACTION, data, b"")
    return parsed(firmware)


QUOTE_ONLY = sipa(Sipa.TRUST_POINT_AGGREGATION, sipa(Sipa.QUOTE, b"quote"))


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        QUOTE_ONLY,
        sipa(Sipa.TRUST_POINT_AGGREGATION, sipa(Sipa.QUOTE, b"") * 2),
        sipa(
            Sipa.TRUST_POINT_AGGREGATION,
            sipa(Sipa.AIK_ID, bytes(600))
            + sipa(Sipa.AIK_PUBLIC_DIGEST, b"")
            + sipa(Sipa.QUOTE, b"")
            + sipa(Sipa.QUOTE_SIGNATURE, b""),
        ),
    ],
)
def test_a_trust_point_that_lacks_a_part_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read_trust_points(trust_point_log(data))


def test_trust_points_have_a_bound() -> None:
    entry = with_trust_point(Machine()).entries[-1]
    assert len(read_trust_points(trust_point_log(entry.data, 64))) == 64
    with pytest.raises(MalformedError, match="65 trust points"):
        read_trust_points(trust_point_log(entry.data, 65))


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_trust_points_are_evidence_at_most(data: bytes, wrapped: bool) -> None:
    payload = sipa(Sipa.TRUST_POINT_AGGREGATION, data) if wrapped else data
    with contextlib.suppress(EvidenceError):
        read_trust_points(trust_point_log(payload))
    log = parsed(with_trust_point(Machine(), quote=data))
    with pytest.raises(EvidenceError):
        verify(log)


# Banks that Windows does not measure into


def extend(bank: HashAlgorithm, value: bytes, digest: bytes) -> bytes:
    return bank.digest(value + digest)


def windows_measured_in_sha256() -> tuple[EventLog, dict[int, bytes]]:
    """A log whose Windows events have no SHA-1 digest, and what a capped SHA-1 bank then holds."""
    log = parsed(Machine().firmware())
    values = {pcr: bytes(20) for pcr in range(16)}
    events = []
    for event in log.events:
        if event.pcr < 11:
            if event.type != EventType.NO_ACTION:
                values[event.pcr] = extend(SHA1, values[event.pcr], event.digests[SHA1])
            events.append(event)
        else:
            events.append(replace(event, digests={int(SHA256): event.digests[SHA256]}))
    for pcr in (*range(14),):
        values[pcr] = extend(SHA1, values[pcr], bytes(20))
    for event in events:
        if event.pcr == 11:
            values[11] = extend(SHA1, values[11], SHA1.digest(event.data))
    return replace(log, events=tuple(events)), values


def test_a_capped_bank_is_told_from_a_filled_one() -> None:
    log, values = windows_measured_in_sha256()
    compared = compare_capped_bank(log, bank=SHA1, pcrs=values)
    assert compared.pcrs(BankState.CAPPED) == {*range(14)}
    assert compared.pcrs(BankState.REPLAYED) == {14, 15}
    for pcr in (0, 11, 12):
        bent = values | {pcr: extend(SHA1, values[pcr], SHA1.digest(b"a better past"))}
        assert compare_capped_bank(log, bank=SHA1, pcrs=bent).pcrs(BankState.DIFFERENT) == {pcr}


def test_an_uncapped_bank_replays() -> None:
    firmware = Machine().firmware()
    compared = compare_capped_bank(parsed(firmware), bank=SHA1, pcrs=firmware.pcrs(SHA1))
    assert compared.pcrs(BankState.REPLAYED) == {*range(16)}


def test_a_value_of_another_size_is_malformed() -> None:
    with pytest.raises(MalformedError, match="PCR 3"):
        compare_capped_bank(parsed(Machine().firmware()), bank=SHA1, pcrs={3: bytes(32)})
