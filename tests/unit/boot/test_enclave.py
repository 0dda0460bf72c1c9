"""`affiant enclave explain` on the one real report that is public."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from affiant.cli import main
from affiant.tpm.windows.vbs_enclave import enclave_data_for
from tests.samples import sample, samples_folder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def report() -> str:
    sample("vbs-enclave-report/vbs_enclave_report_pkg.bin")  # skips where it is absent
    return f"{samples_folder()}/vbs-enclave-report/vbs_enclave_report_pkg.bin"


@pytest.fixture
def certificate() -> str:
    return f"{samples_folder()}/vbs-enclave-report/hgs_health_cert.der"


@pytest.fixture
def data() -> str:
    return enclave_data_for(sample("vbs-enclave-report/enclave_pk_rsa1.bin")).hex()


def explain(capsys: Capture, *words: str) -> tuple[int, dict[str, object]]:
    code = main(["enclave", "explain", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_real_report_verifies_for_the_key_that_it_binds(
    report: str, certificate: str, data: str, capsys: Capture
) -> None:
    code, found = explain(capsys, report, "--certificate", certificate, "--enclave-data", data)
    assert code == 0
    assert found["trust"] == "verified"
    assert [module["name"] for module in found["modules"]] == [  # type: ignore[attr-defined]  # JSON
        "aetm-enclave.dll",
        "bcrypt.dll",
        "ucrtbase_enclave.dll",
        "vertdll.dll",
        "AzureAttest.dll",
        "bcryptPrimitives.dll",
    ]
    assert main(["enclave", "explain", report, "--certificate", certificate, "--enclave-data", data]) == 0
    assert "VERIFIED" in capsys.readouterr().out


def test_a_genuine_report_beside_another_key_is_refused(
    report: str, certificate: str, capsys: Capture
) -> None:
    other = enclave_data_for(b"somebody else's key").hex()
    code, found = explain(capsys, report, "--certificate", certificate, "--enclave-data", other)
    assert code == 1
    assert "EnclaveData" in str(found["refused"])
    assert found["trust"] == "untrusted"


def test_another_machine_s_key_is_refused(report: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    path = tmp_path / "idks.pem"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    code, found = explain(capsys, report, "--identity-key", str(path), "--enclave-data", data)
    assert code == 1
    assert "signature" in str(found["refused"])


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_the_identity_key_comes_in_every_form(
    report: str, certificate: str, data: str, tmp_path: Path, capsys: Capture, encoding: Encoding, kind: str
) -> None:
    loaded = load_der_x509_certificate(sample("vbs-enclave-report/hgs_health_cert.der"))
    path = tmp_path / "key"
    path.write_bytes(
        loaded.public_bytes(encoding)
        if kind == "certificate"
        else loaded.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    )
    code, _ = explain(capsys, report, "--identity-key", str(path), "--enclave-data", data)
    assert code == 0


@pytest.mark.parametrize("given", ["nothing", "certificate", "data"])
def test_without_key_or_expectation_nothing_is_proven(
    report: str, certificate: str, data: str, capsys: Capture, given: str
) -> None:
    words = {"nothing": [], "certificate": ["--certificate", certificate], "data": ["--enclave-data", data]}
    code, found = explain(capsys, report, *words[given])
    assert code == 0
    assert found["trust"] == "untrusted"
    assert "not given" in str(found["unproven"])


def test_unusable_files_are_told(tmp_path: Path, capsys: Capture) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    assert main(["enclave", "explain", str(junk)]) == 2
    assert main(["enclave", "explain", str(junk), "--identity-key", str(junk)]) == 2
