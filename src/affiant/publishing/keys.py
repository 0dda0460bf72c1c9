"""Keys of signers: a private one in an encrypted PEM file of its owner, a public one to hand over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from affiant.model.errors import SetupError
from affiant.new_file import write_new_file

__all__ = ["KINDS", "NAME_FIELD", "key_name", "make_key", "read_public_key", "read_signer"]

KINDS: Final = ("ed25519", "ml-dsa-65")
"""What kinds of keys are made; the second withstands quantum computers and signs 3.3 kB."""

NAME_FIELD: Final = "x-affiant-name"
"""Where a key in root metadata says whose it is. For people: nothing is decided by it."""

_LARGEST: Final = 64 * 1024


def make_key(path: Path, *, kind: str = "ed25519", passphrase: bytes | None) -> SSlibKey:
    """Write a new private key to `path` and its public one to `path` with the ending `.pub`.

    The private one is encrypted unless `passphrase` is None, and readable by its owner alone. Raises
    `SetupError` if either file is there.
    """
    private = Ed25519PrivateKey.generate() if kind == "ed25519" else MLDSA65PrivateKey.generate()
    public = path.with_suffix(".pub")
    if public.exists():
        raise SetupError(f"{public} is already there", hint="remove it, or name another")
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_new_file(path, pem, mode=0o600)
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return SSlibKey.from_crypto(private.public_key())


def read_public_key(path: Path, *, name: str) -> SSlibKey:
    """Return the public key in a PEM file, owned by whoever `name` says. Raises `SetupError`."""
    pem = _read(path)
    if b"PRIVATE KEY" in pem:
        raise SetupError(
            f"{path} is a private key, which nobody but its owner needs",
            hint=f"give the public one: {path.with_suffix('.pub').name}",
        )
    try:
        key = SSlibKey.from_crypto(serialization.load_pem_public_key(pem))
    except (ValueError, TypeError) as error:
        raise SetupError(
            f"{path} holds no public key that can be used: {error}", hint="PEM is expected"
        ) from None
    key.unrecognized_fields[NAME_FIELD] = name
    return key


def read_signer(path: Path, *, passphrase: Callable[[], bytes]) -> CryptoSigner:
    """Return the signer whose private key is in a PEM file; `passphrase` is asked if it is encrypted.

    Raises `SetupError`.
    """
    pem = _read(path)
    secret = passphrase() if b"ENCRYPTED" in pem else None
    try:
        return CryptoSigner(serialization.load_pem_private_key(pem, secret))
    except (ValueError, TypeError) as error:
        raise SetupError(f"{path} cannot be used: {error}") from None


def key_name(key: Key) -> str:
    """Return how people call this key: its owner and the beginning of its identifier."""
    owner = str(key.unrecognized_fields.get(NAME_FIELD, "")) or "unnamed"
    return f"{owner} ({key.keyid[:8]})"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
