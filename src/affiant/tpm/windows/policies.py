"""Policies that Windows measured: revocation lists, code integrity policies, Secure Boot policies.

Payloads of SIPAEVENT_BOOT_REVOCATION_LIST, _OS_REVOCATION_LIST, _SI_POLICY and _SBCP_INFO (`wbcl.h`
of the Windows SDK), packed. The digests are of the policy's file; which ones to accept is a policy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.windows.little_endian import LittleEndianReader, decode_utf16

__all__ = [
    "CodeIntegrityPolicy",
    "RevocationList",
    "SecureBootPolicy",
    "read_code_integrity_policy",
    "read_revocation_list",
    "read_secure_boot_policy",
]

_MAXIMUM_DIGEST: Final = 64
_MAXIMUM_NAME: Final = 1024
_SECURE_BOOT_POLICY_VERSION: Final = 1
_SECURE_BOOT_POLICY_HEADER: Final = 20


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list of revoked boot (bootmgr) or driver (`driver.stl`) files: its time and digest.

    `creation_time` is a FILETIME: 100 ns since 1601-01-01 UTC. `hash_algorithm` is a TPM_ALG_ID.
    """

    creation_time: int
    hash_algorithm: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class CodeIntegrityPolicy:
    """A code integrity policy in force (App Control, driver block list): name, version, digest.

    `version` holds four 16-bit parts, the highest first. `hash_algorithm` is a TPM_ALG_ID.
    """

    name: str
    version: int
    hash_algorithm: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SecureBootPolicy:
    """A Secure Boot configuration policy (SBCP) in force: option flags, number of signers, digest."""

    options: int
    signers: int
    hash_algorithm: int
    digest: bytes


def read_revocation_list(payload: bytes) -> RevocationList:
    """Read SIPAEVENT_REVOCATION_LIST_PAYLOAD; MalformedError when lengths do not fit."""
    reader = LittleEndianReader(payload, "revocation list")
    time, size, algorithm = reader.u64(), reader.u32(), reader.u16()
    digest = reader.take(_digest_size(size, "revocation list"))
    reader.finish()
    return RevocationList(time, algorithm, digest)


def read_code_integrity_policy(payload: bytes) -> CodeIntegrityPolicy:
    """Read SIPAEVENT_SI_POLICY_PAYLOAD; MalformedError when lengths do not fit."""
    subject = "code integrity policy"
    reader = LittleEndianReader(payload, subject)
    version, name_size, algorithm, size = reader.u64(), reader.u16(), reader.u16(), reader.u32()
    if name_size > _MAXIMUM_NAME:
        raise MalformedError(f"{subject}: name of {name_size} octets")
    name = decode_utf16(reader.take(name_size), subject)
    digest = reader.take(_digest_size(size, subject))
    reader.finish()
    return CodeIntegrityPolicy(name, version, algorithm, digest)


def read_secure_boot_policy(payload: bytes) -> SecureBootPolicy:
    """Read SIPAEVENT_SBCP_INFO_PAYLOAD_V1; MalformedError for another version, or lengths that do not fit.

    Octets after the digest are not read: the SDK leaves room for more.
    """
    subject = "Secure Boot policy"
    reader = LittleEndianReader(payload, subject)
    version, offset, algorithm = reader.u32(), reader.u32(), reader.u16()
    size, options, signers = reader.u16(), reader.u32(), reader.u32()
    if version != _SECURE_BOOT_POLICY_VERSION or offset < _SECURE_BOOT_POLICY_HEADER:
        raise MalformedError(f"{subject}: version {version} with data at {offset}")
    reader.take(offset - _SECURE_BOOT_POLICY_HEADER)
    return SecureBootPolicy(options, signers, algorithm, reader.take(_digest_size(size, subject)))


def _digest_size(size: int, subject: str) -> int:
    if not 0 < size <= _MAXIMUM_DIGEST:
        raise MalformedError(f"{subject}: digest of {size} octets")
    return size
