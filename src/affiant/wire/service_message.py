"""What all messages of the service have in common: signed by a key that the root vouches for.

The protected header carries the service's certificate (x5chain, one certificate), issued by the
root itself; `typ` and, where a message answers another one, external data keep them apart.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.wire.certificates import verify_service_chain
from affiant.wire.cose import Signer, VerifiedSign1, parse_sign1, sign1, verify_sign1

__all__ = ["sign_by_service", "verify_by_service"]


def sign_by_service(
    payload: bytes, *, key: Signer, certificate: x509.Certificate, typ: str, external_aad: bytes = b""
) -> bytes:
    """Return the message of `payload`, signed by `key`, which `certificate` certifies."""
    certificates = [certificate.public_bytes(Encoding.DER)]
    return sign1(payload, key=key, typ=typ, external_aad=external_aad, certificates=certificates)


def verify_by_service(
    data: bytes,
    *,
    name: str,
    typ: str,
    max_size: int,
    root: x509.Certificate,
    now: int,
    external_aad: bytes = b"",
) -> VerifiedSign1:
    """Return what the service signed.

    What holds then:
    - the signature is by a key whose certificate `verify_service_chain` accepts for `root` at `now`;
    - it covers the payload as a message of type `typ`, together with `external_aad`.

    Raises `MalformedError` or `ForgedError` otherwise.
    """
    message = parse_sign1(data, name=name, max_size=max_size)
    key = verify_service_chain(message.certificates, root=root, now=now)
    return verify_sign1(message, key=key, typ=typ, external_aad=external_aad)
