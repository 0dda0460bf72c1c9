"""What policy knows keys by: digests of certificates and images, and names for people.

The names come out of certificates and are their makers' words: nothing is decided by them.
"""

from __future__ import annotations

import hashlib
import warnings

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.secure_boot import Authority, SecureBootFacts
from affiant.tpm.signature_database import CERT_SHA256, CERT_X509, DatabaseEntry

__all__ = [
    "authority_identities",
    "authority_identity",
    "authority_title",
    "certificate_title",
    "entry_identity",
    "entry_title",
    "signers",
]

_OWNER_BYTES = 16  # EFI_SIGNATURE_DATA begins with the owner's GUID (UEFI, section 32.4.1)
# shim measures these like authorities, but they vouch for nothing.
_SHIM_SETTINGS = frozenset({"SbatLevel", "MokSBState"})
_LONGEST_TITLE = 80
_DIGEST_SIZE = 32  # of SHA-256
_LARGEST_CERTIFICATE = 16384


def entry_identity(entry: DatabaseEntry) -> bytes:
    """Return what policy knows an entry by: a certificate's digest, or the image digest itself."""
    if entry.kind == CERT_SHA256 and len(entry.content) == _DIGEST_SIZE:
        return entry.content
    kind = b"" if entry.kind == CERT_X509 else entry.kind.bytes
    return hashlib.sha256(kind + entry.content).digest()


def entry_title(entry: DatabaseEntry) -> str:
    """Return a name for people: a certificate's, or what kind of entry it is."""
    if entry.kind == CERT_X509:
        return certificate_title(entry.content)
    return "image" if entry.kind == CERT_SHA256 else f"entry of type {entry.kind}"


def signers(secure_boot: SecureBootFacts) -> tuple[Authority, ...]:
    """Return the authorities that vouched for something; shim measures settings the same way."""
    return tuple(
        authority
        for authority in secure_boot.authorities
        if not (authority.source.vendor == SHIM_LOCK and authority.source.name in _SHIM_SETTINGS)
    )


def authority_identities(authority: Authority) -> tuple[bytes, bytes]:
    """Return the digests an authority may be known by: of all its octets, and without an owner.

    shim measures a certificate bare, firmware with the owner before it.
    """
    content = authority.source.content
    return hashlib.sha256(content).digest(), hashlib.sha256(content[_OWNER_BYTES:]).digest()


def authority_identity(authority: Authority) -> bytes:
    """Return the digest that a policy should know an authority by: of the certificate alone."""
    whole, bare = authority_identities(authority)
    return whole if _is_bare(authority) else bare


def authority_title(authority: Authority) -> str:
    """Return the name of an authority's certificate for people."""
    content = authority.source.content
    return certificate_title(content if _is_bare(authority) else content[_OWNER_BYTES:])


def _is_bare(authority: Authority) -> bool:
    """Whether a certificate was measured without an owner: DER whose length fills the octets."""
    content = authority.source.content
    return content[:2] == b"\x30\x82" and len(content) == 4 + int.from_bytes(content[2:4], "big")


def certificate_title(der: bytes) -> str:
    """Return the common name of a certificate's subject, printable and short; never raises."""
    if len(der) > _LARGEST_CERTIFICATE:
        return "certificate"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old firmware certificates are odd; only a name is wanted
            subject = x509.load_der_x509_certificate(der).subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME) or list(subject)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return "certificate"
    title = str(names[0].value) if names else "certificate"
    return "".join(c if c.isprintable() else "?" for c in title)[:_LONGEST_TITLE]
