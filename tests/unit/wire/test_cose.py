"""COSE_Sign1: every door that RFC 9052 leaves open is shut."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item, Tagged
from affiant.wire.cose import VerifiedSign1, parse_sign1, sign1, verify_sign1

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TYP = "application/eat+cwt"
PAYLOAD = cbor.encode({1: "hello"})
KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(0x7654321, ec.SECP256R1())
HEADERS: dict[int, Item] = {1: -9, 16: TYP}


def verify(data: bytes, *, typ: str = TYP, external_aad: bytes = b"") -> VerifiedSign1:
    message = parse_sign1(data, name="message", max_size=4096)
    return verify_sign1(message, key=KEY.public_key(), typ=typ, external_aad=external_aad)


def message_of(
    *,
    protected: bytes | None = None,
    unprotected: Item = None,
    payload: Item = PAYLOAD,
    signature: bytes | None = None,
    context: str = "Signature1",
    tag: int | None = 18,
) -> bytes:
    """Make a message by hand whose signature covers whatever its parts are."""
    protected = cbor.encode(HEADERS) if protected is None else protected
    if signature is None:
        r, s = decode_dss_signature(
            KEY.sign(cbor.encode([context, protected, b"", payload]), ec.ECDSA(SHA256()))
        )
        signature = r.to_bytes(32, "big") + min(s, _ORDER - s).to_bytes(32, "big")
    parts: Item = [protected, {} if unprotected is None else unprotected, payload, signature]
    return cbor.encode(parts if tag is None else Tagged(tag, parts))


def test_a_message_made_by_hand_is_accepted() -> None:
    """So that the refusals below are for the one thing bent."""
    assert verify(message_of()).payload == PAYLOAD


def test_messages_round_trip() -> None:
    data = sign1(PAYLOAD, key=KEY, typ=TYP, external_aad=b"aad", certificates=[b"leaf", b"ca"])
    verified = verify(data, external_aad=b"aad")
    assert verified.payload == PAYLOAD
    assert verified.certificates == (b"leaf", b"ca")


def test_a_function_may_sign() -> None:
    data = sign1(PAYLOAD, key=lambda tbs: KEY.sign(tbs, ec.ECDSA(SHA256())), typ=TYP)
    assert verify(data).payload == PAYLOAD


def test_every_signature_made_is_low_s() -> None:
    for _ in range(16):
        signature = parse_sign1(sign1(PAYLOAD, key=KEY, typ=TYP), name="message", max_size=4096).signature
        assert int.from_bytes(signature[32:], "big") <= _ORDER // 2


def test_another_signer_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(sign1(PAYLOAD, key=OTHER_KEY, typ=TYP))


def test_another_type_is_refused() -> None:
    with pytest.raises(ForgedError, match="type"):
        verify(sign1(PAYLOAD, key=KEY, typ="application/cwt"))


def test_other_external_data_is_refused() -> None:
    data = sign1(PAYLOAD, key=KEY, typ=TYP, external_aad=b"affiant/1/evidence")
    with pytest.raises(ForgedError, match="signature"):
        verify(data)


def test_the_high_s_twin_of_a_signature_is_refused() -> None:
    good = parse_sign1(message_of(), name="message", max_size=4096).signature
    s = _ORDER - int.from_bytes(good[32:], "big")
    with pytest.raises(MalformedError, match="lower"):
        verify(message_of(signature=good[:32] + s.to_bytes(32, "big")))


@pytest.mark.parametrize(
    "signature",
    [
        bytes(64),
        b"\xff" * 32 + b"\x01" * 32,
        _ORDER.to_bytes(32, "big") + b"\x01" * 32,
        b"",
        bytes(63),
        bytes(65),
    ],
)
def test_signatures_out_of_range_are_refused(signature: bytes) -> None:
    with pytest.raises(MalformedError, match="signature"):
        verify(message_of(signature=signature))


@pytest.mark.parametrize(
    "headers",
    [
        {1: -7, 16: TYP},  # ES256, the deprecated number
        {1: -35, 16: TYP},  # ES384
        {1: 5, 16: TYP},  # HMAC 256
        {1: "ESP256", 16: TYP},
        {1: -9},  # no type
        {16: TYP},  # no algorithm
        {1: -9, 16: 61},  # the type as a CoAP number
        {1: -9, 16: ""},
        {1: -9, 2: [16], 16: TYP},  # crit
        {1: -9, 2: [-70001], 16: TYP, -70001: 1},  # crit with an unknown header
        {1: -9, 4: b"kid", 16: TYP},
        {1: -9, 16: TYP, 32: b"bag"},
        {1: -9, 16: TYP, 35: "http://x.test/chain"},  # x5u
        {1: -9, 16: TYP, 33: []},
        {1: -9, 16: TYP, 33: [b"one certificate in an array"]},
        {1: -9, 16: TYP, 33: [b"a", b"b", b"c", b"d", b"e"]},
        {1: -9, 16: TYP, 33: [b"a", "b"]},
        {1: -9, 16: TYP, 33: b""},
        {1: -9, 16: TYP, 33: bytes(9000)},
        {1: -9, 16: TYP, "x": 1},
        [1, -9],
        None,
    ],
)
def test_other_protected_headers_are_refused(headers: Item) -> None:
    with pytest.raises(MalformedError, match="protected header"):
        parse_sign1(message_of(protected=cbor.encode(headers)), name="message", max_size=20000)


@pytest.mark.parametrize(
    "protected",
    [
        b"",
        bytes.fromhex("a1"),
        bytes.fromhex("a0"),
        cbor.encode(HEADERS) + b"\x00",  # bytes after the map
        bytes.fromhex("a2 01 28 01 28"),  # the algorithm twice
        bytes.fromhex("a1 18 01 28"),  # a key not in its shortest form
        bytes.fromhex("bf 01 28 ff"),  # indefinite
    ],
)
def test_protected_headers_have_one_encoding(protected: bytes) -> None:
    with pytest.raises(MalformedError, match="protected header"):
        verify(message_of(protected=protected))


@pytest.mark.parametrize("unprotected", [{1: -9}, {4: b"kid"}, {33: b"cert"}, [], 0, b""])
def test_anything_unprotected_is_refused(unprotected: Item) -> None:
    with pytest.raises(MalformedError, match="unprotected"):
        verify(message_of(unprotected=unprotected))


@pytest.mark.parametrize("payload", [None, "text", 1, [PAYLOAD], {}])
def test_a_payload_that_is_not_bytes_is_refused(payload: Item) -> None:
    with pytest.raises(MalformedError, match="payload"):
        verify(message_of(payload=payload))


@pytest.mark.parametrize("tag", [None, 17, 61, 96, 98])
def test_other_tags_are_refused(tag: int | None) -> None:
    """Tag 98 is COSE_Sign: several signers where one is expected."""
    with pytest.raises(MalformedError):
        verify(message_of(tag=tag))


def test_the_tag_must_not_be_nested() -> None:
    inner = cbor.decode(message_of(), max_size=4096, tags=(18,))
    with pytest.raises(MalformedError, match="not an array"):
        verify(cbor.encode(Tagged(18, inner)))


def test_a_signature_over_another_context_is_refused() -> None:
    """A COSE_Sign or a countersignature by the same key is no COSE_Sign1."""
    for context in ("Signature", "CounterSignature"):
        with pytest.raises(ForgedError):
            verify(message_of(context=context))


def test_parts_too_few_or_too_many_are_refused() -> None:
    parts = [cbor.encode(HEADERS), {}, PAYLOAD]
    for wrong in ([*parts], [*parts, bytes(64), b""]):
        with pytest.raises(MalformedError, match="elements"):
            verify(cbor.encode(Tagged(18, wrong)))


def test_trailing_bytes_and_oversize_are_refused() -> None:
    with pytest.raises(MalformedError, match="after the end"):
        verify(message_of() + b"\x00")
    with pytest.raises(MalformedError, match="at most 4096"):
        verify(sign1(bytes(5000), key=KEY, typ=TYP))


def test_no_flipped_bit_and_no_truncation_is_accepted() -> None:
    data = message_of()
    for bit in range(len(data) * 8):
        bent = bytearray(data)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EvidenceError):
            verify(bytes(bent))
    for end in range(len(data)):
        with pytest.raises(MalformedError):
            verify(data[:end])


def test_other_curves_and_long_chains_are_misuse() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        sign1(PAYLOAD, key=p384, typ=TYP)
    with pytest.raises(ValueError, match="P-256"):
        verify_sign1(parse_sign1(message_of(), name="m", max_size=4096), key=p384.public_key(), typ=TYP)
    with pytest.raises(ValueError, match="at most 4"):
        sign1(PAYLOAD, key=KEY, typ=TYP, certificates=[b"c"] * 5)
