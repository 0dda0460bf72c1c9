"""`affiant verify`: exit codes, one clear line for bad input, and a page that no guest can write on."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.cli import main
from affiant.model.finding import Finding
from affiant.model.passport import Passport
from affiant.model.runtime_report import RulesFreshness
from affiant.wire.passport import encode_passport, encode_passport_text
from tests.unit.wire import world

AT = "2027-01-15T08:00:01Z"  # world.NOW + 1


class Verifier:
    """Runs the command on a passport in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.root = folder / "ca.pem"
        self.root.write_bytes(world.ROOT.public_bytes(Encoding.PEM))

    def __call__(self, passport: bytes, *more: str, nonce: bytes = world.NONCE) -> tuple[int, str, str]:
        path = self.folder / "passport"
        path.write_bytes(passport)
        return self.run(str(path), "--nonce", nonce.hex(), *more)

    def run(self, passport: str, *more: str) -> tuple[int, str, str]:
        code = main(["verify", passport, "--root", str(self.root), "--now", AT, *more])
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verifier:
    return Verifier(tmp_path, capsys)


def violated() -> bytes:
    runtime = world.sign_runtime(
        replace(world.RUNTIME_REPORT, violations=(replace(world.VIOLATION, standing=True, more=2),))
    )
    return encode_passport(Passport(world.SESSION_REPORT_BYTES, runtime))


def test_a_healthy_machine_is_accepted_and_explained(verify: Verifier) -> None:
    code, out, err = verify(
        world.PASSPORT_BYTES, "--audience", world.AUDIENCE, "--device", world.DEVICE.hex()
    )
    assert (code, err) == (0, "")
    assert out.startswith("ACCEPTED: healthy\n")
    assert "level     3 (isolated)" in out
    assert (
        "not 4 (enforced code), because\n            lockdown_enabled: expected integrity, found none" in out
    )
    assert "host_attested" not in out  # belongs to level 5, not to the next one
    assert "rules     base version 7, confirmed as the newest 2.0 s before the report\n" in out
    assert "holds          kernel_text_intact: 3500 looked at" in out
    assert "inconclusive   modules_listed (audit): unreadable" in out


@pytest.mark.parametrize(
    ("freshness", "words"),
    [
        (None, "rules     base version 7, in the monitor's own image"),
        (RulesFreshness(None, False, "not reached"), "base version 7, none newer confirmed yet"),
        (RulesFreshness(9_000, True, ""), "9.0 s before the report, EXPIRED since"),
        (
            RulesFreshness(9_000, False, "no\u202e"),
            "rules base: expected confirmed as the newest, found no\\u202e",
        ),
    ],
)
def test_the_page_says_how_fresh_the_rules_are(
    verify: Verifier, freshness: RulesFreshness | None, words: str
) -> None:
    report = replace(world.RUNTIME_REPORT, freshness=freshness)
    passport = encode_passport(Passport(world.SESSION_REPORT_BYTES, world.sign_runtime(report)))
    code, out, _ = verify(passport)
    assert code == 0
    assert words in out
    said = json.loads(verify(passport, "--json")[1])["report"]["rules"]["freshness"]
    assert said == (None if freshness is None else asdict(freshness))


def test_a_violation_is_refused_with_everything_known_about_it(verify: Verifier) -> None:
    code, out, err = verify(violated())
    assert (code, err) == (1, "")
    assert out.startswith("REFUSED\n")
    for line in (
        "syscall_table_intact: still violated",
        "first seen 2027-01-15 07:59:57Z",
        "last seen  2027-01-15 07:59:58Z",
        "last good  2027-01-15 07:59:56Z",
        "sys_call_table[59] (evil, T1014)",
        "expected ffffffff81200000",
        "found    ffffffffc0001000",
        "and 2 more",
        "refused because\n  syscall_table_intact: sys_call_table[59]",
    ):
        assert line in out


