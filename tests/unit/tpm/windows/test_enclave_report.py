"""Reports of VBS enclaves: the only public genuine one, and each way to bend one of our own."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.windows.identity_key import identity_key_of, identity_key_of_certificate
from affiant.tpm.windows.vbs_enclave import (
    EnclaveFlags,
    VerifiedEnclaveReport,
    enclave_data_for,
    parse_enclave_report,
    verify_enclave_report,
)
from tests.samples import sample
from tests.unit.tpm.windows.certificates import self_signed
from tests.unit.tpm.windows.machine import OTHER_KEY, PRIVATE_KEY, Machine, text

DATA = enclave_data_for(b"the enclave's key")
KEY = identity_key_of(PRIVATE_KEY.public_key())


@dataclass(frozen=True)
class Report:
    """A report as the documentation lays it out, signed by the machine's identity key."""

    enclave_data: bytes = DATA
    flags: int = 0
    modules: tuple[str, ...] = ("enclave.dll", "vertdll.dll")
    records: bytes = b""
    statement_version: int = 1
    package_version: int = 1
    scheme: int = 1
    reserved: int = 0
    statement_size: int | None = None
    tail: bytes = b""
    salt: int = 32
    key: rsa.RSAPrivateKey = field(default_factory=lambda: PRIVATE_KEY)

    def statement(self) -> bytes:
        identity = bytes(range(128)) + struct.pack("<6I", 3, 4, 5, self.flags, 6, 0x10)
        body = self.enclave_data + identity
        body += b"".join(module_record(name) for name in self.modules) + self.records
        size = 8 + len(body) if self.statement_size is None else self.statement_size
        return struct.pack("<2I", size, self.statement_version) + body

    def package(self) -> bytes:
        statement = self.statement()
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=self.salt)
        return self.pack(statement, self.key.sign(statement, pss, hashes.SHA256()))

    def pack(self, statement: bytes, signature: bytes) -> bytes:
        size = 24 + len(statement) + len(signature)
        head = (size, self.package_version, self.scheme, len(statement), len(signature), self.reserved)
        return struct.pack("<6I", *head) + statement + signature + self.tail


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("<2I", kind, 8 + len(content)) + content


def module_record(name: str) -> bytes:
    content = bytes(96) + struct.pack("<I", 9) + text(name)
    return record(1, content + bytes(-len(content) % 8))


def verify(report: Report, *, data: bytes = DATA) -> VerifiedEnclaveReport:
    return verify_enclave_report(report.package(), identity_key=KEY, expected_enclave_data=data)


def test_a_true_report_is_read() -> None:
    verified = verify(Report())
    assert verified.enclave_data == DATA
    assert verified.identity.owner_id == bytes(range(32))
    assert verified.identity.image_id == bytes(range(112, 128))
    assert (verified.identity.svn, verified.identity.secure_kernel_svn, verified.identity.platform_svn) == (
        3,
        4,
        5,
    )
    assert verified.identity.enclave_type == 0x10
    assert verified.identity.debugging_disabled
    assert [(module.name, module.svn) for module in verified.modules] == [
        ("enclave.dll", 9),
        ("vertdll.dll", 9),
    ]
    assert verified.identity_key == KEY


def test_a_report_chains_to_the_key_of_a_verified_boot() -> None:
    signing_key = Machine().read().details.signing_key
    assert signing_key is not None
    verified = verify_enclave_report(Report().package(), identity_key=signing_key, expected_enclave_data=DATA)
    assert verified.identity_key == KEY


@pytest.mark.parametrize("flag", [1, 2, 4, 8, 0x80000000])
def test_a_debuggable_enclave_says_so(flag: int) -> None:
    verified = verify(Report(flags=flag))
    assert not verified.identity.debugging_disabled
    assert verified.identity.flags == EnclaveFlags(flag)


