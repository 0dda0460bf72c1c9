"""Verifying what GetRuntimeAttestationReport returns: the secure kernel's word on the running kernel.

RUNTIME_REPORT_PACKAGE_HEADER (`winnt.h` of the Windows SDK since 10.0.26100): a header of 40 octets, the
caller's nonce of 32, a digest for each report; then the signature over all that, RSASSA-PSS with
SHA-512 and a salt of 64 octets by the machine's IDKS; then the reports, which the digests cover. No
genuine package is public yet: the layout is read as documented.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.windows.identity_key import IdentityKey
from affiant.tpm.windows.little_endian import LittleEndianReader
from affiant.tpm.windows.runtime_reports import (
    CodeIntegrityReport,
    DriverReport,
    HotpatchReport,
    ReportType,
    read_code_integrity_report,
    read_driver_report,
    read_hotpatch_report,
)

__all__ = [
    "NONCE_SIZE",
    "UnverifiedRuntimePackage",
    "VerifiedRuntimePackage",
    "parse_runtime_report_package",
    "verify_runtime_report_package",
]

NONCE_SIZE: Final = 32
"""Octets of a caller's nonce (RUNTIME_REPORT_NONCE_SIZE)."""

_SUBJECT: Final = "runtime report package"
_MAGIC: Final = 0x52545250
_VERSION: Final = 1
_CALG_SHA_512: Final = 0x800E
_SCHEME_RSA_PSS_SHA512: Final = 1
_SALT: Final = 64
_HEADER: Final = 40
_DIGEST_HEADER: Final = 68
_DIGEST: Final = 64
_REPORT_HEADER: Final = 8
_MAXIMUM_PACKAGE: Final = 1 << 22
_MAXIMUM_REPORTS: Final = 64  # the bitmap of types has 64 bits
_MAXIMUM_SIGNATURE: Final = 1024


@dataclass(frozen=True, slots=True)
class UnverifiedRuntimePackage:
    """Unverified: a decoded package. `signed` is what `signature` must cover.

    `digests` and `reports` are by report type; reports are octets, header included.
    """

    nonce: bytes
    digests: dict[int, bytes]
    reports: dict[int, bytes]
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedRuntimePackage:
    """What the secure kernel of the machine with `identity_key` says about its running kernel.

    Made by `verify_runtime_report_package` alone. A report that was not in the package is None.
    `unknown_types` are types of verified reports that are not read here.
    """

    nonce: bytes
    drivers: DriverReport | None
    code_integrity: CodeIntegrityReport | None
    hotpatches: HotpatchReport | None
    unknown_types: tuple[int, ...]
    identity_key: IdentityKey


def verify_runtime_report_package(
    package: bytes, *, identity_key: IdentityKey, expected_nonce: bytes
) -> VerifiedRuntimePackage:
    """Verify a package against the IDKS of a machine, and read its reports.

    `identity_key` is `WindowsBoot.details.signing_key` of that machine's verified boot (or another key for
    which the caller has reasons); `expected_nonce` are the 32 octets that were asked with.

    When it returns,

    - the signature over header, nonce and digests is by `identity_key`, RSASSA-PSS with SHA-512, salt 64;
    - the nonce is `expected_nonce`;
    - each report's SHA-512 is the one signed for its type; no signed digest is without its report, no
      report without a digest, and the signed bitmap names just these types;
    - every report of a known type is decoded, whole.

    Not checked: whether these drivers, policies and patches are welcome, whether HVCI was on (that is the
    boot log's), and whether drivers are missing (`DriverReport.is_complete`; those of the boot are in the
    boot log). Raises MalformedError or ForgedError; ValueError when the nonce is not of 32 octets.
    """
    if len(expected_nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} octets, not {len(expected_nonce)}")
    parsed = parse_runtime_report_package(package)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=_SALT)
    try:
        identity_key.key.verify(parsed.signature, parsed.signed, pss, hashes.SHA512())
    except InvalidSignature:
        raise ForgedError(
            f"{_SUBJECT}: the signature is not by this identity key over these digests"
        ) from None
    if not hmac.compare_digest(parsed.nonce, expected_nonce):
        raise ForgedError(f"{_SUBJECT}: the nonce is not the one expected: it answers to something else")
    for kind, report in parsed.reports.items():
        if not hmac.compare_digest(hashlib.sha512(report).digest(), parsed.digests[kind]):
            raise ForgedError(f"{_SUBJECT}: the report of type {kind} is not the one whose digest is signed")
    drivers = parsed.reports.get(ReportType.DRIVER)
    code_integrity = parsed.reports.get(ReportType.CODE_INTEGRITY)
    hotpatches = parsed.reports.get(ReportType.HOTPATCH)
    return VerifiedRuntimePackage(
        nonce=parsed.nonce,
        drivers=None if drivers is None else read_driver_report(drivers),
        code_integrity=None if code_integrity is None else read_code_integrity_report(code_integrity),
        hotpatches=None if hotpatches is None else read_hotpatch_report(hotpatches),
        unknown_types=tuple(sorted(parsed.reports.keys() - set(ReportType))),
        identity_key=identity_key,
    )


