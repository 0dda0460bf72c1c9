"""Credential activation: a secret that only the TPM of one EK, holding one AK, can open.

TPM2_MakeCredential in software: TPM 2.0 Library, Part 1, sections 24 (credential protection),
11.4.10 (KDFa, KDFe), annexes B.10.3 (RSA secret sharing) and C.6.1 (ECC secret sharing).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final, cast

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.endorsement import EndorsementKey
from affiant.tpm.octets import sized
from affiant.tpm.public_area import EccKey

__all__ = ["Credential", "check_credential_proof", "credential_proof", "make_credential"]

_MINIMUM_SEED: Final = 32
_PROOF: Final = HashAlgorithm.SHA256


@dataclass(frozen=True, slots=True)
class Credential:
    """`blob` (TPM2B_ID_OBJECT) and `encrypted_secret` (TPM2B_ENCRYPTED_SECRET), for the wire."""

    blob: bytes
    encrypted_secret: bytes


def make_credential(endorsement: EndorsementKey, *, name: bytes, secret: bytes, seed: bytes) -> Credential:
    """Wrap `secret` so that only a TPM with that EK and an object with that `name` can open it.

    `name` is the Name of the attestation key. `secret` is at most as long as the digest of the
    EK's Name algorithm. `seed` is at least 32 fresh random octets, used for this call alone: it is
    the protection seed (RSA) or what the ephemeral key is derived from (ECC).

    Raises ValueError for a short seed or a long secret.
    """
    public = endorsement.public
    hash_algorithm, cipher = public.name_algorithm, public.symmetric
    if cipher is None:
        raise ValueError("an endorsement key has a symmetric cipher")
    if len(seed) < _MINIMUM_SEED:
        raise ValueError("the seed must hold at least 32 fresh random octets")
    if not 0 < len(secret) <= hash_algorithm.digest_size:
        raise ValueError(f"the secret must have 1 to {hash_algorithm.digest_size} octets")
    protection_seed, encrypted_secret = _share_seed(endorsement, seed)
    # Part 1, section 24.4: encrypt the sized secret, then MAC ciphertext and Name.
    storage_key = _kdfa(hash_algorithm, protection_seed, b"STORAGE", name, b"", cipher.key_bits)
    encryptor = Cipher(algorithms.AES(storage_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    integrity_bits = 8 * hash_algorithm.digest_size
    integrity_key = _kdfa(hash_algorithm, protection_seed, b"INTEGRITY", b"", b"", integrity_bits)
    integrity = hmac.digest(integrity_key, identity + name, hash_algorithm.title)
    return Credential(sized(sized(integrity) + identity), sized(encrypted_secret))


def credential_proof(secret: bytes, transcript: bytes) -> bytes:
    """HMAC-SHA-256(activated secret, SHA-256(transcript)): what the attester answers.

    `transcript` is everything said so far, in order: the request's bytes, then the challenge's.
    """
    return hmac.digest(secret, _PROOF.digest(transcript), _PROOF.title)


def check_credential_proof(proof: bytes, *, secret: bytes, transcript: bytes) -> None:
    """Return only if `proof` is the one for that secret and transcript; ForgedError if not."""
    if not hmac.compare_digest(proof, credential_proof(secret, transcript)):
        raise ForgedError("credential activation: the proof does not show the secret of this enrolment")


def _share_seed(endorsement: EndorsementKey, seed: bytes) -> tuple[bytes, bytes]:
    """The protection seed, and what lets the EK's TPM recover it (TPMU_ENCRYPTED_SECRET)."""
    hash_algorithm = endorsement.public.name_algorithm
    if isinstance(endorsement.key, rsa.RSAPublicKey):
        # The seed is as long as the digest; expanded, so that any seed of 32 octets will do.
        shared = HKDF(hash_algorithm.primitive, hash_algorithm.digest_size, None, b"affiant/1/seed").derive(
            seed
        )
        oaep = padding.OAEP(
            mgf=padding.MGF1(hash_algorithm.primitive),
            algorithm=hash_algorithm.primitive,
            label=b"IDENTITY\0",  # the terminating zero is part of the label (annex B.4)
        )
        return shared, endorsement.key.encrypt(shared, oaep)
    key = cast(EccKey, endorsement.public.key)  # the key and the public area are of one kind
    ephemeral = _ephemeral_key(key, seed)
    point = ephemeral.public_key().public_numbers()
    size = key.curve.coordinate_size
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    z = ephemeral.exchange(ec.ECDH(), endorsement.key)
    bits = 8 * hash_algorithm.digest_size
    return _kdfe(hash_algorithm, z, b"IDENTITY", x, key.x, bits), sized(x) + sized(y)


# The order of each curve's group (FIPS 186-5 refers to SP 800-186, section 3.2.1).
_ORDERS: Final = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
    ),
    "secp521r1": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}


def _ephemeral_key(key: EccKey, seed: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key on the EK's curve, derived from the seed with 64 bits to spare (FIPS 186-5, A.2.1)."""
    curve = key.curve.primitive
    length = key.curve.coordinate_size + 8
    wide = HKDF(HashAlgorithm.SHA256.primitive, length, None, b"affiant/1/ephemeral").derive(seed)
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_ORDERS[curve.name] - 1) + 1, curve)


def _kdfa(algorithm: HashAlgorithm, key: bytes, label: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """KDFa (Part 1, section 11.4.10.2): SP 800-108 in counter mode with HMAC; `bits` % 8 == 0."""
    fixed = label + b"\0" + u + v + struct.pack(">I", bits)
    output = b""
    counter = 0
    while len(output) * 8 < bits:
        counter += 1
        output += hmac.digest(key, struct.pack(">I", counter) + fixed, algorithm.title)
    return output[: bits // 8]


def _kdfe(algorithm: HashAlgorithm, z: bytes, use: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """KDFe (Part 1, section 11.4.10.3): SP 800-56A one-step derivation; `bits` % 8 == 0."""
    output = b""
    counter = 0
    while len(output) * 8 < bits:
        counter += 1
        block = struct.pack(">I", counter) + z + use + b"\0" + u + v
        output += hashlib.new(algorithm.title, block).digest()
    return output[: bits // 8]
