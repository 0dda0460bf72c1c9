"""Commands by which a key proves to lie in the TPM of an endorsement key: credential activation."""

from __future__ import annotations

import struct

from affiant.tpm.algorithms import Algorithm, HashAlgorithm
from affiant.tpm.command import Authorization, Command, build_command, password
from affiant.tpm.command_bytes.answer import skip_ticket
from affiant.tpm.command_bytes.handles import ENDORSEMENT, NULL
from affiant.tpm.octets import OctetReader, sized

__all__ = ["activate_credential", "policy_secret", "start_policy_session"]


def start_policy_session(nonce: bytes, *, session_hash: HashAlgorithm = HashAlgorithm.SHA256) -> Command[int]:
    """TPM2_StartAuthSession (Part 3, section 11.1): an unbound, unsalted policy session; its handle.

    `nonce` is 16 to 32 fresh octets. `session_hash` is the EK's Name algorithm: the digest of the
    policy is made with it.
    """
    if not 16 <= len(nonce) <= 32:
        raise ValueError("the nonce has 16 to 32 octets")
    parameters = sized(nonce) + sized(b"") + struct.pack(">BHH", 1, Algorithm.NULL, session_hash)

    def read(reader: OctetReader, handle: int) -> int:
        reader.sized("nonceTPM", maximum=64)
        return handle

    return build_command(
        "TPM2_StartAuthSession",
        0x176,
        read,
        handles=(NULL, NULL),
        parameters=parameters,
        response_handle=True,
    )


def policy_secret(
    session: int, *, hierarchy: int = ENDORSEMENT, hierarchy_auth: bytes = b""
) -> Command[None]:
    """TPM2_PolicySecret (Part 3, section 23.4): what the low-range EK templates require."""

    def read(reader: OctetReader, _: int) -> None:
        reader.sized("timeout", maximum=8)
        skip_ticket(reader)

    return build_command(
        "TPM2_PolicySecret",
        0x151,
        read,
        handles=(hierarchy, session),
        authorizations=(password(hierarchy_auth),),
        parameters=sized(b"") * 3 + struct.pack(">i", 0),
    )


def activate_credential(
    attestation_key: int,
    endorsement_key: int,
    *,
    auth: bytes,
    session: int,
    credential_blob: bytes,
    encrypted_secret: bytes,
) -> Command[bytes]:
    """TPM2_ActivateCredential (Part 3, section 12.5); the result is the secret.

    `credential_blob` is a TPM2B_ID_OBJECT and `encrypted_secret` a TPM2B_ENCRYPTED_SECRET, as the
    service sent them. `session` is a policy session that satisfies the EK's policy; it serves once.

    Raises MalformedError when one of the two is not exactly one sized buffer: bytes from outside
    must not become further parameters of the command.
    """
    for field, value in (("credential blob", credential_blob), ("encrypted secret", encrypted_secret)):
        reader = OctetReader(value, field)
        reader.sized(field, maximum=1024)
        reader.finish()

    def read(reader: OctetReader, _: int) -> bytes:
        return reader.sized("certInfo", maximum=64)

    return build_command(
        "TPM2_ActivateCredential",
        0x147,
        read,
        handles=(attestation_key, endorsement_key),
        authorizations=(password(auth), Authorization(session, b"")),
        parameters=credential_blob + encrypted_secret,
    )
