"""A kept record proves who looked when, opens for the operator alone, and stays within its bounds."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.model.errors import EvidenceError, ForgedError, MalformedError, SetupError
from affiant.model.fact_record import FactRecord
from affiant.wire import cbor, fact_record
from affiant.wire.cose import parse_sign1, sign1
from affiant.wire.fact_record import (
    MAX_FACTS,
    MAX_KEPT,
    MAX_PACKED,
    open_kept,
    read_fact_record,
    sign_fact_record,
    verify_fact_record,
    write_kept,
)
from affiant.wire.facts_key import load_private_key, load_public_key, private_pem, public_pem
from affiant.wire.seal import SEALED_SIZES, Direction, seal
from tests.unit.wire.world import (
    AUTHORITY,
    CHALLENGE,
    DEVICE,
    NOW,
    OTHER_AUTHORITY,
    ROOT,
    RUNTIME_REPORT,
    SESSION_KEY,
    SESSION_REPORT,
    SESSION_REPORT_BYTES,
    STRANGER_KEY,
    sign_session,
)

KEY = X25519PrivateKey.from_private_bytes(b"\x0f" * 32)
RECIPIENT = KEY.public_key().public_bytes_raw()
RECORD = FactRecord(
    device=DEVICE,
    taken_at=NOW + 60,
    chain=b"\xc4" * 16,
    sequence=2,
    previous=b"\x9d" * 32,
    rules=RUNTIME_REPORT.rules,
    reference=b"\x4e" * 32,
    facts={
        "modules": {"listed": [{"name": "é", "base": "0xffffffffc0000000"}]},
        "rule.query": {"value": None},
    },
    origins={"modules": "fact 1", "rule.query": "query " + "ab" * 32},
    left_out=("tasks",),
    digest=b"",
)


def sign(record: FactRecord = RECORD, session_report: bytes = SESSION_REPORT_BYTES, key=SESSION_KEY) -> bytes:
    return sign_fact_record(
        record, session_report=session_report, key=key, certificates=AUTHORITY.session_chain
    )


def accept(message: bytes) -> FactRecord:
    return verify_fact_record(read_fact_record(message), root=ROOT).record


def test_a_record_says_what_was_recorded_and_who_vouched_for_the_monitor() -> None:
    message = sign()
    verified = verify_fact_record(read_fact_record(message), root=ROOT)
    assert verified.record == replace(RECORD, digest=parse_sign1(message, name="x", max_size=1 << 20).digest)
    assert verified.session == SESSION_REPORT


def test_a_changed_record_is_refused_wherever_it_was_changed() -> None:
    message = sign()
    for at in range(0, len(message), 7):
        changed = message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        with pytest.raises(EvidenceError):
            accept(changed)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_record_is_refused(length: int) -> None:
    with pytest.raises(MalformedError):
        read_fact_record(sign()[:length])


def test_a_record_of_another_service_s_monitor_is_refused() -> None:
    other = sign_fact_record(
        RECORD,
        session_report=sign_session(SESSION_REPORT, OTHER_AUTHORITY),
        key=SESSION_KEY,
        certificates=OTHER_AUTHORITY.session_chain,
    )
    assert read_fact_record(other).said.facts == RECORD.facts
    with pytest.raises(ForgedError, match="another root"):
        accept(other)


def test_a_record_signed_by_another_key_than_its_certificate_s_is_refused() -> None:
    with pytest.raises(ForgedError):
        read_fact_record(sign(key=STRANGER_KEY))


@pytest.mark.parametrize("taken_at", [NOW - 3600, NOW + 3601])
def test_a_record_from_outside_its_session_is_refused(taken_at: int) -> None:
    """Whoever stole a session key cannot write history with it, before or after its hour."""
    with pytest.raises(ForgedError):
        accept(sign(replace(RECORD, taken_at=taken_at)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"device": b"\x01" + b"\x00" * 16}, "device"),
        ({"session_id": b"\x00" * 16}, "session"),
        ({"session_key_thumbprint": b"\x00" * 32}, "key"),
        ({"issued_at": NOW + 100}, "time"),
    ],
)
def test_a_session_report_of_another_session_does_not_vouch_for_it(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ForgedError, match=f"another {what}"):
        accept(sign(session_report=sign_session(replace(SESSION_REPORT, **change))))


def resigned(**changes: Any) -> bytes:
    """Sign a payload whose own claim was changed, as a monitor that was taken over could."""
    payload = cbor.decode(parse_sign1(sign(), name="x", max_size=1 << 20).payload, max_size=1 << 20, name="x")
    assert isinstance(payload, dict)
    ours = payload[fact_record._AFFIANT]
    assert isinstance(ours, dict)
    for name, value in changes.items():
        ours[getattr(fact_record, name)] = value
    return sign1(
        cbor.encode(payload), key=SESSION_KEY, typ="application/eat+cwt", certificates=AUTHORITY.session_chain
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_FACTS": zlib.compress(b" " * (MAX_FACTS + 1))}, "more than"),
        ({"_FACTS": b"no zlib"}, "cannot be unpacked"),
        ({"_FACTS": zlib.compress(b"{}")[:-2]}, "cut off"),
        ({"_FACTS": zlib.compress(b"{}") + b"x"}, "cut off"),
        ({"_FACTS": zlib.compress(b"[" * 100_000)}, "no JSON"),
        ({"_FACTS": zlib.compress(b"[]")}, "no JSON object"),
        ({"_FACTS": zlib.compress(b"\xff")}, "no JSON"),
        ({"_FACTS": zlib.compress(b"{}")}, "not those of its facts"),
        ({"_ORIGINS": {"modules": 1, "rule.query": "x"}}, "no text"),
        ({"_ORIGINS": {"modules": "x" * 200, "rule.query": "x"}}, "no text"),
        ({"_SEQUENCE": 1}, "first record"),
        ({"_PREVIOUS": bytes(32)}, "first record"),
        ({"_CHAIN": b"short"}, "chain"),
        ({"_LEFT_OUT": [1]}, "left out"),
        ({"_RULES": ["name", 1]}, "rules"),
    ],
)
def test_what_is_no_record_is_refused_although_it_is_signed(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedError, match=complaint):
        read_fact_record(resigned(**changes))


def test_a_time_that_no_calendar_tells_is_refused() -> None:
    with pytest.raises(ValueError, match="time"):
        sign(replace(RECORD, taken_at=253_402_300_800))
    late = read_fact_record(sign(replace(RECORD, taken_at=253_402_300_799)))
    with pytest.raises(ForgedError):
        verify_fact_record(late, root=ROOT)


def test_a_writer_does_not_make_what_no_reader_takes() -> None:
    with pytest.raises(ValueError, match="origins"):
        sign(replace(RECORD, origins={}))
    incompressible = random.Random(1).randbytes(MAX_PACKED).hex()  # half a byte a digit, and zlib knows
    with pytest.raises(ValueError, match="bytes"):
        sign(replace(RECORD, facts={"modules": incompressible}, origins={"modules": "fact 1"}))
    assert MAX_PACKED < MAX_KEPT


# Sealed to the operator.


def test_a_sealed_record_opens_with_the_operators_key_alone() -> None:
    message = sign()
    kept = write_kept(message, recipient=RECIPIENT, challenge=CHALLENGE.digest)
    assert b"modules" not in kept
    assert len(kept) <= MAX_KEPT
    assert open_kept(kept, key=KEY) == message
    with pytest.raises(ForgedError, match="does not open"):
        open_kept(kept, key=X25519PrivateKey.generate())
    with pytest.raises(SetupError, match="sealed") as caught:
        open_kept(kept, key=None)
    assert "--key" in caught.value.hint


def test_a_seal_for_the_service_is_not_one_for_the_operator() -> None:
    sealed = seal(sign(), recipient=RECIPIENT, direction=Direction.TO_SERVICE, challenge=CHALLENGE.digest)
    with pytest.raises(ForgedError):
        open_kept(cbor.encode([1, CHALLENGE.digest, sealed]), key=KEY)


def test_a_record_in_the_clear_needs_no_key() -> None:
    kept = write_kept(sign(), recipient=None, challenge=CHALLENGE.digest)
    assert open_kept(kept, key=None) == open_kept(kept, key=KEY) == sign_again(kept)


def sign_again(kept: bytes) -> bytes:
    parts = cbor.decode(kept, max_size=MAX_KEPT, name="x")
    assert isinstance(parts, list)
    assert isinstance(parts[1], bytes)
    return parts[1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        cbor.encode([]),
        cbor.encode([2, b""]),
        cbor.encode([0, b"", b""]),
        cbor.encode([0, "text"]),
        cbor.encode([1, b"short", b""]),
        cbor.encode([1, bytes(32), b"", b""]),
        cbor.encode([1, bytes(32), bytes(SEALED_SIZES[0] - 1)]),
        cbor.encode([0, bytes(MAX_KEPT)]),
    ],
    ids=range(10),
)
def test_what_is_no_kept_record_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        open_kept(data, key=KEY)


def test_keys_are_the_pem_files_that_openssl_reads() -> None:
    assert load_private_key(private_pem(KEY)).private_bytes_raw() == KEY.private_bytes_raw()
    assert load_public_key(public_pem(KEY.public_key())) == RECIPIENT
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(MalformedError, match="not for X25519"):
        load_public_key(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(MalformedError, match="no private key"):
        load_private_key(public_pem(KEY.public_key()))
    with pytest.raises(MalformedError, match="no public key"):
        load_public_key(b"")
