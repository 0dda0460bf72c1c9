"""The demo as a newcomer runs it: what it says holds, twice in a row, and it can be stopped at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.attested import AFFIANT, until
from tests.lab.processes import descendants, exit_codes, none_but

_DEMO_SECONDS = 400
_STEPS = (
    "fetch Debian's signed kernel",
    "reference image of that kernel",
    "start the attestation service",
    "tell it what to trust",
    "start the guest under the launcher",
    "the guest boots through Secure Boot",
    "ask the monitor for a passport",
    "verify it offline",
    "tamper with the live kernel",
    "verify that one",
    "put the bytes back, ask once more",
)


@dataclass(frozen=True)
class Told:
    """What a whole demo printed as JSON, and where the machine's folder and the service's root are."""

    document: dict[str, Any]
    root: Path
    folder: Path

    def passport(self, label: str) -> dict[str, Any]:
        (found,) = [each for each in self.document["passports"] if each["label"] == label]
        return dict(found)


@pytest.fixture(scope="module", autouse=True)
def before(home: Path) -> dict[int, str]:
    """Remember what runs already."""
    return descendants()


@pytest.fixture(scope="module")
def told(home: Path, before: dict[int, str]) -> Iterator[Told]:
    """A demo that was told to keep everything, and is ended as its last words say."""
    done = subprocess.run(
        [*AFFIANT, "demo", "--json", "--keep"],
        capture_output=True,
        text=True,
        timeout=_DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    service_folder = home / "demo-service"
    yield Told(json.loads(done.stdout), service_folder / "root.pem", home / "vms" / "demo")
    (ending,) = [line for line in done.stderr.splitlines() if " vm stop demo; kill " in line]
    subprocess.run(ending, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert not none_but(before)


def test_the_json_has_its_form(told: Told) -> None:
    document = told.document
    assert set(document) == {"vm", "kernel", "acceleration", "seconds", "steps", "passports"}
    assert document["vm"] == "demo"
    assert document["acceleration"] in ("kvm", "tcg")
    assert tuple(step["title"] for step in document["steps"]) == _STEPS
    for step in document["steps"]:
        assert set(step) == {"title", "proved", "seconds", "command"}
        assert step["proved"]
        assert step["seconds"] >= 0
    assert document["seconds"] >= sum(step["seconds"] for step in document["steps"]) - 1
    assert [passport["label"] for passport in document["passports"]] == ["healthy", "tampered", "repaired"]
    for passport in document["passports"]:
        assert set(passport) == {
            *("label", "nonce", "passport", "accepted", "findings", "remarks", "session", "report")
        }
        assert len(bytes.fromhex(passport["nonce"])) == 32
        assert bytes.fromhex(passport["passport"])
        assert {"id", "device", "level", "level_title", "shortfalls", "kernel", "reference"} <= set(
            passport["session"]
        )
    # One session, and reports of it in order.
    assert len({passport["session"]["id"] for passport in document["passports"]}) == 1
    numbers = [passport["report"]["sequence"] for passport in document["passports"]]
    assert numbers == sorted(set(numbers))


def test_the_healthy_guest_is_accepted_at_level_4_and_told_why_not_5(told: Told) -> None:
    healthy = told.passport("healthy")
    assert healthy["accepted"] is True
    assert healthy["findings"] == []
    assert healthy["session"]["level"] == 4
    (missing,) = healthy["session"]["shortfalls"]
    assert (missing["level"], missing["claim"]) == (5, "host_attested")
    assert missing["explanation"]
    assert {each["outcome"] for each in healthy["report"]["assertions"]} == {"holds"}
    assert healthy["report"]["violations"] == []
    assert healthy["session"]["reference"]


def test_the_tampered_guest_is_refused_with_place_expected_and_found(told: Told) -> None:
    tampered = told.passport("tampered")
    assert tampered["accepted"] is False
    violations = {each["assertion"]: each for each in tampered["report"]["violations"]}
    hook = violations["kernel_text_intact"]
    entry = violations["syscall_table_intact"]
    assert hook["standing"] is entry["standing"] is True
    (finding,) = hook["findings"]
    assert finding["subject"] == "tcp4_seq_show+0x5"
    assert finding["found"] == "48b88877665544332211ffe0"
    assert len(finding["expected"]) == len(finding["found"])
    assert finding["expected"] != finding["found"]
    (finding,) = entry["findings"]
    assert finding["subject"] == "sys_call_table[62]"
    assert finding["expected"].startswith("__x64_sys_kill ")
    assert finding["found"].split()[0].endswith("sys_getpid+0x0")
    # Since when: between the last good look and the first bad one.
    for violation in (hook, entry):
        assert 0 < violation["last_good_ms"] < violation["first_seen_ms"] <= violation["last_seen_ms"]
    refused_for = {each["subject"] for each in tampered["findings"]}
    assert {
        "kernel_text_intact: tcp4_seq_show+0x5",
        "syscall_table_intact: sys_call_table[62]",
    } <= refused_for


def test_the_repaired_guest_holds_again_and_is_still_refused(told: Told) -> None:
    repaired = told.passport("repaired")
    assert repaired["accepted"] is False
    assert {each["outcome"] for each in repaired["report"]["assertions"]} == {"holds"}
    before = {each["assertion"]: each for each in told.passport("tampered")["report"]["violations"]}
    after = {each["assertion"]: each for each in repaired["report"]["violations"]}
    assert set(after) == set(before)
    for name, violation in after.items():
        assert violation["standing"] is False
        assert violation["findings"] == before[name]["findings"]
        assert violation["first_seen_ms"] == before[name]["first_seen_ms"]


def test_what_a_demo_keeps_another_one_leaves_alone(told: Told) -> None:
    done = subprocess.run([*AFFIANT, "demo"], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a demo named 'demo' is running\nhint: affiant vm stop demo; kill ")
    assert (told.folder / "passport.cbor").exists()
    assert told.root.exists()


def test_verify_says_the_same_of_the_saved_passports(told: Told, tmp_path: Path) -> None:
    """With nothing but the root certificate and the nonce: 0 accepted, 1 refused, 2 unusable."""

    issued_at = told.passport("repaired")["report"]["issued_at"]
    now = datetime.fromtimestamp(issued_at, UTC).isoformat()  # a report is valid for five minutes

    def verify(
        passport: bytes, nonce: str, *more: str, root: Path = told.root
    ) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "passport"
        file.write_bytes(passport)
        command = [*AFFIANT, "verify", str(file), "--root", str(root), "--nonce", nonce, "--now", now, *more]
        bare = {"PATH": os.defpath}  # neither home nor cache is needed
        return subprocess.run(command, capture_output=True, text=True, check=False, env=bare, cwd=tmp_path)

    passports = {label: told.passport(label) for label in ("healthy", "tampered", "repaired")}
    data = {label: bytes.fromhex(each["passport"]) for label, each in passports.items()}
    nonce = {label: each["nonce"] for label, each in passports.items()}
    assert (told.folder / "passport.cbor").read_bytes() == data["healthy"]

    accepted = verify(data["healthy"], nonce["healthy"], "--min-level", "4")
    assert (accepted.returncode, accepted.stderr) == (0, "")
    assert accepted.stdout.startswith("ACCEPTED")
    assert verify(data["healthy"], nonce["healthy"], "--now", "2100-01-01").returncode == 1
    for label in ("tampered", "repaired"):
        refused = verify(data[label], nonce[label])
        assert refused.returncode == 1
        assert refused.stdout.startswith("REFUSED")
        assert "tcp4_seq_show+0x5" in refused.stdout
    assert verify(data["healthy"], nonce["healthy"], "--min-level", "5").returncode == 1
    assert verify(data["healthy"], nonce["tampered"]).returncode == 1
    other = tmp_path / "other"
    subprocess.run(
        [*AFFIANT, "service", "init", "--folder", str(other)], check=True, stdout=subprocess.DEVNULL
    )
    assert verify(data["healthy"], nonce["healthy"], root=other / "root.pem").returncode == 1
    for broken in (b"", data["healthy"][:-1], data["healthy"][: len(data["healthy"]) // 2]):
        unusable = verify(broken, nonce["healthy"])
        assert unusable.returncode == 2
        assert unusable.stderr.startswith("error: ")
        assert "Traceback" not in unusable.stderr


@dataclass(frozen=True)
class Moment:
    """When to interrupt: once `reached` is true of the home folder and of what the demo has printed."""

    name: str
    reached: Callable[[Path, str], bool]
    number: signal.Signals


def _exists(name: str) -> Callable[[Path, str], bool]:
    return lambda home, _: (home / name).exists()


def _after(step: str) -> Callable[[Path, str], bool]:
    return lambda _, said: step in said


_MOMENTS = (
    Moment("the kernel was fetched", _after(_STEPS[0]), signal.SIGINT),
    Moment("the service starts", _exists("broken-service/service.log"), signal.SIGTERM),
    Moment("the service is told what to trust", _after(_STEPS[2]), signal.SIGINT),
    Moment("the machine's files are made", _exists("vms/broken"), signal.SIGHUP),
    Moment("the launcher starts", _exists("vms/broken/launcher.log"), signal.SIGTERM),
    Moment("QEMU starts", _exists("vms/broken/qmp.sock"), signal.SIGINT),
    Moment("the guest boots", _after(_STEPS[4]), signal.SIGTERM),
    Moment("the kernel is tampered with", _after(_STEPS[7]), signal.SIGINT),
)


@contextmanager
def _running_demo(words: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a demo of another name than the one that is kept, over what the one before has left."""
    with words.open("wb") as output:
        process = subprocess.Popen(
            [*AFFIANT, "demo", "--name", "broken"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _assert_nothing_left(home: Path, running: dict[int, str]) -> None:
    assert not none_but(running)
    assert not (home / "vms" / "broken").exists()
    assert not (home / "broken-service").exists()
    assert not list(Path("/dev/shm").glob("affiant-broken-*"))


@pytest.mark.parametrize("moment", _MOMENTS, ids=lambda moment: moment.name.replace(" ", "-"))
def test_interrupted_at_any_moment_it_leaves_nothing(home: Path, tmp_path: Path, moment: Moment) -> None:
    """Neither process, folder, socket nor RAM file."""
    running, words = descendants(), tmp_path / "words"
    with _running_demo(words) as process:
        until(
            lambda: process.poll() is not None or moment.reached(home, words.read_text()),
            seconds=_DEMO_SECONDS,
            otherwise=words.read_text,
        )
        process.send_signal(moment.number)
        code = process.wait(180)
    assert code in exit_codes(moment.number), words.read_text()
    assert "Traceback" not in words.read_text()
    _assert_nothing_left(home, running)


def test_ctrl_c_again_and_again_does_not_disturb_the_ending(home: Path, tmp_path: Path) -> None:
    running, words = descendants(), tmp_path / "words"
    with _running_demo(words) as process:
        until(
            lambda: process.poll() is not None or _STEPS[4] in words.read_text(),
            seconds=_DEMO_SECONDS,
            otherwise=words.read_text,
        )
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)  # a person's finger
    assert process.returncode in exit_codes(signal.SIGINT), words.read_text()
    _assert_nothing_left(home, running)


def test_a_whole_demo_runs_over_what_others_left(home: Path, tmp_path: Path) -> None:
    """With an earlier machine's references, keys and images there, and that machine still running."""
    running, words = descendants(), tmp_path / "words"
    with _running_demo(words) as process:
        assert process.wait(_DEMO_SECONDS) == 0, words.read_text()
    assert all(step in words.read_text() for step in _STEPS)
    _assert_nothing_left(home, running)
