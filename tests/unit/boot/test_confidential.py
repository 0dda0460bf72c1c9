"""`affiant boot explain` on logs of measurement registers: recognised, told, and never proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.boot.confidential import explain_confidential_log
from affiant.cli import main
from affiant.tpm.algorithms import HashAlgorithm
from tests.samples import samples_folder
from tests.unit.appraisal.boots import windows_firmware
from tests.unit.boot.test_explain import explain, page, trusts
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.test_confidential_logs import LOG, REGISTERS, trust_domain

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> str:
    (tmp_path / "log").write_bytes(LOG)
    return str(tmp_path / "log")


def test_registers_are_told_and_nothing_is_proven(log: str, capsys: Capture) -> None:
    code, found = explain(capsys, log, "--events")
    assert code == 0
    assert found["system"] == "confidential"
    assert trusts(found) == {"untrusted"}
    told = {one["index"]: one["value"]["value"] for one in found["registers"]}
    assert told == {index: value.hex() for index, value in REGISTERS.items()}
    assert [(one["name"], one["pcrs"]) for one in found["registers"]] == [
        ("RTMR 0", [1, 7]),
        ("RTMR 1", [2, 3, 4, 5, 6]),
        ("RTMR 2", [8, 9, 10, 11, 12, 13, 14, 15]),
    ]
    assert found["facts"]["secure_boot_enabled"]["value"] is True
    assert len(found["events"]) == found["log"]["events"]
    code, text = page(capsys, log, "--events")
    assert code == 0
    assert "no such quote is read here" in text
    assert "\n  + " not in text


def test_secure_boot_that_was_off_is_told(log: str, capsys: Capture) -> None:
    firmware = trust_domain()
    place = firmware.find("SecureBoot".encode("utf-16-le"))
    entry = firmware.entries[place]
    firmware.entries[place] = type(entry)(entry.pcr, entry.type, entry.data[:-1] + b"\0")
    Path(log).write_bytes(firmware.log())
    assert explain(capsys, log)[1]["facts"]["secure_boot_enabled"]["value"] is False


def test_a_log_that_contradicts_itself_is_refused(log: str, capsys: Capture) -> None:
    firmware = trust_domain()
    place = firmware.find("SecureBoot".encode("utf-16-le"))
    firmware.edit(place, data=firmware.entries[place].data[:-1] + b"\0")
    Path(log).write_bytes(firmware.log())
    code, found = explain(capsys, log)
    assert code == 1
    assert list(found) == ["refused"]


def test_logs_of_a_tpm_are_none() -> None:
    stronger = Firmware.healthy()
    stronger.banks = (HashAlgorithm.SHA384,)
    for firmware in (Firmware.healthy(), windows_firmware(), stronger):
        assert explain_confidential_log(firmware.log()) is None
    for octets in (b"", b"junk", Firmware.healthy().legacy_log(), Firmware.healthy().head()):
        assert explain_confidential_log(octets) is None


def test_sampled_logs_of_tpms_are_none() -> None:
    folder = samples_folder()
    if folder is None:
        pytest.skip("evidence samples are absent")
    logs = sorted(folder.glob("linux/*.bin"))
    assert logs
    assert [path.name for path in logs if explain_confidential_log(path.read_bytes()) is not None] == []


@pytest.mark.parametrize("option", ["--pcrs", "--quote", "--signature", "--ak", "--ima", "--cel"])
def test_what_speaks_of_pcrs_is_unusable_beside_it(log: str, capsys: Capture, option: str) -> None:
    other = Path(log).parent / "other"
    other.write_bytes(b"0: " + b"00" * 32)
    assert main(["boot", "explain", log, option, str(other)]) == 2
    error = capsys.readouterr().err
    assert f"{option} says nothing" in error


def test_no_policy_is_made_of_it_or_holds_it(log: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "policy.toml").write_text("")
    assert main(["policy", "init", "--from-log", log]) == 2
    assert main(["boot", "explain", log, "--policy", str(tmp_path / "policy.toml")]) == 2
    assert capsys.readouterr().err.count("confidential machine's registers") == 2
