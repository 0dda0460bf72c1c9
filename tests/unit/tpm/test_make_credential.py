"""Credentials in software: their form, and that only the right parts open them.

That a TPM opens them is shown in `test_real_tpm.py`.
"""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from affiant.model.errors import ForgedError
from affiant.tpm.credential import check_credential_proof, credential_proof, make_credential
from affiant.tpm.endorsement import EndorsementKey, verify_endorsement
from affiant.tpm.octets import OctetReader
from tests.unit.tpm.test_endorsement_key import ECC_EK, EK, LEAF, NOW, PUBLIC, ROOT, ecc_ek

NAME = b"\0\x0b" + b"n" * 32
SECRET = b"s" * 32
SEED = bytes(range(32))


def rsa_endorsement() -> EndorsementKey:
    return verify_endorsement([LEAF], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def ecc_endorsement() -> EndorsementKey:
    leaf = ROOT.endorse(ECC_EK.public_key())
    return verify_endorsement([leaf], ecc_ek(ECC_EK.public_key()), anchors=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize("endorsement", [rsa_endorsement(), ecc_endorsement()], ids=["rsa", "ecc"])
def test_the_parts_are_sized_buffers(endorsement: EndorsementKey) -> None:
    credential = make_credential(endorsement, name=NAME, secret=SECRET, seed=SEED)
    blob = OctetReader(credential.blob, "blob")
    identity = OctetReader(blob.sized("identity object", maximum=512), "identity object")
    blob.finish()
    assert len(identity.sized("integrity", maximum=64)) == 32
    assert identity.remaining == 2 + len(SECRET)  # the sized secret, encrypted
    assert SECRET not in credential.blob + credential.encrypted_secret
    OctetReader(credential.encrypted_secret, "secret").sized("secret", maximum=512)


def test_rsa_seeds_are_encrypted_under_the_tpm_label() -> None:
    """OAEP with SHA-256 and the label IDENTITY, with its terminating zero."""
    credential = make_credential(rsa_endorsement(), name=NAME, secret=SECRET, seed=SEED)
    mask = padding.MGF1(hashes.SHA256())
    label = padding.OAEP(mask, hashes.SHA256(), b"IDENTITY\0")
    assert len(EK.decrypt(credential.encrypted_secret[2:], label)) == 32
    with pytest.raises(ValueError, match="Decryption failed"):
        EK.decrypt(credential.encrypted_secret[2:], padding.OAEP(mask, hashes.SHA256(), b"IDENTITY"))


def test_every_seed_makes_another_ephemeral_key() -> None:
    first = make_credential(ecc_endorsement(), name=NAME, secret=SECRET, seed=SEED)
    second = make_credential(ecc_endorsement(), name=NAME, secret=SECRET, seed=SEED[::-1])
    again = make_credential(ecc_endorsement(), name=NAME, secret=SECRET, seed=SEED)
    assert first == again
    assert first.encrypted_secret != second.encrypted_secret
    assert first.blob != second.blob


@pytest.mark.parametrize(
    ("secret", "seed"), [(b"", SEED), (bytes(33), SEED), (SECRET, bytes(31))], ids=["none", "long", "seed"]
)
def test_misuse_is_told(secret: bytes, seed: bytes) -> None:
    with pytest.raises(ValueError, match="must"):
        make_credential(ecc_endorsement(), name=NAME, secret=secret, seed=seed)


def test_the_proof_is_over_the_transcript() -> None:
    digest = hashlib.sha256(b"request" + b"challenge").digest()
    proof = credential_proof(SECRET, b"request" + b"challenge")
    assert proof == hmac.digest(SECRET, digest, "sha256")
    check_credential_proof(proof, secret=SECRET, transcript=b"requestchallenge")


@pytest.mark.parametrize(
    ("proof", "secret", "transcript"),
    [
        (credential_proof(SECRET, b"a"), SECRET, b"b"),
        (credential_proof(SECRET, b"a"), bytes(32), b"a"),
        (credential_proof(SECRET, b"a")[:-1], SECRET, b"a"),
        (b"", SECRET, b"a"),
    ],
    ids=["transcript", "secret", "short", "empty"],
)
def test_another_proof_is_refused(proof: bytes, secret: bytes, transcript: bytes) -> None:
    with pytest.raises(ForgedError, match="proof"):
        check_credential_proof(proof, secret=secret, transcript=transcript)
