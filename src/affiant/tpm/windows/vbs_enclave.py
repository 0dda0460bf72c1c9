"""Verifying a report of a VBS enclave: which enclave of which machine said this?

What EnclaveGetAttestationReport returns (`ntenclv.h` of the Windows SDK, packed, little-endian): a
VBS_ENCLAVE_REPORT_PKG_HEADER, a signed statement (VBS_ENCLAVE_REPORT with ENCLAVE_IDENTITY, then
variable data), and a signature by the machine's IDKS, RSASSA-PSS with SHA-256 and a salt of 32 octets.

A genuine report beside somebody else's key proves nothing about that key: the 64 octets that the
enclave put into the report (EnclaveData) must name it. Two well-known clients left that check out
for years; here it is an argument that cannot be left out.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.windows.identity_key import IdentityKey
from affiant.tpm.windows.little_endian import LittleEndianReader, decode_utf16

__all__ = [
    "ENCLAVE_DATA_SIZE",
    "EnclaveFlags",
    "EnclaveIdentity",
    "EnclaveModule",
    "UnverifiedEnclaveReport",
    "VerifiedEnclaveReport",
    "enclave_data_for",
    "parse_enclave_report",
    "verify_enclave_report",
]

ENCLAVE_DATA_SIZE: Final = 64
"""Octets that an enclave puts into its report (ENCLAVE_REPORT_DATA_LENGTH)."""

_SUBJECT: Final = "enclave report"
_MAXIMUM_PACKAGE: Final = 1 << 16
_MAXIMUM_MODULES: Final = 256
_MAXIMUM_SIGNATURE: Final = 1024
_VERSION: Final = 1
_SCHEME_RSA_PSS_SHA256: Final = 1
_SALT: Final = 32
_VARIABLE_HEADER: Final = 8
_MODULE: Final = 1
_MAXIMUM_VARIABLE: Final = 4096


class EnclaveFlags(enum.IntFlag, boundary=enum.FlagBoundary.KEEP):
    """ENCLAVE_FLAG_*: who may look into the enclave; unknown flags are kept."""

    FULL_DEBUG_ENABLED = 1
    DYNAMIC_DEBUG_ENABLED = 2
    DYNAMIC_DEBUG_ACTIVE = 4


@dataclass(frozen=True, slots=True)
class EnclaveIdentity:
    """ENCLAVE_IDENTITY: who wrote the enclave and what it is.

    `owner_id` is what its host gave at creation; `unique_id` stands for the exact code, `author_id`
    for the signer, `family_id` and `image_id` are the author's names for it. The three numbers are
    security versions: of the enclave, the secure kernel, and the platform.
    """

    owner_id: bytes
    unique_id: bytes
    author_id: bytes
    family_id: bytes
    image_id: bytes
    svn: int
    secure_kernel_svn: int
    platform_svn: int
    flags: EnclaveFlags
    signing_level: int
    enclave_type: int

    @property
    def debugging_disabled(self) -> bool:
        """Whether nothing lets a debugger into the enclave; an unknown flag counts as if it did."""
        return self.flags == EnclaveFlags(0)


@dataclass(frozen=True, slots=True)
class EnclaveModule:
    """A module loaded into the enclave (VBS_ENCLAVE_REPORT_MODULE)."""

    unique_id: bytes
    author_id: bytes
    family_id: bytes
    image_id: bytes
    svn: int
    name: str


@dataclass(frozen=True, slots=True)
class UnverifiedEnclaveReport:
    """Unverified: a decoded report; `statement` is what `signature` must cover.

    `unknown_records` counts variable data of types that are not read here.
    """

    enclave_data: bytes
    identity: EnclaveIdentity
    modules: tuple[EnclaveModule, ...]
    unknown_records: int
    statement: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedEnclaveReport:
    """What the secure kernel of the machine with `identity_key` says; made by `verify_enclave_report` alone.

    `unknown_records` counts signed records of types that are not read here.
    """

    enclave_data: bytes
    identity: EnclaveIdentity
    modules: tuple[EnclaveModule, ...]
    unknown_records: int
    identity_key: IdentityKey


def enclave_data_for(octets: bytes) -> bytes:
    """The 64 octets with which an enclave binds `octets`, such as its key: SHA-256, then zeros.

    That is the convention of SQL Server and the Host Guardian Service; an enclave may have another.
    """
    return hashlib.sha256(octets).digest().ljust(ENCLAVE_DATA_SIZE, b"\0")


def verify_enclave_report(
    package: bytes, *, identity_key: IdentityKey, expected_enclave_data: bytes
) -> VerifiedEnclaveReport:
    """Verify a report package against the IDKS of a machine.

    `identity_key` is `WindowsBoot.details.signing_key` of that machine's verified boot, or a key for which
    the caller has other reasons (`identity_key_of_certificate` after its chain was verified).
    `expected_enclave_data` are all 64 octets, such as `enclave_data_for(key)`.

    When it returns,

    - the signature over the whole statement is by `identity_key`, RSASSA-PSS with SHA-256 and salt 32;
    - the statement is a report of version 1 with signature scheme 1, and fills the package;
    - its EnclaveData is `expected_enclave_data`;
    - identity and modules are all that the statement has, nothing is left over in it.

    Not checked: whether that enclave is welcome (its identity, its security versions, its debug flags),
    and when the report was made: freshness takes a nonce within `expected_enclave_data`.
    Raises MalformedError or ForgedError; ValueError when the expectation is not of 64 octets.
    """
    if len(expected_enclave_data) != ENCLAVE_DATA_SIZE:
        raise ValueError(f"enclave data are {ENCLAVE_DATA_SIZE} octets, not {len(expected_enclave_data)}")
    report = parse_enclave_report(package)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=_SALT)
    try:
        identity_key.key.verify(report.signature, report.statement, pss, hashes.SHA256())
    except InvalidSignature:
        raise ForgedError(
            f"{_SUBJECT}: the signature is not by this identity key over this statement"
        ) from None
    if not hmac.compare_digest(report.enclave_data, expected_enclave_data):
        raise ForgedError(
            f"{_SUBJECT}: EnclaveData is not the one expected: it vouches for another key or challenge"
        )
    return VerifiedEnclaveReport(
        enclave_data=report.enclave_data,
        identity=report.identity,
        modules=report.modules,
        unknown_records=report.unknown_records,
        identity_key=identity_key,
    )


def parse_enclave_report(package: bytes) -> UnverifiedEnclaveReport:
    """Read a report package; nothing about it is verified.

    Raises MalformedError: sizes that do not add up, another version or scheme, more than 64 KiB or
    256 modules, octets left over.
    """
    if len(package) > _MAXIMUM_PACKAGE:
        raise MalformedError(f"{_SUBJECT} of {len(package)} octets is longer than {_MAXIMUM_PACKAGE}")
    reader = LittleEndianReader(package, _SUBJECT)
    package_size, version, scheme = reader.u32(), reader.u32(), reader.u32()
    statement_size, signature_size, reserved = reader.u32(), reader.u32(), reader.u32()
    if package_size != len(package) or reader.offset + statement_size + signature_size != package_size:
        raise MalformedError(
            f"{_SUBJECT}: {package_size} octets announced, {len(package)} there, statement of "
            f"{statement_size}, signature of {signature_size}"
        )
    if version != _VERSION or reserved:
        raise MalformedError(f"{_SUBJECT}: package version {version}, reserved {reserved}")
    if scheme != _SCHEME_RSA_PSS_SHA256:
        raise MalformedError(f"{_SUBJECT}: signature scheme {scheme} is not RSASSA-PSS with SHA-256")
    if not 0 < signature_size <= _MAXIMUM_SIGNATURE:
        raise MalformedError(f"{_SUBJECT}: signature of {signature_size} octets")
    statement, signature = reader.take(statement_size), reader.take(signature_size)
    reader.finish()
    return _read_statement(statement, signature)


def _read_statement(statement: bytes, signature: bytes) -> UnverifiedEnclaveReport:
    reader = LittleEndianReader(statement, _SUBJECT)
    size, version = reader.u32(), reader.u32()
    if size != len(statement) or version != _VERSION:
        raise MalformedError(f"{_SUBJECT}: statement of {size} octets, version {version}")
    enclave_data = reader.take(ENCLAVE_DATA_SIZE)
    identity = _read_identity(reader)
    modules: list[EnclaveModule] = []
    unknown = 0
    while reader.remaining:
        kind, record_size = reader.u32(), reader.u32()
        if not _VARIABLE_HEADER <= record_size <= _MAXIMUM_VARIABLE:
            raise MalformedError(f"{_SUBJECT}: variable data of {record_size} octets")
        content = reader.take(record_size - _VARIABLE_HEADER)
        if len(modules) + unknown >= _MAXIMUM_MODULES:
            raise MalformedError(f"{_SUBJECT}: more than {_MAXIMUM_MODULES} records of variable data")
        if kind == _MODULE:
            modules.append(_read_module(content))
        elif kind == 0:
            raise MalformedError(f"{_SUBJECT}: variable data of the type that means invalid")
        else:
            unknown += 1
    return UnverifiedEnclaveReport(enclave_data, identity, tuple(modules), unknown, statement, signature)


def _read_identity(reader: LittleEndianReader) -> EnclaveIdentity:
    return EnclaveIdentity(
        owner_id=reader.take(32),
        unique_id=reader.take(32),
        author_id=reader.take(32),
        family_id=reader.take(16),
        image_id=reader.take(16),
        svn=reader.u32(),
        secure_kernel_svn=reader.u32(),
        platform_svn=reader.u32(),
        flags=EnclaveFlags(reader.u32()),
        signing_level=reader.u32(),
        enclave_type=reader.u32(),
    )


def _read_module(content: bytes) -> EnclaveModule:
    reader = LittleEndianReader(content, f"{_SUBJECT}: module")
    unique_id, author_id = reader.take(32), reader.take(32)
    family_id, image_id, svn = reader.take(16), reader.take(16), reader.u32()
    name = _before_zero(reader.take(reader.remaining))
    return EnclaveModule(unique_id, author_id, family_id, image_id, svn, decode_utf16(name, _SUBJECT))


def _before_zero(octets: bytes) -> bytes:
    """The UTF-16 text before its terminating zero; what follows is padding."""
    for offset in range(0, len(octets) - 1, 2):
        if octets[offset : offset + 2] == b"\0\0":
            return octets[:offset]
    raise MalformedError(f"{_SUBJECT}: a module's name does not end")