def test_a_genuine_report_beside_another_key_is_refused() -> None:
    """The attack that two clients let through for years."""
    with pytest.raises(ForgedError, match="EnclaveData"):
        verify(Report(), data=enclave_data_for(b"the attacker's key"))


def test_a_report_of_another_machine_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(Report(key=OTHER_KEY))


@pytest.mark.parametrize("salt", [0, 20, 64])
def test_another_salt_is_refused(salt: int) -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(Report(salt=salt))


def test_a_pkcs1_signature_is_refused() -> None:
    statement = Report().statement()
    signature = PRIVATE_KEY.sign(statement, padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(ForgedError, match="signature"):
        verify_enclave_report(
            Report().pack(statement, signature), identity_key=KEY, expected_enclave_data=DATA
        )


@pytest.mark.parametrize("place", [32, 104, 24 + 212, 24 + 300])
def test_one_changed_bit_of_the_statement_is_refused(place: int) -> None:
    package = bytearray(Report().package())
    package[place] ^= 1
    with pytest.raises(ForgedError):
        verify_enclave_report(bytes(package), identity_key=KEY, expected_enclave_data=DATA)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_an_expectation_of_another_size_is_misuse(size: int) -> None:
    with pytest.raises(ValueError, match="64 octets"):
        verify(Report(), data=bytes(size))


def test_unknown_records_are_counted() -> None:
    assert verify(Report(records=record(7, b"what a later version adds"))).unknown_records == 1


@pytest.mark.parametrize(
    "report",
    [
        Report(tail=b"\0"),
        Report(package_version=2),
        Report(scheme=2),
        Report(reserved=1),
        Report(statement_version=2),
        Report(statement_size=7),
        Report(enclave_data=b"short", modules=()),
        Report(records=record(0, b"")),
        Report(records=struct.pack("<2I", 1, 7)),
        Report(records=struct.pack("<2I", 1, 0xFFFFFFFF)),
        Report(records=struct.pack("<2I", 1, 200)),
        Report(records=b"\0\0\0\0"),
        Report(records=record(1, bytes(50))),
        Report(records=record(1, bytes(100) + b"x\0y\0")),
        Report(records=record(1, bytes(100) + b"\x00\xd8\0\0")),
        Report(records=record(7, b"") * 257),
        Report(records=record(7, bytes(4000)) * 20),
    ],
)
def test_what_breaks_the_format_or_a_bound_is_malformed(report: Report) -> None:
    """Though the machine itself signed it."""
    with pytest.raises(MalformedError, match="enclave report"):
        verify(report)


def test_a_signature_without_octets_is_malformed() -> None:
    package = Report().pack(Report().statement(), b"")
    with pytest.raises(MalformedError, match="signature of 0"):
        parse_enclave_report(package)


@pytest.mark.parametrize("cut", [1, 8, 256, 1000])
def test_a_truncated_report_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedError):
        parse_enclave_report(Report().package()[:-cut])


def test_short_and_other_keys_are_no_identity_keys() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(MalformedError, match="1024 bits"):
        identity_key_of(short.public_key())
    for octets in (b"", b"\x30\x03\x02\x01\x01", bytes(9000)):
        with pytest.raises(MalformedError, match="VSM identity certificate"):
            identity_key_of_certificate(octets)


def test_a_certificate_of_another_kind_of_key_is_none() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(MalformedError, match="not RSA"):
        identity_key_of_certificate(self_signed(private))
    assert identity_key_of_certificate(self_signed(PRIVATE_KEY)) == KEY


PACKAGE = Report().package()


@given(st.binary(max_size=600))
def test_arbitrary_octets_are_evidence_at_most(data: bytes) -> None:
    extended = Report(records=data).statement()
    for package in (data, Report().pack(data, b"s"), Report().pack(extended, b"s")):
        with contextlib.suppress(EvidenceError):
            parse_enclave_report(package)
    with contextlib.suppress(EvidenceError):
        identity_key_of_certificate(data)


