"""What all signed messages have in common: they round trip, and nothing bent is accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key, Tagged
from affiant.wire.cose import parse_sign1, sign1
from tests.unit.wire import world

MESSAGES = pytest.mark.parametrize("name", sorted(world.SIGNED))
BY_SERVICE = [
    "challenge",
    "credential challenge",
    "heartbeat acknowledgement",
    "session report",
    "session response",
]


def parts_of(name: str) -> tuple[bytes, Callable[[bytes], object], object]:
    return world.SIGNED[name]


@MESSAGES
def test_a_truthful_message_round_trips(name: str) -> None:
    data, verify, value = parts_of(name)
    assert verify(data) == value


@MESSAGES
def test_truncated_messages_are_malformed(name: str) -> None:
    data, verify, _ = parts_of(name)
    for end in range(len(data)):
        with pytest.raises(MalformedError):
            verify(data[:end])


@MESSAGES
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_flipped_bit_is_accepted(name: str) -> None:
    """One bit of each byte, another one in each neighbour."""
    data, verify, _ = parts_of(name)
    for position in range(len(data)):
        bent = bytearray(data)
        bent[position] ^= 1 << position % 8
        with pytest.raises(EvidenceError):
            verify(bytes(bent))


@MESSAGES
def test_bytes_after_a_message_are_refused(name: str) -> None:
    data, verify, _ = parts_of(name)
    with pytest.raises(MalformedError, match="after the end"):
        verify(data + b"\x00")


@MESSAGES
def test_huge_messages_are_refused_before_they_are_parsed(name: str) -> None:
    _, verify, _ = parts_of(name)
    with pytest.raises(MalformedError, match="at most"):
        verify(b"\xff" * (1 << 21))


@MESSAGES
def test_no_message_is_taken_for_another(name: str) -> None:
    """Same keys or not: type, profile and external data keep the messages apart."""
    _, verify, _ = parts_of(name)
    for other, (data, _, _) in world.SIGNED.items():
        if other != name:
            with pytest.raises(EvidenceError):
                verify(data)


def signer_of(name: str) -> tuple[object, bytes, tuple[bytes, ...]]:
    """Return key, external data and chain with which a message of this name is truly signed."""
    chain: tuple[bytes, ...] = ()
    external = b""
    key = world.SERVICE_KEY
    if name in BY_SERVICE:
        chain = (world.der(world.AUTHORITY.service),)
    if name == "credential challenge":
        external = b"affiant/1/credential" + hashlib.sha256(world.REQUEST_BYTES).digest()
    if name == "enclave report":
        key = world.IDENTITY_KEY
    if name == "evidence":
        key, external = world.SESSION_KEY, b"affiant/1/evidence" + world.CHALLENGE.digest
    if name == "runtime report":
        key, chain = world.SESSION_KEY, world.AUTHORITY.session_chain
    return key, external, chain


def resign(name: str, payload: bytes) -> bytes:
    """Return the message with another payload, signed by who truly signs it."""
    data, _, _ = parts_of(name)
    typ = parse_sign1(data, name=name, max_size=1 << 20).typ
    key, external, chain = signer_of(name)
    return sign1(payload, key=key, typ=typ, external_aad=external, certificates=chain)  # type: ignore[arg-type]


def claims_of(name: str) -> dict[Key, Item]:
    data, _, _ = parts_of(name)
    payload = parse_sign1(data, name=name, max_size=1 << 20).payload
    claims = cbor.decode(payload, max_size=1 << 20)
    assert isinstance(claims, dict)
    return claims


def test_resigning_is_faithful() -> None:
    for name, (_, verify, _) in world.SIGNED.items():
        verify(resign(name, cbor.encode(claims_of(name))))


@MESSAGES
def test_each_claim_left_out_is_refused(name: str) -> None:
    """Even by who may sign: no claim of ours has a default, save those that may be unknown."""
    _, verify, _ = parts_of(name)
    optional = {
        "evidence": {"quote", "log.tcg", "reference"},
        "session report": {1004},  # who verified is told for people
        "heartbeat acknowledgement": {5},  # no rules are published
    }
    for key in claims_of(name):
        claims = claims_of(name)
        del claims[key]
        data = resign(name, cbor.encode(claims))
        if key in optional.get(name, set()):
            verify(data)
        else:
            with pytest.raises(MalformedError):
                verify(data)


@MESSAGES
def test_each_claim_of_another_type_is_refused(name: str) -> None:
    _, verify, _ = parts_of(name)
    wrong: list[Item] = [
        None,
        True,
        -1,
        (1 << 64) - 1,
        b"",
        "",
        [],
        {},
        b"x" * 5000,
        "x" * 5000,
        [[[]]],
        {1: {}},
    ]
    for key in claims_of(name):
        if (name, key) == ("session report", 1004):
            continue
        for value in wrong:
            claims = claims_of(name)
            if type(value) is type(claims[key]) and value == claims[key]:
                continue
            claims[key] = value
            with pytest.raises(EvidenceError):
                verify(resign(name, cbor.encode(claims)))


@MESSAGES
def test_unknown_claims_are_refused_in_our_messages_and_ignored_in_an_ear(name: str) -> None:
    _, verify, _ = parts_of(name)
    for key in (99, -70001, "x"):
        claims = claims_of(name)
        claims[key] = 1
        data = resign(name, cbor.encode(claims))
        if name == "session report":
            verify(data)
        else:
            with pytest.raises(MalformedError, match="unknown field"):
                verify(data)


@MESSAGES
def test_payloads_that_are_no_maps_are_refused(name: str) -> None:
    _, verify, _ = parts_of(name)
    for payload in (b"", b"\xff", b"\x80", cbor.encode(claims_of(name)) + b"\x00", b"\xa2\x01\x01\x01\x02"):
        with pytest.raises(MalformedError):
            verify(resign(name, payload))


@MESSAGES
def test_a_stranger_who_signs_is_refused(name: str) -> None:
    data, verify, _ = parts_of(name)
    message = parse_sign1(data, name=name, max_size=1 << 20)
    _, external, chain = signer_of(name)
    forged = sign1(
        message.payload,
        key=world.STRANGER_KEY,
        typ=message.typ,
        external_aad=external,
        certificates=chain,
    )
    with pytest.raises(ForgedError, match="signature"):
        verify(forged)


@pytest.mark.parametrize("name", BY_SERVICE)
def test_a_message_of_another_service_is_refused(name: str) -> None:
    """Same key even, but certified by another root."""
    data, verify, _ = parts_of(name)
    message = parse_sign1(data, name=name, max_size=1 << 20)
    key, external, _ = signer_of(name)
    other = sign1(
        message.payload,
        key=key,  # type: ignore[arg-type]
        typ=message.typ,
        external_aad=external,
        certificates=[world.der(world.OTHER_AUTHORITY.service)],
    )
    with pytest.raises(ForgedError, match="another root"):
        verify(other)


@pytest.mark.parametrize("name", BY_SERVICE)
def test_a_session_key_cannot_speak_for_the_service(name: str) -> None:
    """The session certificate leads to the same root; only its usage is another."""
    data, verify, _ = parts_of(name)
    message = parse_sign1(data, name=name, max_size=1 << 20)
    _, external, _ = signer_of(name)
    for chain in (world.AUTHORITY.session_chain, world.AUTHORITY.session_chain[:1]):
        forged = sign1(
            message.payload, key=world.SESSION_KEY, typ=message.typ, external_aad=external, certificates=chain
        )
        with pytest.raises(ForgedError, match="certificate"):
            verify(forged)


@MESSAGES
def test_an_untagged_message_is_refused(name: str) -> None:
    data, verify, _ = parts_of(name)
    tagged = cbor.decode(data, max_size=1 << 20, tags=(18,))
    assert isinstance(tagged, Tagged)
    with pytest.raises(MalformedError, match="tagged"):
        verify(cbor.encode(tagged.item))
