"""Packages of runtime reports, built as documented: no genuine one is public yet."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.windows.identity_key import identity_key_of
from affiant.tpm.windows.runtime_package import (
    VerifiedRuntimePackage,
    parse_runtime_report_package,
    verify_runtime_report_package,
)
from affiant.tpm.windows.runtime_reports import (
    read_code_integrity_report,
    read_driver_report,
    read_hotpatch_report,
)
from affiant.tpm.windows.sipa import Sipa
from tests.unit.tpm.windows.machine import OTHER_KEY, PRIVATE_KEY

NONCE = bytes(range(32))
KEY = identity_key_of(PRIVATE_KEY.public_key())
IMAGE, PUBLISHER = hashlib.sha256(b"image").digest(), hashlib.sha1(b"leaf").digest()


def report(kind: int, body: bytes) -> bytes:
    return struct.pack("<HHI", kind, 0, 8 + len(body)) + body


def driver_entry(
    offset: int,
    *,
    name: bytes = b"driver.sys",
    image: tuple[int, int] | None = None,
    oem: tuple[int, int] | None = None,
    flags: int = 0,
) -> bytes:
    """One DRIVER_INFO_ENTRY of 56 octets, its digests and OEM name from `offset` on."""
    algorithm, image_offset = image or (0x800C, offset)
    oem_size, oem_offset = oem or (6, offset + 52)
    return name.ljust(32, b"\0") + struct.pack(
        "<HHIIHHIHxx", algorithm, 0x8004, image_offset, offset + 32, 2, oem_size, oem_offset, flags
    )


def driver_report(entries: list[bytes] | None = None, *, flags: int = 0, count: int | None = None) -> bytes:
    if entries is None:
        entries = [driver_entry(12 + 2 * 56), driver_entry(12 + 2 * 56, name=b"gone.sys", flags=1)]
    number = len(entries) if count is None else count
    return report(0, struct.pack("<HH", number, flags) + b"".join(entries) + IMAGE + PUBLISHER + b"vendor")


def generation(time: int, records: bytes, *, version: int = 1, size: int | None = None) -> bytes:
    total = 16 + len(records) if size is None else size
    return struct.pack("<HHIQ", version, 0, total, time) + records


def ci_record(identifier: int, payload: bytes, *, size: int | None = None) -> bytes:
    total = 12 + len(payload) if size is None else size
    return struct.pack("<HHII", 1, 0, total, identifier) + payload


def ci_report(*generations: bytes, count: int | None = None) -> bytes:
    number = len(generations) if count is None else count
    return report(1, struct.pack("<QIxxxx", 2, number) + b"".join(generations))


DEFAULT_CI = ci_report(
    generation(200, ci_record(Sipa.CODE_INTEGRITY, b"\x01") + ci_record(0x12345, b"new")),
    generation(100, ci_record(Sipa.TEST_SIGNING, b"\0")),
)


def hotpatch_report(count: int = 1, *, name: bytes = b"ntoskrnl.exe") -> bytes:
    entry = struct.pack("<IIQII", 0xABC, 0x5F, 0xFFFFF80000000000, 4096, 3) + name.ljust(32, b"\0")
    return report(2, struct.pack("<HHI", count, 0, 0) + entry)


def default_reports() -> dict[int, bytes]:
    return {0: driver_report(), 1: DEFAULT_CI, 2: hotpatch_report()}


@dataclass(frozen=True)
class Package:
    """A package as the secure kernel would make and sign it."""

    reports: Mapping[int, bytes] = field(default_factory=default_reports)
    nonce: bytes = NONCE
    digest_of: Mapping[int, bytes] | None = None
    bitmap: int | None = None
    magic: int = 0x52545250
    version: int = 1
    digest_type: int = 0x800E
    scheme: int = 1
    salt: int = 64
    size: int | None = None
    count: int | None = None
    digests_size: int | None = None
    reports_size: int | None = None
    tail: bytes = b""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: PRIVATE_KEY)

    def encode(self) -> bytes:
        hashed = self.reports if self.digest_of is None else self.digest_of
        digests = b"".join(
            struct.pack("<HH", kind, 0) + hashlib.sha512(octets).digest() for kind, octets in hashed.items()
        )
        body = b"".join(self.reports.values())
        bitmap = sum(1 << kind for kind in hashed) if self.bitmap is None else self.bitmap
        size = 72 + len(digests) + 256 + len(body) if self.size is None else self.size
        head = struct.pack(
            "<IHHQIHHHHIIxxxx",
            self.magic,
            self.version,
            len(hashed) if self.count is None else self.count,
            bitmap,
            size,
            self.digest_type,
            len(digests) if self.digests_size is None else self.digests_size,
            0,
            self.scheme,
            256,
            len(body) if self.reports_size is None else self.reports_size,
        )
        signed = head + self.nonce + digests
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=self.salt)
        return signed + self.key.sign(signed, pss, hashes.SHA512()) + body + self.tail


def verify(package: Package, *, nonce: bytes = NONCE) -> VerifiedRuntimePackage:
    return verify_runtime_report_package(package.encode(), identity_key=KEY, expected_nonce=nonce)


def test_a_true_package_is_read() -> None:
    verified = verify(Package())
    assert verified.nonce == NONCE
    assert verified.identity_key == KEY
    assert verified.drivers is not None
    first, second = verified.drivers.drivers
    assert (first.untrusted_name, first.untrusted_oem_name, first.load_count) == ("driver.sys", "vendor", 2)
    assert (first.image_digest, first.publisher_thumbprint) == (IMAGE, PUBLISHER)
    assert (first.unloaded, second.unloaded, second.boot_driver, second.hotpatch) == (
        False,
        True,
        False,
        False,
    )
    assert verified.drivers.is_complete
    assert not verified.drivers.includes_boot_drivers
    assert verified.code_integrity is not None
    assert verified.code_integrity.current_generation == 2
    newest, oldest = verified.code_integrity.generations
    assert (newest.commit_time, oldest.commit_time) == (200, 100)
    assert [record.name for record in newest.records] == ["CODE_INTEGRITY", "0x00012345"]
    assert oldest.records[0].payload == b"\0"
    assert verified.hotpatches is not None
    (patch,) = verified.hotpatches.hotpatches
    assert (patch.base_checksum, patch.base_time_date_stamp, patch.latest_sequence_number) == (0xABC, 0x5F, 3)
    assert patch.untrusted_name == "ntoskrnl.exe"
    assert verified.unknown_types == ()


def test_a_report_that_was_not_asked_for_is_none() -> None:
    verified = verify(Package({0: driver_report()}))
    assert verified.drivers is not None
    assert (verified.code_integrity, verified.hotpatches) == (None, None)


def test_an_unknown_report_is_named() -> None:
    assert verify(Package({5: report(5, b"of a later Windows")})).unknown_types == (5,)


@pytest.mark.parametrize(("flags", "complete"), [(0, True), (1, False), (2, False), (4, True)])
def test_a_report_that_leaves_drivers_out_says_so(flags: int, complete: bool) -> None:
    verified = verify(Package({0: driver_report(flags=flags)}))
    assert verified.drivers is not None
    assert verified.drivers.is_complete is complete
    assert verified.drivers.includes_boot_drivers is (flags == 4)


def test_a_driver_without_digests_has_none() -> None:
    entry = driver_entry(12 + 56, image=(0, 0), oem=(0, 0), flags=6, name=b"\xff" * 32)
    verified = verify(Package({0: driver_report([entry])}))
    assert verified.drivers is not None
    (driver,) = verified.drivers.drivers
    assert driver.image_digest is None
    assert driver.untrusted_oem_name == ""
    assert driver.untrusted_name == "\\xff" * 32
    assert (driver.boot_driver, driver.hotpatch) == (True, True)


def test_a_replayed_package_is_refused() -> None:
    with pytest.raises(ForgedError, match="nonce"):
        verify(Package(), nonce=bytes(32))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_of_another_size_is_misuse(size: int) -> None:
    with pytest.raises(ValueError, match="32 octets"):
        verify(Package(), nonce=bytes(size))


def test_a_package_of_another_machine_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(Package(key=OTHER_KEY))


def test_another_salt_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(Package(salt=32))


def test_a_report_that_was_exchanged_is_refused() -> None:
    """A driver taken out of the list: the signature covers its digest."""
    without = default_reports() | {0: driver_report([driver_entry(12 + 56)])}
    with pytest.raises(ForgedError, match="report of type 0"):
        verify(Package(without, digest_of=default_reports()))


@pytest.mark.parametrize("place", [5, 8, 40, 72, 76])
def test_one_changed_bit_of_the_signed_part_is_refused(place: int) -> None:
    package = bytearray(Package().encode())
    package[place] ^= 1
    with pytest.raises(EvidenceError):
        verify_runtime_report_package(bytes(package), identity_key=KEY, expected_nonce=NONCE)


@pytest.mark.parametrize(
    "package",
    [
        Package(magic=0x52545251),
        Package(version=2),
        Package(digest_type=0x800C),
        Package(scheme=0),
        Package(size=1),
        Package(tail=b"\0"),
        Package(count=2),
        Package(count=0),
        Package(digests_size=0),
        Package(reports_size=0),
        Package({}),
        Package(bitmap=3),
        Package({0: driver_report()}, digest_of={1: driver_report()}),
        Package({0: driver_report(), 1: driver_report()}),
        Package({64: report(64, b"")}, bitmap=0),
        Package({0: struct.pack("<HHI", 0, 0, 7)}),
        Package({0: struct.pack("<HHI", 0, 0, 9)}),
        Package({0: report(0, b"")}),
    ],
)
def test_what_breaks_the_format_is_malformed(package: Package) -> None:
    """Though the machine itself signed it."""
    with pytest.raises(MalformedError):
        verify(package)


@pytest.mark.parametrize(
    ("read", "octets"),
    [
        (read_driver_report, driver_report(count=3)),
        (read_driver_report, driver_report([driver_entry(68, image=(0x800C, 12))])),
        (read_driver_report, driver_report([driver_entry(68, image=(0x800C, 0xFFFFFFFF))])),
        (read_driver_report, driver_report([driver_entry(68, image=(0x800C, 68 + 27))])),
        (read_driver_report, driver_report([driver_entry(68, image=(0x1234, 68))])),
        (read_driver_report, driver_report([driver_entry(68, oem=(600, 68))])),
        (read_driver_report, driver_report([driver_entry(68, oem=(10, 0))])),
        (read_driver_report, hotpatch_report()),
        (read_driver_report, driver_report() + b"\0"),
        (read_code_integrity_report, ci_report(count=1)),
        (read_code_integrity_report, ci_report(count=0xFFFFFFFF)),
        (read_code_integrity_report, ci_report(generation(1, b""), count=0)),
        (read_code_integrity_report, ci_report(generation(1, b"", version=2))),
        (read_code_integrity_report, ci_report(generation(1, b"", size=15))),
        (read_code_integrity_report, ci_report(generation(1, b"", size=17))),
        (read_code_integrity_report, ci_report(generation(1, b"\0"))),
        (read_code_integrity_report, ci_report(generation(1, ci_record(1, b"", size=11)))),
        (read_code_integrity_report, ci_report(generation(1, ci_record(1, b"", size=13)))),
        (read_code_integrity_report, ci_report(generation(1, ci_record(1, b"") * 8193))),
        (read_code_integrity_report, driver_report()),
        (read_hotpatch_report, hotpatch_report(2)),
        (read_hotpatch_report, hotpatch_report(0)),
        (read_hotpatch_report, report(2, b"")),
    ],
)
def test_a_report_that_breaks_its_format_is_malformed(read: object, octets: bytes) -> None:
    with pytest.raises(MalformedError):
        read(octets)  # type: ignore[operator]


def test_packages_have_a_bound() -> None:
    with pytest.raises(MalformedError, match="longer"):
        parse_runtime_report_package(bytes((1 << 22) + 1))


PACKAGE = Package().encode()


@given(st.binary(max_size=500))
def test_arbitrary_octets_are_evidence_at_most(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        parse_runtime_report_package(data)
    for kind, read in enumerate((read_driver_report, read_code_integrity_report, read_hotpatch_report)):
        for octets in (data, report(kind, data)):
            with contextlib.suppress(EvidenceError):
                read(octets)


@given(st.integers(0, len(PACKAGE) - 1), st.binary(min_size=1, max_size=8))
def test_a_spliced_package_is_refused(position: int, splice: bytes) -> None:
    package = PACKAGE[:position] + splice + PACKAGE[position + len(splice) :]
    if package == PACKAGE:
        return
    with pytest.raises(EvidenceError):
        verify_runtime_report_package(package, identity_key=KEY, expected_nonce=NONCE)
