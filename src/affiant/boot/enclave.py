"""A VBS enclave's report explained: who signed it, and what it says of the enclave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from affiant.appraisal.boot_facts import Trust
from affiant.boot.text import printable
from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.windows.identity_key import IdentityKey, identity_key_of, identity_key_of_certificate
from affiant.tpm.windows.vbs_enclave import (
    UnverifiedEnclaveReport,
    VerifiedEnclaveReport,
    parse_enclave_report,
    verify_enclave_report,
)

__all__ = ["EnclaveExplanation", "enclave_as_json", "enclave_page", "explain_enclave", "parse_identity_key"]

_PEM: Final = b"-----BEGIN"


@dataclass(frozen=True, slots=True)
class EnclaveExplanation:
    """A report with what is proven of it.

    `report` is verified where a key and the enclave data were given and agree. `refused` says why it is
    forged, `unproven` what is missing to prove it; one of them is set unless the report is verified.
    """

    report: VerifiedEnclaveReport | UnverifiedEnclaveReport
    refused: str | None
    unproven: str

    @property
    def trust(self) -> Trust:
        """Whether the report is proven."""
        verified = isinstance(self.report, VerifiedEnclaveReport)
        return Trust.VERIFIED if verified else Trust.UNTRUSTED


def parse_identity_key(content: bytes) -> IdentityKey:
    """Read the identity key of a machine: a public key or a certificate, PEM or DER.

    The caller vouches for it; a certificate's issuer and validity are not looked at. Raises MalformedError.
    """
    try:
        key = _public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(f"identity key: neither a public key nor a certificate ({error})") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise MalformedError("identity key: a VSM identity key is an RSA key")
    return identity_key_of(key)


def _public_key(content: bytes) -> object:
    if content.lstrip().startswith(_PEM):
        if b"BEGIN CERTIFICATE" in content:
            return load_pem_x509_certificate(content).public_key()
        return load_pem_public_key(content)
    try:
        return load_der_public_key(content)
    except ValueError:
        return identity_key_of_certificate(content).key


def explain_enclave(
    package: bytes, *, identity_key: IdentityKey | None, enclave_data: bytes | None
) -> EnclaveExplanation:
    """Verify a report package as far as it can be, and explain it.

    What holds for a verified report: see `verify_enclave_report`. A signature without the enclave data
    that the caller expects proves nothing about any key, so both are needed. Raises MalformedError.
    """
    parsed = parse_enclave_report(package)
    if identity_key is None or enclave_data is None:
        missing = " and ".join(
            name
            for name, part in (
                ("the machine's identity key", identity_key),
                ("the enclave data", enclave_data),
            )
            if part is None
        )
        return EnclaveExplanation(parsed, None, f"not verified, not given: {missing}")
    try:
        verified = verify_enclave_report(
            package, identity_key=identity_key, expected_enclave_data=enclave_data
        )
    except ForgedError as error:
        return EnclaveExplanation(parsed, str(error), "")
    return EnclaveExplanation(verified, None, "")


def enclave_as_json(explanation: EnclaveExplanation) -> dict[str, Any]:
    """Return the JSON object; one trust label for all, since one signature covers all."""
    report = explanation.report
    identity = report.identity
    return {
        "kind": "enclave_report",
        "trust": explanation.trust.value,
        "refused": explanation.refused,
        "unproven": explanation.unproven or None,
        "facts": {
            "enclave_debugging_disabled": {
                "value": identity.debugging_disabled,
                "trust": explanation.trust.value,
                "source": f"flags {int(identity.flags)}",
            }
        },
        "enclave_data": report.enclave_data.hex(),
        "identity": {
            "owner_id": identity.owner_id.hex(),
            "unique_id": identity.unique_id.hex(),
            "author_id": identity.author_id.hex(),
            "family_id": identity.family_id.hex(),
            "image_id": identity.image_id.hex(),
            "svn": identity.svn,
            "secure_kernel_svn": identity.secure_kernel_svn,
            "platform_svn": identity.platform_svn,
            "flags": int(identity.flags),
            "signing_level": identity.signing_level,
            "enclave_type": identity.enclave_type,
        },
        "modules": [
            {
                "name": module.name,
                "unique_id": module.unique_id.hex(),
                "author_id": module.author_id.hex(),
                "svn": module.svn,
            }
            for module in report.modules
        ],
        "unknown_records": report.unknown_records,
    }


def enclave_page(explanation: EnclaveExplanation) -> Iterator[str]:
    """Yield the lines of a page for people."""
    report, identity = explanation.report, explanation.report.identity
    yield "Report of a VBS enclave"
    yield ""
    if explanation.refused is not None:
        yield f"REFUSED: {explanation.refused}"
    elif explanation.trust is Trust.VERIFIED:
        yield "VERIFIED: signed by the secure kernel whose identity key you named, for the data you expected."
    else:
        yield f"NOTHING IS PROVEN: {explanation.unproven}"
    yield ""
    yield f"  written by     author {identity.author_id.hex()}"
    yield f"  its code       {identity.unique_id.hex()}"
    yield f"  family, image  {identity.family_id.hex()} / {identity.image_id.hex()}"
    yield f"  owner          {identity.owner_id.hex()}"
    yield (
        f"  versions       enclave {identity.svn}, secure kernel {identity.secure_kernel_svn}, "
        f"platform {identity.platform_svn}"
    )
    state = "no" if identity.debugging_disabled else f"YES (flags {int(identity.flags)})"
    yield f"  debuggable     {state}"
    yield f"  it binds       {report.enclave_data.hex()}"
    yield f"  modules        {', '.join(printable(module.name, limit=60) for module in report.modules)}"
    if report.unknown_records:
        yield f"  and {report.unknown_records} records of kinds that are not read here"