def test_base64url_and_standard_input_are_read(verify: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    text = encode_passport_text(world.PASSPORT_BYTES).encode()
    assert verify(text + b"\n")[0] == 0
    for data in (text, world.PASSPORT_BYTES):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert verify.run("-", "--nonce", world.NONCE.hex())[0] == 0


def test_json_says_the_same(verify: Verifier) -> None:
    code, out, _ = verify(world.PASSPORT_BYTES, "--json")
    said = json.loads(out)
    assert (code, said["accepted"], said["session"]["level"]) == (0, True, 3)
    assert [each["outcome"] for each in said["report"]["assertions"]] == [
        "holds",
        "holds",
        "inconclusive",
        "not applicable",
    ]
    code, out, _ = verify(violated(), "--json")
    said = json.loads(out)
    assert (code, said["accepted"]) == (1, False)
    assert said["report"]["violations"][0]["findings"][0]["subject"] == "sys_call_table[59]"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--min-level", "4"), "security level: expected 4 (enforced code) or higher, found 3 (isolated)"),
        (("--require", "modules_listed"), "modules_listed: expected holds, found inconclusive: unreadable"),
        (
            ("--require", "kernel_text_intact", "--require", "nope"),
            "nope: expected holds, found not in the report",
        ),
        (("--rules", "web"), "rules: expected those of web, found those of base"),
        (("--max-rules-age", "1"), "rules base: expected confirmed within 1 s, found 3.0 s ago"),
        (("--min-rules-version", "8"), "rules base: expected version 8 or newer, found version 7"),
        (("--max-age", "1"), "kernel_text_intact: expected looked at within 1 s, found 1.1 s ago"),
        (("--audience", "bank.example"), "made for 'gate.example', not for 'bank.example'"),
        (("--device", "01" * 17), "of the device"),
        (("--now", "2027-01-15T09:30:00Z"), "expired"),
    ],
)
def test_refusals_exit_1_and_say_which(verify: Verifier, more: tuple[str, ...], words: str) -> None:
    code, out, err = verify(world.PASSPORT_BYTES, *more)
    assert (code, err) == (1, "")
    assert out.startswith("REFUSED\n")
    assert words in out


def test_another_root_and_a_replayed_report_are_refused(verify: Verifier) -> None:
    code, out, _ = verify(world.PASSPORT_BYTES, nonce=b"\x0f" * 32)
    assert code == 1
    assert "another nonce" in out
    verify.root.write_bytes(world.OTHER_AUTHORITY.root.public_bytes(Encoding.DER))
    code, out, _ = verify(world.PASSPORT_BYTES)
    assert code == 1
    assert "another root" in out
    code, out, _ = verify(world.PASSPORT_BYTES, "--json")
    assert code == 1
    assert json.loads(out)["accepted"] is False


def damaged() -> dict[str, bytes]:
    bent = bytearray(world.PASSPORT_BYTES)
    bent[1300] ^= 0x10
    serial = bytearray(world.PASSPORT_BYTES)
    # The session certificate's serial number, made negative: a library would warn of it.
    at = world.PASSPORT_BYTES.index(world.der(world.AUTHORITY.session)) + 15
    serial[at] |= 0x80
    return {
        "empty": b"",
        "truncated": world.PASSPORT_BYTES[:-1],
        "bit-flipped": bytes(bent),
        "negative serial": bytes(serial),
        "oversized": world.PASSPORT_BYTES + bytes(4 << 20),
        "text": b"not a passport!",
        "latin": "\u00fcber".encode("latin-1"),
        "truncated text": encode_passport_text(world.PASSPORT_BYTES).encode()[:-1],
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize("kind", damaged())
def test_unusable_passports_exit_2_with_one_line(verify: Verifier, kind: str) -> None:
    code, out, err = verify(damaged()[kind])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_an_empty_passport_is_told_as_such(verify: Verifier) -> None:
    assert verify(b"")[2] == "error: passport: it is empty\n"


def test_unusable_roots_and_files_exit_2(verify: Verifier) -> None:
    nonce = ("--nonce", world.NONCE.hex())
    code, _, err = verify.run(str(verify.folder / "absent"), *nonce)
    assert (code, err.count("\n")) == (2, 1)
    assert "No such file" in err
    verify.root.write_bytes(b"nothing")
    code, _, err = verify(world.PASSPORT_BYTES)
    assert code == 2
    assert err.startswith("error: root certificate")


@pytest.mark.parametrize(
    "more",
    [
        ("--nonce", "00"),
        ("--nonce", "zz" * 32),
        ("--device", "0g"),
        ("--min-level", "6"),
        ("--max-age", "0"),
        ("--max-age", "soon"),
        ("--now", "yesterday"),
    ],
)
def test_wrong_usage_exits_2(verify: Verifier, more: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as exited:
        verify(world.PASSPORT_BYTES, *more)
    assert exited.value.code == 2


def test_a_guest_cannot_write_to_the_terminal(verify: Verifier) -> None:
    """Names and bytes come out of guest memory. Control characters are in no report; others that terminals
    act upon (line separators, directions of writing) are shown, and not acted on.
    """
    finding = Finding("x\u2028ACCEPTED: healthy\u2029", "\u202egood", "\u2066\u200f", "o\u00ad1m", "T1014")
    violation = replace(world.VIOLATION, findings=(finding,))
    runtime = world.sign_runtime(replace(world.RUNTIME_REPORT, violations=(violation,)))
    code, out, _ = verify(encode_passport(Passport(world.SESSION_REPORT_BYTES, runtime)))
    assert code == 1
    assert all(sign.isprintable() for sign in out.replace("\n", ""))
    assert "\nACCEPTED" not in out
    assert "\\u2028ACCEPTED" in out
