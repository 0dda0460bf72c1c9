"""A seal opens for whom and for what it was made, and its length tells a size class only."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.wire import cbor
from affiant.wire.courier import MAX_BODY
from affiant.wire.envelope import read_envelope, write_envelope
from affiant.wire.seal import MAX_PLAINTEXT, SEALED_SIZES, Direction, open_sealed, seal

KEY = X25519PrivateKey.from_private_bytes(b"\x51" * 32)
RECIPIENT = KEY.public_key().public_bytes_raw()
CHALLENGE = b"\xc4" * 32
INFO = cbor.encode(["affiant/1/hpke/m2s", 1, CHALLENGE])


def make(plaintext: bytes) -> bytes:
    return seal(plaintext, recipient=RECIPIENT, direction=Direction.TO_SERVICE, challenge=CHALLENGE)


def opened(sealed: bytes, *, key: X25519PrivateKey = KEY, challenge: bytes = CHALLENGE) -> bytes:
    return open_sealed(sealed, key=key, direction=Direction.TO_SERVICE, challenge=challenge)


@given(st.binary(max_size=20000))
@settings(max_examples=50)
def test_seals_open_to_their_plaintext(plaintext: bytes) -> None:
    sealed = make(plaintext)
    assert len(sealed) in SEALED_SIZES
    assert opened(sealed) == plaintext


@pytest.mark.parametrize("size", SEALED_SIZES)
def test_the_sizes_are_filled_to_the_last_byte(size: int) -> None:
    fits = size - 32 - 16 - 1
    assert len(make(b"\x80" * fits)) == size
    assert opened(make(bytes(fits))) == bytes(fits)
    if fits < MAX_PLAINTEXT:
        assert len(make(bytes(fits + 1))) > size


def test_a_violation_does_not_change_the_length() -> None:
    assert len(make(b"healthy")) == len(make(b"violated" * 300))


def _expand(secret: bytes, info: bytes, length: int) -> bytes:
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(secret, block + info + bytes([counter]), "sha256")
        output += block
        counter += 1
    return output[:length]


def _seal_by_the_book(padded: bytes, info: bytes) -> bytes:
    """RFC 9180, sections 4, 4.1 and 5.1, base mode, written out with other primitives."""
    kem = b"KEM" + (0x20).to_bytes(2, "big")
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x20, 1, 2))

    def labeled_extract(salt: bytes, label: bytes, ikm: bytes, who: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + who + label + ikm, "sha256")

    def labeled_expand(prk: bytes, label: bytes, info: bytes, length: int, who: bytes) -> bytes:
        return _expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + who + label + info, length)

    ephemeral = X25519PrivateKey.from_private_bytes(b"\x77" * 32)
    enc = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(RECIPIENT))
    eae = labeled_extract(b"", b"eae_prk", shared, kem)
    secret = labeled_expand(eae, b"shared_secret", enc + RECIPIENT, 32, kem)
    context = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"", suite)
    context += labeled_extract(b"", b"info_hash", info, suite)
    secret = labeled_extract(secret, b"secret", b"", suite)
    key = labeled_expand(secret, b"key", context, 32, suite)
    nonce = labeled_expand(secret, b"base_nonce", context, 12, suite)
    return enc + AESGCM(key).encrypt(nonce, padded, b"")


def pad(plaintext: bytes, size: int = SEALED_SIZES[0]) -> bytes:
    return (plaintext + b"\x80").ljust(size - 48, b"\x00")


def test_the_seal_is_hpke_by_the_book() -> None:
    """An implementation from the RFC's sections, not from the library, makes what opens here."""
    assert opened(_seal_by_the_book(pad(b"evidence"), INFO)) == b"evidence"
    assert hashlib.sha256(_seal_by_the_book(pad(b""), INFO)).digest()  # deterministic by its fixed key


def test_another_recipient_direction_or_challenge_does_not_open() -> None:
    sealed = make(b"evidence")
    with pytest.raises(ForgedError, match="seal"):
        opened(sealed, key=X25519PrivateKey.generate())
    with pytest.raises(ForgedError, match="seal"):
        opened(sealed, challenge=b"\xc5" * 32)
    with pytest.raises(ForgedError, match="seal"):
        open_sealed(sealed, key=KEY, direction=Direction.TO_MONITOR, challenge=CHALLENGE)


def test_changed_seals_do_not_open() -> None:
    sealed = make(b"evidence")
    for position in (0, 31, 32, 100, len(sealed) - 17, len(sealed) - 1):
        bent = bytearray(sealed)
        bent[position] ^= 1
        with pytest.raises(EvidenceError):
            opened(bytes(bent))
    with pytest.raises(ForgedError):
        opened(bytes(32) + sealed[32:])  # the all-zero point


@pytest.mark.parametrize("sealed", [b"", bytes(47), bytes(4095), bytes(4097), bytes(2 << 20)])
def test_other_lengths_are_malformed(sealed: bytes) -> None:
    with pytest.raises(MalformedError, match="size"):
        opened(sealed)


@pytest.mark.parametrize(
    "padded",
    [
        bytes(4048),  # no end
        b"evidence".ljust(4048, b"\x00"),
        b"evidence\x81".ljust(4048, b"\x00"),
        pad(b"evidence", SEALED_SIZES[1]),  # a larger size than needed
    ],
)
def test_another_padding_is_malformed(padded: bytes) -> None:
    """Else the sender's choice of padding would be a channel, and one plaintext had many seals."""
    hpke = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    with pytest.raises(MalformedError, match="padding"):
        opened(hpke.encrypt(padded, KEY.public_key(), INFO))


def test_oversize_and_short_challenges_are_misuse() -> None:
    with pytest.raises(ValueError, match="at most"):
        make(bytes(MAX_PLAINTEXT + 1))
    with pytest.raises(ValueError, match="32 bytes"):
        opened(make(b""), challenge=b"")


@pytest.mark.parametrize("recipient", [bytes(32), b"", bytes(31)])
def test_unusable_recipients_are_refused(recipient: bytes) -> None:
    with pytest.raises(MalformedError, match="sealing key"):
        seal(b"", recipient=recipient, direction=Direction.TO_MONITOR, challenge=CHALLENGE)


def test_the_largest_seal_and_its_envelope_fit_a_request() -> None:
    assert len(write_envelope(CHALLENGE, make(bytes(MAX_PLAINTEXT)))) <= MAX_BODY


def test_the_envelope_tells_the_challenge_and_nothing_more() -> None:
    sealed = make(b"evidence")
    assert read_envelope(write_envelope(CHALLENGE, sealed)) == (CHALLENGE, sealed)
    with pytest.raises(MalformedError, match="envelope"):
        read_envelope(CHALLENGE)
    with pytest.raises(ValueError, match="32 bytes"):
        write_envelope(CHALLENGE[:-1], sealed)
