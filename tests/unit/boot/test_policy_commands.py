"""`affiant policy`: made from a log, tried on logs, and compared in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.appraisal.policy import AcceptedMonitor, AppraisalPolicy
from affiant.appraisal.policy_file import parse_policy
from affiant.cli import main
from affiant.model.launch_record import LaunchRecord
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.efi_variable import EFI_GLOBAL
from affiant.tpm.signature_database import encode_certificate_list
from affiant.wire.keys import point_of
from affiant.wire.launch_record import encode_launch_record
from tests.unit.appraisal.test_boot_judgement import STRANGER, replace_text, replace_variable
from tests.unit.boot.test_explain import Files
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def machine(tmp_path: Path) -> Files:
    return Files(tmp_path, Firmware.healthy()).write()


@pytest.fixture
def policy(machine: Files, capsys: Capture) -> str:
    path = machine.path("policy.toml")
    assert main(["policy", "init", "--from-log", machine.path("log"), "--output", path]) == 0
    capsys.readouterr()
    return path


def updated(machine: Files) -> str:
    """The log after an update: another kernel, a longer dbx, another command line."""
    firmware = Firmware.healthy()
    position = firmware.find(b"/vmlinuz\0", pcr=9)
    firmware.entries[position] = type(firmware.entries[position])(9, 13, b"/vmlinuz\0", b"a newer kernel")
    before = encode_certificate_list(EFI_GLOBAL, b"\x30\x82\x00\x04keys")
    replace_variable(firmware, "dbx", before + STRANGER)
    replace_text(firmware, " ro", " ro audit=1")
    (machine.folder / "updated").write_bytes(firmware.log())
    return machine.path("updated")


def test_the_made_policy_accepts_its_machine_with_and_without_proof(
    machine: Files, policy: str, capsys: Capture
) -> None:
    assert main(["policy", "check", policy, machine.path("log")]) == 0
    assert "NOTHING PROVES" in capsys.readouterr().out
    assert main(["policy", "check", policy, *machine.quoted]) == 0
    assert "POLICY: accepted" in capsys.readouterr().out
    assert main(["boot", "explain", *machine.quoted, "--policy", policy, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["policy"]
    assert (found["accepted"], found["trust"], found["findings"]) == (True, "verified", [])


def test_a_machine_that_the_policy_refuses_is_exit_code_one(
    machine: Files, policy: str, capsys: Capture
) -> None:
    assert main(["boot", "explain", updated(machine), "--policy", policy]) == 1
    assert "POLICY: refused" in capsys.readouterr().out
    assert main(["policy", "check", policy, updated(machine), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["accepted"] is False
    assert {"file /vmlinuz", "command line"} <= {finding["subject"] for finding in found["findings"]}


def test_an_update_is_told_in_words(machine: Files, policy: str, capsys: Capture) -> None:
    log = updated(machine)
    new = machine.path("new.toml")
    assert main(["policy", "init", "--from-log", log, "--output", new]) == 0
    assert main(["policy", "diff", policy, new, log]) == 0
    text = capsys.readouterr().out
    assert "kernel /vmlinuz is another one" in text
    assert "dbx update: 1 more revocations, 2 in all" in text
    assert "parameter added: audit=1" in text
    assert "OLD REFUSES" in text
    assert "NEW accepts" in text
    # Two logs are compared as the policies that they would make, and nothing else.
    assert main(["policy", "diff", machine.path("log"), log]) == 0
    assert capsys.readouterr().out.split("\n\n")[0].strip() == text.split("\n\n")[0].strip()
    assert main(["policy", "diff", new, policy, log]) == 1


def test_equal_policies_have_nothing_to_tell(policy: str, capsys: Capture) -> None:
    assert main(["policy", "diff", policy, policy, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == []
    assert found["old"] == found["new"]


def test_a_policy_is_never_overwritten(machine: Files, policy: str, capsys: Capture) -> None:
    before = Path(policy).read_text()
    assert main(["policy", "init", "--from-log", machine.path("log"), "--output", policy]) == 2
    assert Path(policy).read_text() == before


def test_no_policy_is_made_from_forged_evidence(machine: Files, capsys: Capture) -> None:
    (machine.folder / "signature").write_bytes((machine.folder / "signature").read_bytes()[:-1] + b"\0")
    assert main(["policy", "init", "--from-log", *machine.quoted]) in (1, 2)
    assert "format" not in capsys.readouterr().out


def test_a_policy_alone_is_read_strictly(machine: Files, policy: str, capsys: Capture) -> None:
    assert main(["policy", "check", policy]) == 0
    assert "digest" in capsys.readouterr().out
    bad = machine.folder / "bad.toml"
    bad.write_text("format = 1\n[boot]\nimage = []\n")
    assert main(["policy", "check", str(bad)]) == 2
    assert "no rule 'image'" in capsys.readouterr().err
    assert main(["policy", "check", policy, "--pcrs", machine.path("pcrs")]) == 2


def test_the_head_says_what_the_policy_rests_on(machine: Files, capsys: Capture) -> None:
    main(["policy", "init", "--from-log", machine.path("log")])
    assert "NOTHING PROVES" in capsys.readouterr().out
    main(["policy", "init", "--from-log", *machine.quoted])
    assert "a verified quote proves" in capsys.readouterr().out


RECORD = LaunchRecord(
    monitor_image=b"\x11" * 32,
    monitor_version="0.1.0",
    security_version=3,
    debug=False,
    service_root=b"\x22" * 32,
    identity_key=point_of(ec.generate_private_key(ec.SECP256R1()).public_key()),
)
MONITOR = AcceptedMonitor(RECORD.monitor_image, RECORD.monitor_version, RECORD.security_version)


def with_record(
    machine: Files, record: LaunchRecord = RECORD, *, launched: LaunchRecord | None = None
) -> list[str]:
    """Write a record, and a quote of a PCR 17 that holds `launched`; return the words for `policy init`."""
    (machine.folder / "record").write_bytes(encode_launch_record(record))
    if launched is None:
        return ["--from-log", machine.path("log"), "--launch-record", machine.path("record")]
    attester, pcrs = Attester(), machine.firmware.pcrs()
    pcrs[17] = expected_pcr17(encode_launch_record(launched))
    attest = attester.attest(pcrs, selected=[*range(10), 14, 17])
    for name, content in {
        "quote": attest,
        "signature": attester.sign(attest),
        "ak": attester.public,
        "pcrs": json.dumps({"sha256": {str(i): v.hex() for i, v in pcrs.items()}}).encode(),
    }.items():
        (machine.folder / name).write_bytes(content)
    proof = [*machine.quoted[1:], "--pcrs", machine.path("pcrs")]
    return ["--from-log", machine.path("log"), *proof, "--launch-record", machine.path("record")]


def made(machine: Files, words: list[str], capsys: Capture) -> tuple[AppraisalPolicy, str]:
    assert main(["policy", "init", *words]) == 0
    text = capsys.readouterr().out
    return parse_policy(text.encode()).policy, text


def test_a_policy_accepts_the_monitor_of_a_launch_record(machine: Files, capsys: Capture) -> None:
    """Not the record itself: its identity key is of one launch, and the machine will be launched again."""
    policy, text = made(machine, with_record(machine), capsys)
    assert (policy.monitors, policy.minimum_security_version) == (frozenset({MONITOR}), 3)
    assert policy.boot.launch_records is None
    assert "launch record that NOTHING PROVES was launched" in text
    (machine.folder / "made.toml").write_text(text)
    assert main(["policy", "check", machine.path("made.toml"), machine.path("log")]) == 0


def test_a_quote_proves_that_the_record_was_launched(machine: Files, capsys: Capture) -> None:
    policy, text = made(machine, with_record(machine, launched=RECORD), capsys)
    assert policy.monitors == frozenset({MONITOR})
    assert "launch record that the quoted PCR 17 holds" in text


def test_the_record_of_another_launch_is_refused(machine: Files, capsys: Capture) -> None:
    """Else a monitor that was never launched here would come into the policy beside a good quote."""
    other = replace(RECORD, monitor_image=b"\x66" * 32)
    assert main(["policy", "init", *with_record(machine, other, launched=RECORD)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" or "REFUSED" in captured.out
    assert "holds another launch" in captured.out + captured.err


def test_rules_that_the_monitor_may_take_and_debug_access_are_told(machine: Files, capsys: Capture) -> None:
    record = replace(RECORD, rules_root=b"\x33" * 32, fleet="web", debug=True)
    policy, text = made(machine, with_record(machine, record), capsys)
    assert policy.rules_roots == frozenset({b"\x33" * 32})
    assert policy.fleets == frozenset({"web"})
    assert "debug access" in text


@pytest.mark.parametrize("content", [b"", b"\xa0", b"x" * 1025], ids=["empty", "no record", "too long"])
def test_what_is_no_launch_record_is_unusable(machine: Files, capsys: Capture, content: bytes) -> None:
    words = with_record(machine)
    (machine.folder / "record").write_bytes(content)
    assert main(["policy", "init", *words]) == 2
    assert "launch record" in capsys.readouterr().err
