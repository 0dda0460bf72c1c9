"""The service's own authority and keys, in files that only the service can read.

    root.pem, root.key            the root: relying parties and monitors pin it; its key may be kept
                                  elsewhere, and is needed only to renew the two below
    session-ca.pem, session-ca.key    issues session certificates
    signing.pem, signing.key      signs challenges, session reports and acknowledgements
    sealing.key                   X25519, what monitors seal to

Keys are PKCS #8 PEM without a passphrase, mode 0600, in a folder of mode 0700.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from affiant.model.errors import SetupError
from affiant.wire.certificates import load_certificate
from affiant.wire.issuance import (
    build_root,
    build_service_signing,
    build_session_ca,
    build_session_certificate,
)

__all__ = ["Authority", "create_authority", "load_authority", "root_path"]

_DAY = 24 * 3600
_ROOT_SECONDS = 10 * 365 * _DAY
_INTERMEDIATE_SECONDS = 365 * _DAY
_RENEW_BEFORE_SECONDS = 30 * _DAY
# A verifier whose clock is a little behind must not find a certificate "not yet valid".
_CLOCK_SKEW_SECONDS = 60
_SERIAL_BITS = 159  # positive and at most 20 octets (RFC 5280, section 4.1.2.2)


@dataclass(frozen=True, slots=True)
class Authority:
    """Keys and certificates of a running service; private keys are kept out of its `repr`."""

    root: x509.Certificate
    session_ca: x509.Certificate
    signing: x509.Certificate
    session_ca_key: ec.EllipticCurvePrivateKey = field(repr=False)
    signing_key: ec.EllipticCurvePrivateKey = field(repr=False)
    sealing_key: X25519PrivateKey = field(repr=False)

    @property
    def sealing_public(self) -> bytes:
        """What goes into challenges (X25519, 32 bytes)."""
        return self.sealing_key.public_key().public_bytes_raw()

    def issue_session_certificate(
        self, key: ec.EllipticCurvePublicKey, *, session_id: bytes, now: int, expires_at: int
    ) -> tuple[bytes, bytes]:
        """Return the session certificate for `key` and its issuer's (DER).

        It is valid from a minute before `now` to `expires_at`, one hour at most altogether.
        """
        certificate = build_session_certificate(
            key=key,
            session_id=session_id,
            authority=self.session_ca,
            authority_key=self.session_ca_key,
            serial=secrets.randbits(_SERIAL_BITS),
            not_before=now - _CLOCK_SKEW_SECONDS,
            not_after=expires_at,
        )
        return certificate.public_bytes(Encoding.DER), self.session_ca.public_bytes(Encoding.DER)


def root_path(folder: Path) -> Path:
    """Return where the root certificate (PEM) of a service folder is."""
    return folder / "root.pem"


def create_authority(folder: Path, *, issuer: str, now: int) -> None:
    """Make root, session CA, signing and sealing keys in `folder`, or leave them as they are.

    Raises SetupError when some of the files are there and others are not.
    """
    names = ("root.pem", "root.key", "session-ca.pem", "session-ca.key", "signing.pem", "signing.key")
    present = [name for name in (*names, "sealing.key") if (folder / name).exists()]
    if set(names[2:]) | {"root.pem", "sealing.key"} <= set(present):
        return
    if present:
        raise SetupError(
            f"{folder} holds only some of a service's keys: {', '.join(present)}",
            hint="restore the missing files, or choose an empty folder",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        folder.chmod(0o700)  # an empty folder that was there before may be open to others
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = build_root(
        key=root_key,
        name=issuer,
        serial=secrets.randbits(_SERIAL_BITS),
        not_before=now - _CLOCK_SKEW_SECONDS,
        not_after=now + _ROOT_SECONDS,
    )
    _write_key(folder / "root.key", root_key)
    _write_key(folder / "sealing.key", X25519PrivateKey.generate())
    _issue_intermediates(folder, root=root, root_key=root_key, now=now)
    # Last, because a folder with a root counts as made.
    _write_certificate(root_path(folder), root)


def load_authority(folder: Path, *, now: int) -> Authority:
    """Read the keys of a service folder; session CA and signing certificate are renewed in time.

    Raises SetupError when the folder was not initialised, is readable by others, or certificates
    have run out and the root's key is not there to renew them.
    """
    root = _read_certificate(root_path(folder))
    if (folder.stat().st_mode | _mode(folder / "signing.key") | _mode(folder / "session-ca.key")) & 0o077:
        raise SetupError(f"others can read the keys in {folder}", hint=f"chmod -R go= {folder}")
    signing = _read_certificate(folder / "signing.pem")
    session_ca = _read_certificate(folder / "session-ca.pem")
    soonest = min(_expiry(signing), _expiry(session_ca))
    if soonest - now < _RENEW_BEFORE_SECONDS and (folder / "root.key").exists():
        _issue_intermediates(folder, root=root, root_key=_read_ec_key(folder / "root.key"), now=now)
        signing = _read_certificate(folder / "signing.pem")
        session_ca = _read_certificate(folder / "session-ca.pem")
    elif soonest <= now or _expiry(root) <= now:
        raise SetupError(
            f"the certificates in {folder} have expired", hint="put root.key back to renew them, or init anew"
        )
    return Authority(
        root=root,
        session_ca=session_ca,
        signing=signing,
        session_ca_key=_read_ec_key(folder / "session-ca.key"),
        signing_key=_read_ec_key(folder / "signing.key"),
        sealing_key=_read_sealing_key(folder / "sealing.key"),
    )


def _issue_intermediates(
    folder: Path, *, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, now: int
) -> None:
    builders: tuple[tuple[str, Callable[..., x509.Certificate]], ...] = (
        ("session-ca", build_session_ca),
        ("signing", build_service_signing),
    )
    for name, build in builders:
        path = folder / f"{name}.key"
        key = _read_ec_key(path) if path.exists() else ec.generate_private_key(ec.SECP256R1())
        certificate = build(
            key=key.public_key(),
            root=root,
            root_key=root_key,
            serial=secrets.randbits(_SERIAL_BITS),
            not_before=now - _CLOCK_SKEW_SECONDS,
            not_after=min(now + _INTERMEDIATE_SECONDS, _expiry(root)),
        )
        _write_key(path, key)
        _write_certificate(folder / f"{name}.pem", certificate)


def _expiry(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp())


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from error


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | X25519PrivateKey) -> None:
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    _write(path, certificate.public_bytes(Encoding.PEM), mode=0o644)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    # Created with its mode: there is no moment in which others could read a key.
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        der = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return load_certificate(der, name=path.name)


def _read_key(path: Path) -> object:
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error) from error


def _read_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{path} holds no elliptic-curve key")
    return key


def _read_sealing_key(path: Path) -> X25519PrivateKey:
    key = _read_key(path)
    if not isinstance(key, X25519PrivateKey):
        raise SetupError(f"{path} holds no X25519 key")
    return key


def _unreadable(path: Path, error: Exception) -> SetupError:
    return SetupError(f"{path} cannot be used: {error}", hint="run `affiant service init` first")