def parse_runtime_report_package(package: bytes) -> UnverifiedRuntimePackage:
    """Read a package; nothing about it is verified.

    Raises MalformedError: sizes that do not add up, another magic, version, digest or scheme, a type
    twice, digests and reports of different types, more than 4 MiB, octets left over.
    """
    if len(package) > _MAXIMUM_PACKAGE:
        raise MalformedError(f"{_SUBJECT} of {len(package)} octets is longer than {_MAXIMUM_PACKAGE}")
    reader = LittleEndianReader(package, _SUBJECT)
    magic, version, count, bitmap = reader.u32(), reader.u16(), reader.u16(), reader.u64()
    size, digest_type, digests_size, _ = reader.u32(), reader.u16(), reader.u16(), reader.u16()
    scheme, signature_size, reports_size = reader.u16(), reader.u32(), reader.u32()
    if magic != _MAGIC or version != _VERSION:
        raise MalformedError(f"{_SUBJECT}: magic 0x{magic:08x}, version {version}")
    if digest_type != _CALG_SHA_512 or scheme != _SCHEME_RSA_PSS_SHA512:
        raise MalformedError(
            f"{_SUBJECT}: digests 0x{digest_type:04x}, scheme {scheme}: not SHA-512 and RSASSA-PSS with it"
        )
    if not 0 < count <= _MAXIMUM_REPORTS or digests_size != count * _DIGEST_HEADER:
        raise MalformedError(f"{_SUBJECT}: {count} reports with {digests_size} octets of digests")
    if not 0 < signature_size <= _MAXIMUM_SIGNATURE:
        raise MalformedError(f"{_SUBJECT}: signature of {signature_size} octets")
    signed_size = _HEADER + NONCE_SIZE + digests_size
    if size != len(package) or signed_size + signature_size + reports_size != size:
        raise MalformedError(f"{_SUBJECT}: {size} octets announced, {len(package)} there")
    reader.take(_HEADER - reader.offset)
    nonce = reader.take(NONCE_SIZE)
    digests = _read_digests(reader, count)
    signature = reader.take(signature_size)
    reports = _read_reports(reader, count)
    if reports.keys() != digests.keys() or bitmap != sum(1 << kind for kind in digests):
        raise MalformedError(f"{_SUBJECT}: bitmap, digests and reports are not of the same types")
    return UnverifiedRuntimePackage(nonce, digests, reports, package[:signed_size], signature)


def _read_digests(reader: LittleEndianReader, count: int) -> dict[int, bytes]:
    digests: dict[int, bytes] = {}
    for _ in range(count):
        kind, _, digest = reader.u16(), reader.u16(), reader.take(_DIGEST)
        if kind >= _MAXIMUM_REPORTS or kind in digests:
            raise MalformedError(f"{_SUBJECT}: digest of type {kind}, unknown to the bitmap or twice")
        digests[kind] = digest
    return digests


def _read_reports(reader: LittleEndianReader, count: int) -> dict[int, bytes]:
    reports: dict[int, bytes] = {}
    for _ in range(count):
        header = reader.take(_REPORT_HEADER)
        kind, size = int.from_bytes(header[:2], "little"), int.from_bytes(header[4:], "little")
        if size < _REPORT_HEADER or kind in reports:
            raise MalformedError(f"{_SUBJECT}: report of type {kind} with {size} octets, or twice")
        reports[kind] = header + reader.take(size - _REPORT_HEADER)
    reader.finish()
    return reports
