"""`affiant boot explain --ak` on logs of Windows that bring their own quote."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.cli import main
from affiant.tpm.event_types import EventType
from tests.samples import octets, samples_folder
from tests.unit.boot.test_explain import explain, page, trusts
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.windows.machine import OTHER_KEY, PRIVATE_KEY, Machine
from tests.unit.tpm.windows.test_trust_point import certification, public, with_trust_point
from tests.unit.tpm.windows.test_windows_samples import SERVER, server_key, source

Capture = pytest.CaptureFixture[str]


def words(folder: Path, firmware: Firmware, key: bytes | None = None) -> list[str]:
    (folder / "log").write_bytes(firmware.log())
    (folder / "ak").write_bytes(public(PRIVATE_KEY) if key is None else key)
    return [str(folder / "log"), "--ak", str(folder / "ak")]


@pytest.fixture
def machine() -> Firmware:
    """A machine whose Windows quoted itself."""
    return with_trust_point(Machine())


def test_a_kept_log_is_proven_by_its_own_quote(machine: Firmware, tmp_path: Path, capsys: Capture) -> None:
    given = words(tmp_path, machine)
    code, found = explain(capsys, *given)
    assert code == 0
    assert found["proof"]["trust_point"] is True
    assert found["facts"]["vbs_enabled"] == found["facts"]["vbs_enabled"] | {
        "value": True,
        "trust": "verified",
    }
    code, text = page(capsys, *given)
    assert code == 0
    assert "Its own trust point" in text
    assert "It answers no nonce" in text


def test_it_answers_nobody_and_gives_no_level(machine: Firmware, tmp_path: Path, capsys: Capture) -> None:
    """Windows puts octets where a challenge would stand; they are not taken for one."""
    _, found = explain(capsys, *words(tmp_path, machine))
    assert found["level"]["number"] == 0
    assert "quote_fresh" in {reason["claim"] for reason in found["level"]["reasons"]}
    assert found["proof"]["quote"]["nonce"] == ""


def test_without_the_key_it_proves_nothing(machine: Firmware, tmp_path: Path, capsys: Capture) -> None:
    code, found = explain(capsys, words(tmp_path, machine)[0])
    assert code == 0
    assert trusts(found) == {"untrusted"}


def another_key(machine: Firmware) -> bytes:
    return public(OTHER_KEY)


def another_kind_of_key(machine: Firmware) -> bytes:
    return Attester().public


def a_left_out_event(machine: Firmware) -> bytes:
    place = max(place for place, entry in enumerate(machine.entries) if entry.pcr == 12)
    del machine.entries[place]
    return public(PRIVATE_KEY)


def a_certification(machine: Firmware) -> bytes:
    machine.entries = with_trust_point(Machine(), quote=certification()).entries
    return public(PRIVATE_KEY)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (another_key, "another key"),
        (another_kind_of_key, "not RSA"),
        (a_left_out_event, "PCR values"),
        (a_certification, "certification"),
    ],
)
def test_a_lie_is_refused_by_name_and_proves_nothing(
    machine: Firmware, tmp_path: Path, capsys: Capture, lie: object, reason: str
) -> None:
    key = lie(machine)  # type: ignore[operator]  # one of the functions above
    code, found = explain(capsys, *words(tmp_path, machine, key))
    assert code == 1
    assert reason in found["refused"]
    assert trusts(found) == {"untrusted"}


def test_one_that_is_not_at_the_end_proves_nothing(
    machine: Firmware, tmp_path: Path, capsys: Capture
) -> None:
    machine.add(12, EventType.EVENT_TAG, b"\0" * 8)
    code, found = explain(capsys, *words(tmp_path, machine))
    assert code == 0
    assert trusts(found) == {"untrusted"}


def test_values_of_another_boot_are_refused(machine: Firmware, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "pcrs").write_text("sha256:\n  12: " + "00" * 32)
    code, found = explain(capsys, *words(tmp_path, machine), "--pcrs", str(tmp_path / "pcrs"))
    assert code == 1
    assert "PCR values given" in found["refused"]


@pytest.mark.parametrize("option", ["--nonce", "--signature"])
def test_what_it_cannot_answer_is_told(
    machine: Firmware, tmp_path: Path, capsys: Capture, option: str
) -> None:
    given = words(tmp_path, machine)
    value = "00" if option == "--nonce" else given[-1]
    assert main(["boot", "explain", *given, option, value]) == 2
    error = capsys.readouterr().err
    assert "trust point" in error


def test_a_server_that_quoted_itself(tmp_path: Path, capsys: Capture) -> None:
    """The sample's key signs with SHA-1, so somebody has to insist."""
    if samples_folder() is None:
        pytest.skip("evidence samples are absent")
    blob = octets(source(SERVER)["pcp_quote_keys"]["bla"])
    header, size = int.from_bytes(blob[4:8], "little"), int.from_bytes(blob[16:20], "little")
    (tmp_path / "ak").write_bytes(blob[header : header + size])
    (tmp_path / "log").write_bytes(octets(source(SERVER)["event_logs"][0]))
    given = [str(tmp_path / "log"), "--ak", str(tmp_path / "ak")]
    code, found = explain(capsys, *given)
    assert code == 1
    assert "sha1" in found["refused"]
    code, found = explain(capsys, *given, "--unsafe-accept-sha1")
    assert code == 0
    assert found["proof"]["quote"]["key_name"] == server_key().name.hex()
    assert found["facts"]["vbs_enabled"]["value"] is False
    assert found["facts"]["vbs_enabled"]["trust"] == "verified"
    assert found["level"]["number"] == 0
