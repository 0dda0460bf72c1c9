"""Which public areas may be attestation keys, and what a public area is at all."""

from __future__ import annotations

import contextlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import Algorithm, HashAlgorithm
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.octets import sized
from affiant.tpm.public_area import ObjectAttributes, parse_public
from tests.unit.tpm.attester import Attester

PUBLIC = Attester().public
AREA = PUBLIC[2:]
ATTRIBUTES = int.from_bytes(AREA[4:8], "big")
RSA_NUMBERS = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
SMALL_NUMBERS = rsa.generate_private_key(65537, 1024).public_key().public_numbers()


def rsa_public(
    numbers: rsa.RSAPublicNumbers = RSA_NUMBERS,
    *,
    attributes: int = ATTRIBUTES,
    scheme: bytes = struct.pack(">HH", Algorithm.RSASSA, 11),
    name: int = 11,
) -> bytes:
    modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
    area = struct.pack(">HHI", 1, name, attributes) + sized(b"") + struct.pack(">H", 0x10) + scheme
    return sized(area + struct.pack(">HI", 8 * len(modulus), 0) + sized(modulus))


def with_attributes(attributes: int) -> bytes:
    return sized(AREA[:4] + attributes.to_bytes(4, "big") + AREA[8:])


def test_a_restricted_signing_key_is_accepted() -> None:
    key = verify_attestation_key(PUBLIC)
    assert key.name == b"\0\x0b" + HashAlgorithm.SHA256.digest(AREA)
    assert key.public.to_tpm2b() == PUBLIC
    assert (key.scheme, key.hash) == (Algorithm.ECDSA, HashAlgorithm.SHA256)


def test_rsa_keys_are_accepted_with_both_schemes() -> None:
    for scheme in (Algorithm.RSASSA, Algorithm.RSAPSS):
        key = verify_attestation_key(rsa_public(scheme=struct.pack(">HH", scheme, 11)))
        assert key.scheme is scheme
        assert isinstance(key.key, rsa.RSAPublicKey)
        assert key.key.public_numbers() == RSA_NUMBERS


@pytest.mark.parametrize(
    ("missing", "spelling"),
    [
        (ObjectAttributes.FIXED_TPM, "fixedTPM"),
        (ObjectAttributes.FIXED_PARENT, "fixedParent"),
        (ObjectAttributes.SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (ObjectAttributes.RESTRICTED, "restricted"),
        (ObjectAttributes.SIGN, "sign"),
    ],
)
def test_a_key_without_an_attribute_is_refused(missing: ObjectAttributes, spelling: str) -> None:
    with pytest.raises(ForgedError, match=spelling):
        verify_attestation_key(with_attributes(ATTRIBUTES & ~missing))


def test_a_decrypting_key_is_refused() -> None:
    with pytest.raises(ForgedError, match="decrypt"):
        verify_attestation_key(with_attributes(ATTRIBUTES | ObjectAttributes.DECRYPT))


def test_a_parent_is_refused() -> None:
    aes = struct.pack(">HHH", Algorithm.AES, 128, Algorithm.CFB)
    position = 8 + 2
    with pytest.raises(ForgedError, match="symmetric"):
        verify_attestation_key(sized(AREA[:position] + aes + AREA[position + 2 :]))


def test_a_key_without_a_scheme_is_refused() -> None:
    with pytest.raises(ForgedError, match="scheme"):
        verify_attestation_key(rsa_public(scheme=struct.pack(">H", Algorithm.NULL)))
    with pytest.raises(ForgedError, match="scheme"):
        verify_attestation_key(rsa_public(scheme=struct.pack(">H", Algorithm.RSAES)))
    with pytest.raises(ForgedError, match="scheme"):
        verify_attestation_key(rsa_public(scheme=struct.pack(">HH", Algorithm.ECDSA, 11)))


def test_a_short_rsa_key_is_refused() -> None:
    with pytest.raises(ForgedError, match="1024"):
        verify_attestation_key(rsa_public(SMALL_NUMBERS))


def test_weak_hashes_are_refused_unless_asked_for() -> None:
    weak_scheme = rsa_public(scheme=struct.pack(">HH", Algorithm.RSASSA, 4))
    weak_name = rsa_public(name=4)
    for public in (weak_scheme, weak_name):
        with pytest.raises(ForgedError, match="sha1"):
            verify_attestation_key(public)
        verify_attestation_key(public, allowed_hashes=frozenset({HashAlgorithm.SHA1, HashAlgorithm.SHA256}))


def test_a_point_off_the_curve_is_refused() -> None:
    with pytest.raises(MalformedError, match="not a public key"):
        verify_attestation_key(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]))


@pytest.mark.parametrize(
    "public",
    [
        b"",
        PUBLIC + b"\0",
        PUBLIC[:-1],
        sized(AREA + b"\0"),
        sized(b"\0\x08" + AREA[2:]),  # a keyed hash object
        sized(AREA[:2] + b"\0\x99" + AREA[4:]),
        b"\xff\xff" + AREA,
    ],
)
def test_what_is_no_public_area_is_malformed(public: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_public(public)


def test_a_modulus_of_another_size_than_stated_is_malformed() -> None:
    public = bytearray(rsa_public())
    position = bytes(public).rindex(struct.pack(">HI", 2048, 0))
    public[position : position + 2] = struct.pack(">H", 3072)
    with pytest.raises(MalformedError, match="3072"):
        parse_public(bytes(public))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_evidence_at_most(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        parse_public(sized(data))


@given(st.integers(0, len(PUBLIC) - 1), st.binary(min_size=1, max_size=4))
def test_spliced_keys_are_evidence_at_most(position: int, splice: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        verify_attestation_key(PUBLIC[:position] + splice + PUBLIC[position + len(splice) :])
