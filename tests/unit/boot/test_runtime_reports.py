"""`affiant enclave explain` on packages of runtime reports, made as a secure kernel makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.cli import main
from tests.unit.tpm.windows.machine import OTHER_KEY, PRIVATE_KEY
from tests.unit.tpm.windows.test_runtime_package import (
    NONCE,
    Package,
    default_reports,
    driver_entry,
    driver_report,
    report,
)

Capture = pytest.CaptureFixture[str]


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The words that verify a truthful package."""
    (tmp_path / "package").write_bytes(Package().encode())
    (tmp_path / "idks").write_bytes(pem(PRIVATE_KEY))
    (tmp_path / "other").write_bytes(pem(OTHER_KEY))
    key = str(tmp_path / "idks")
    return [str(tmp_path / "package"), "--identity-key", key, "--nonce", NONCE.hex()]


def explain(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["enclave", "explain", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def page(capsys: Capture, *words: str) -> tuple[int, str]:
    code = main(["enclave", "explain", *words])
    return code, capsys.readouterr().out


def test_a_package_that_answers_the_nonce_is_proven_but_for_its_names(
    words: list[str], capsys: Capture
) -> None:
    code, found = explain(capsys, *words)
    assert code == 0
    assert (found["kind"], found["trust"], found["nonce"]) == ("runtime_reports", "verified", NONCE.hex())
    assert found["facts"]["driver_list_complete"]["value"] is True
    driver = found["drivers"]["list"][0]
    assert driver["trust"] == "verified"
    assert driver["name"] == {"value": "driver.sys", "trust": "untrusted"}
    assert found["code_integrity"]["generations"][0]["records"][0]["name"] == "CODE_INTEGRITY"
    assert found["hotpatches"][0]["name"] == {"value": "ntoskrnl.exe", "trust": "untrusted"}
    code, text = page(capsys, *words)
    assert code == 0
    assert "VERIFIED" in text
    assert "said to be gone.sys, loaded 2 times, unloaded" in text


def test_a_list_that_leaves_drivers_out_says_so(words: list[str], capsys: Capture) -> None:
    Path(words[0]).write_bytes(Package({0: driver_report(flags=2)}).encode())
    _, found = explain(capsys, *words)
    assert found["facts"]["driver_list_complete"] == {
        "value": False,
        "trust": "verified",
        "source": "the driver report's flags",
    }
    assert "INCOMPLETE" in page(capsys, *words)[1]


def test_what_was_not_asked_for_is_told_as_unknown(words: list[str], capsys: Capture) -> None:
    Path(words[0]).write_bytes(Package({5: report(5, b"of a later Windows")}).encode())
    _, found = explain(capsys, *words)
    assert found["facts"]["driver_list_complete"]["value"] is None
    assert (found["drivers"], found["code_integrity"], found["hotpatches"]) == (None, None, None)
    assert found["unknown_types"] == [5]
    assert page(capsys, *words)[1].count("not reported") == 3


def replayed(words: list[str]) -> list[str]:
    return [*words[:-1], "00" * 32]


def another_machine(words: list[str]) -> list[str]:
    return [words[0], "--identity-key", words[2].replace("idks", "other"), *words[3:]]


def hidden_driver(words: list[str]) -> list[str]:
    without = default_reports() | {0: driver_report([driver_entry(12 + 56)])}
    Path(words[0]).write_bytes(Package(without, digest_of=default_reports()).encode())
    return words


@pytest.mark.parametrize(
    ("lie", "reason"),
    [(replayed, "nonce"), (another_machine, "signature"), (hidden_driver, "report of type 0")],
)
def test_a_lie_is_refused_by_name_and_proves_nothing(
    words: list[str], capsys: Capture, lie: Any, reason: str
) -> None:
    bent = lie(words)
    code, found = explain(capsys, *bent)
    assert code == 1
    assert reason in found["refused"]
    assert '"verified"' not in json.dumps(found)
    code, text = page(capsys, *bent)
    assert code == 1
    assert "REFUSED" in text
    assert "VERIFIED" not in text


@pytest.mark.parametrize(("kept", "missing"), [(1, "key and the nonce"), (3, "the nonce")])
def test_without_key_or_nonce_nothing_is_proven(
    words: list[str], capsys: Capture, kept: int, missing: str
) -> None:
    code, found = explain(capsys, *words[:kept])
    assert code == 0
    assert missing in found["unproven"]
    assert '"verified"' not in json.dumps(found)
    assert "NOTHING IS PROVEN" in page(capsys, *words[:kept])[1]


def test_no_name_moves_the_reader_s_cursor(words: list[str], capsys: Capture) -> None:
    entry = driver_entry(12 + 56, name=b"\x1b[2J\r\nVERIFIED")
    Path(words[0]).write_bytes(Package({0: driver_report([entry])}).encode())
    _, text = page(capsys, words[0])
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\nVERIFIED" not in text


def test_unusable_packages_are_told_in_one_line(words: list[str], capsys: Capture) -> None:
    Path(words[0]).write_bytes(Package().encode()[:-1])
    assert main(["enclave", "explain", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runtime report package")
    assert error.count("\n") == 1


def test_expectations_of_the_other_kind_are_told(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["enclave", "explain", words[0], "--enclave-data", "00" * 64]) == 2
    assert "--nonce" in capsys.readouterr().err
    (tmp_path / "enclave").write_bytes(b"no package of runtime reports")
    assert main(["enclave", "explain", str(tmp_path / "enclave"), "--nonce", "00" * 32]) == 2
    assert "--enclave-data" in capsys.readouterr().err


def test_a_nonce_of_another_size_is_a_usage_error(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["enclave", "explain", words[0], "--nonce", "00"])
    assert stopped.value.code == 2
    assert "1 bytes instead of 32" in capsys.readouterr().err
