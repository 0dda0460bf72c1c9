"""Reading CA certificates that an operator wants trusted."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.errors import SetupError

__all__ = ["read_authorities"]

_LARGEST = 1 << 18
_LARGEST_CERTIFICATE = 16384


def read_authorities(path: Path) -> list[tuple[str, bytes]]:
    """Return subject and DER of each certificate in a PEM file. Raises SetupError unless all are CAs."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
        certificates = x509.load_pem_x509_certificates(content)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(
            f"{path}: holds no certificate in PEM form", hint="give the issuer of the EKs, as PEM"
        ) from error
    authorities = []
    for certificate in certificates:
        subject = certificate.subject.rfc4514_string()
        der = certificate.public_bytes(Encoding.DER)
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (x509.ExtensionNotFound, ValueError):
            constraints = None
        if constraints is None or not constraints.ca or len(der) > _LARGEST_CERTIFICATE:
            raise SetupError(f"{path}: {subject!r} is no CA certificate", hint="give the issuer of the EKs")
        authorities.append((subject, der))
    return authorities