@given(st.integers(0, len(PACKAGE) - 1), st.binary(min_size=1, max_size=8))
def test_a_spliced_report_is_refused(position: int, splice: bytes) -> None:
    package = PACKAGE[:position] + splice + PACKAGE[position + len(splice) :]
    if package == PACKAGE:
        return
    with pytest.raises(EvidenceError):
        verify_enclave_report(package, identity_key=KEY, expected_enclave_data=DATA)


# The genuine one: SQL Server with the Host Guardian Service, 2019


def genuine() -> bytes:
    return sample("vbs-enclave-report/vbs_enclave_report_pkg.bin")


def enclave_key() -> bytes:
    return sample("vbs-enclave-report/enclave_pk_rsa1.bin")


def test_the_genuine_report_verifies() -> None:
    key = identity_key_of_certificate(sample("vbs-enclave-report/hgs_health_cert.der"))
    verified = verify_enclave_report(
        genuine(), identity_key=key, expected_enclave_data=enclave_data_for(enclave_key())
    )
    identity = verified.identity
    assert (identity.svn, identity.secure_kernel_svn, identity.platform_svn) == (0, 0, 1)
    assert identity.debugging_disabled
    assert (identity.signing_level, identity.enclave_type) == (0, 0)
    assert identity.owner_id == bytes.fromhex("1020304041312111").ljust(32, b"\0")
    assert identity.author_id.hex().startswith("0437cae2")
    assert identity.author_id.hex().endswith("9598")
    assert identity.family_id == b"\xfe\xfe".ljust(16, b"\0")
    assert identity.image_id == bytes.fromhex("19171200010520130005140312012205")
    assert [module.name for module in verified.modules] == [
        "aetm-enclave.dll",
        "bcrypt.dll",
        "ucrtbase_enclave.dll",
        "vertdll.dll",
        "AzureAttest.dll",
        "bcryptPrimitives.dll",
    ]
    assert verified.modules[0].unique_id == identity.unique_id
    assert verified.unknown_records == 0


def test_the_genuine_report_binds_its_enclaves_key_and_no_other() -> None:
    key = identity_key_of_certificate(sample("vbs-enclave-report/hgs_health_cert.der"))
    assert hashlib.sha256(enclave_key()).digest() == parse_enclave_report(genuine()).enclave_data[:32]
    with pytest.raises(ForgedError, match="EnclaveData"):
        verify_enclave_report(
            genuine(), identity_key=key, expected_enclave_data=enclave_data_for(b"another key")
        )


def test_the_genuine_report_is_of_one_machine() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify_enclave_report(
            genuine(), identity_key=KEY, expected_enclave_data=enclave_data_for(enclave_key())
        )


def test_the_genuine_response_holds_the_package_and_the_certificate() -> None:
    """Four sizes, then identity, certificate and report: what SQL Server puts around them."""
    response = sample("vbs-enclave-report/mssql_hgs_attestation_response.bin")
    _, identity_size, certificate_size, report_size = struct.unpack_from("<4I", response)
    start = 16 + identity_size
    assert response[16:start] == enclave_key()
    assert response[start : start + certificate_size] == sample("vbs-enclave-report/hgs_health_cert.der")
    assert response[start + certificate_size :][:report_size] == genuine()


def test_the_enclaves_key_signed_its_exchange() -> None:
    """What the binding is for: the enclave speaks with that key."""
    blob = enclave_key()
    _, bits, exponent_size, modulus_size = struct.unpack_from("<4I", blob)
    exponent = int.from_bytes(blob[24 : 24 + exponent_size], "big")
    modulus = int.from_bytes(blob[24 + exponent_size :][:modulus_size], "big")
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    assert key.key_size == bits == 4096
    key.verify(
        sample("vbs-enclave-report/enclave_ecdh_sig.bin"),
        sample("vbs-enclave-report/enclave_ecdh_eck3.bin"),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )
