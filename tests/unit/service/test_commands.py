"""`affiant service ...` as people and scripts use it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.cli import main
from affiant.kernel.reference.unified_image import read_unified_file
from affiant.model.runtime_report import RulesFreshness, RulesUsed
from affiant.service.database import open_database
from affiant.service.session_store import all_sessions
from affiant.wire.certificates import load_root
from tests.simulator import START, make_world
from tests.software_tpm import EndorsementAuthority
from tests.unit.kernel.reference import tiny_files

Capture = pytest.CaptureFixture[str]
DIGEST = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path, capsys: Capture) -> str:
    path = str(tmp_path / "service")
    assert main(["service", "init", "--folder", path]) == 0
    capsys.readouterr()
    return path


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["service", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_init_prints_the_root_and_root_prints_it_again(tmp_path: Path, capsys: Capture) -> None:
    path = str(tmp_path / "service")
    _, first, _ = run(capsys, "init", "--folder", path)
    _, second, _ = run(capsys, "root", "--folder", path)
    assert first == second
    load_root(Path(first.strip()).read_bytes())


def test_a_folder_that_was_not_initialised_is_told_how(tmp_path: Path, capsys: Capture) -> None:
    for words in (["root"], ["devices"], ["sessions"], ["monitor", "list"], ["reference", "list"]):
        code, _, err = run(capsys, *words, "--folder", str(tmp_path))
        assert code == 2
        assert "service init" in err


def test_an_endorsement_root_must_be_a_ca(folder: str, tmp_path: Path, capsys: Capture) -> None:
    authority = EndorsementAuthority(now=START)
    good, bad, junk = tmp_path / "good.pem", tmp_path / "bad.pem", tmp_path / "junk.pem"
    good.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    signing = Path(folder) / "signing.pem"
    bad.write_bytes(signing.read_bytes())
    junk.write_text("hello")
    code, out, _ = run(capsys, "trust-ek", str(good), "--folder", folder)
    assert (code, "vTPM CA" in out) == (0, True)
    for path, words in ((bad, "no CA"), (junk, "no certificate in PEM form"), (tmp_path / "no", "read")):
        code, _, err = run(capsys, "trust-ek", str(path), "--folder", folder)
        assert code == 2
        assert words in err


def test_monitors_are_accepted_and_listed(folder: str, capsys: Capture) -> None:
    words = ["monitor", "accept", DIGEST, "--version", "0.1.0", "--folder", folder]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, *words, "--svn", "3")[0] == 0, "the newer word replaces the older"
    _, out, _ = run(capsys, "monitor", "list", "--json", "--folder", folder)
    assert json.loads(out) == [{"image": DIGEST, "version": "0.1.0", "svn": 3}]
    with pytest.raises(SystemExit) as leaving:
        main(["service", "monitor", "accept", "abc", "--version", "1", "--folder", folder])
    assert leaving.value.code == 2


def test_references_are_registered_from_their_description(
    folder: str, tmp_path: Path, capsys: Capture
) -> None:
    description = {
        "release": "6.1.0-test",
        "digest": "01" * 32,
        "kernel_file_digest": "02" * 32,
        "authenticode_digest": "03" * 32,
        "symbols": 5,
    }
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(description))
    code, out, _ = run(capsys, "reference", "add", str(path), "--folder", folder)
    assert code == 0
    assert "level 4 is out of reach" in out, "nothing says that this kernel locks itself down"
    code, out, _ = run(
        capsys, "reference", "add", str(path), "--locks-down", "--verifies-modules", "--folder", folder
    )
    assert "level 4" not in out
    _, out, _ = run(capsys, "reference", "list", "--json", "--folder", folder)
    assert json.loads(out) == [
        {
            "release": "6.1.0-test",
            "kernel": "02" * 32,
            "reference": "01" * 32,
            "locks_down": True,
            "verifies_modules": True,
            "unified_images": [],
            "addons": [],
        }
    ]


def pe_file(path: Path, sections: dict[str, bytes]) -> Path:
    path.write_bytes(tiny_files.pe(sections))
    return path


def test_unified_images_are_registered_for_a_kernel_that_is_known(
    tmp_path: Path, folder: str, capsys: Capture
) -> None:
    image = pe_file(tmp_path / "image.efi", {".linux": b"a kernel", ".cmdline": b"ro"})
    addon = pe_file(tmp_path / "addon.efi", {".cmdline": b"quiet"})
    words = ["reference", "add-image", str(image), "--addon", str(addon), "--folder", folder]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "hint: register it first: affiant service reference add" in err
    description = {"release": "6.1.0-test", "digest": "01" * 32, "authenticode_digest": "03" * 32}
    description["kernel_file_digest"] = hashlib.sha256(b"a kernel").hexdigest()
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps(description))
    for again in ([], words):  # registered anew, a kernel keeps its images
        assert run(capsys, "reference", "add", str(reference), "--folder", folder)[0] == 0
        code, out, _ = run(capsys, *(again or words))
        assert (code, out.splitlines()[1].split()) == (0, [digest_of(addon), "add-on"])
    _, out, _ = run(capsys, "reference", "list", "--json", "--folder", folder)
    (row,) = json.loads(out)
    assert (row["unified_images"], row["addons"]) == ([digest_of(image)], [digest_of(addon)])


def digest_of(path: Path) -> str:
    return read_unified_file(path.read_bytes()).authenticode.hex()


def test_what_is_no_image_or_no_addon_is_not_registered(tmp_path: Path, folder: str, capsys: Capture) -> None:
    image = pe_file(tmp_path / "image.efi", {".linux": b"a kernel"})
    addon = pe_file(tmp_path / "addon.efi", {".cmdline": b"quiet"})
    for words, said in (
        ([str(addon)], "holds no kernel"),
        ([str(image), "--addon", str(image)], "is no add-on"),
        ([str(tmp_path / "none.efi")], "is not a file"),
        ([folder + "/service.db"], "not a PE file"),
    ):
        code, _, err = run(capsys, "reference", "add-image", *words, "--folder", folder)
        assert code == 2
        assert said in err


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "{",
        "",
        '{"release": "x", "digest": "01", "kernel_file_digest": "02"}',
        json.dumps({"release": "x\n", "digest": "01" * 32, "kernel_file_digest": "02" * 32}),
        json.dumps({"release": 5, "digest": "01" * 32, "kernel_file_digest": "02" * 32}),
        json.dumps({"release": "x", "digest": "01" * 32, "kernel_file_digest": 2}),
        json.dumps(
            {"release": "x", "digest": "01" * 32, "kernel_file_digest": "02" * 32, "locks_down": "yes"}
        ),
    ],
)
def test_what_describes_no_reference_is_refused(
    folder: str, tmp_path: Path, capsys: Capture, content: str
) -> None:
    path = tmp_path / "reference"
    path.write_text(content)
    code, _, err = run(capsys, "reference", "add", str(path), "--folder", folder)
    assert code == 2
    assert err.startswith("error: ")
    assert run(capsys, "reference", "list", "--json", "--folder", folder)[1] == "[]\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--heartbeat", "0"], "heartbeat"),
        (["--heartbeat", "-5"], "heartbeat"),
        (["--heartbeat", "99999"], "heartbeat"),
        (["--minimum-rules-version", "-1"], "minimum version"),
        (["--minimum-security-version", "-1"], "minimum version"),
        (["--host", "300.1.1.1"], "cannot listen"),
        (["--policy", "/does/not/exist"], "policy"),
    ],
)
def test_a_service_that_cannot_be_meant_does_not_start(
    folder: str, capsys: Capture, words: list[str], told: str
) -> None:
    code, _, err = run(capsys, "run", "--folder", folder, *words)
    assert code in (2, 3)
    assert told in err.splitlines()[0]


def test_devices_and_sessions_are_shown(tmp_path: Path, capsys: Capture) -> None:
    world = make_world(tmp_path / "service")
    session = world.machine().attest()
    folder = str(tmp_path / "service")
    _, out, _ = run(capsys, "devices", "--json", "--folder", folder)
    (device,) = json.loads(out)
    assert device["device"] == session.report.device.hex()
    _, out, _ = run(capsys, "sessions", "--json", "--folder", folder)
    (row,) = json.loads(out)
    assert (row["session"], row["level"]) == (session.report.session_id.hex(), 4)
    code, out, _ = run(capsys, "sessions", "--folder", folder)
    assert code == 0
    assert session.report.session_id.hex()[:12] in out


def test_the_rules_of_a_session_are_those_of_its_last_heartbeat(tmp_path: Path, capsys: Capture) -> None:
    """A relying party sees them in each report; an operator sees who lags behind, and why."""
    world = make_world(tmp_path / "service")
    session = world.machine().attest()
    folder = str(tmp_path / "service")

    def beat(version: int, freshness: RulesFreshness | None) -> None:
        report = session.runtime_report(
            session.nonce,
            world.service.settings.issuer,
            rules=RulesUsed("web", version, bytes(32)),
            freshness=freshness,
        )
        session.heartbeat(report)

    def told() -> tuple[object, ...]:
        _, out, _ = run(capsys, "sessions", "--json", "--folder", folder)
        (row,) = json.loads(out)
        return tuple(row[name] for name in ("rules", "rules_age_ms", "rules_expired", "rules_trouble"))

    assert told() == ("", None, None, "")
    beat(3, RulesFreshness(1_500, False, ""))
    assert told() == ("web 3", 1_500, False, "")
    beat(3, RulesFreshness(None, True, "timestamp.json: status 503: \u202eb"))
    assert told() == ("web 3", None, True, "timestamp.json: status 503: \u202eb")
    _, out, _ = run(capsys, "sessions", "--folder", folder)
    assert "web 3" in out
    assert "rules trouble: timestamp.json: status 503: \\u202eb" in out
    beat(4, None)
    assert told() == ("web 4", None, None, "")
    _, out, _ = run(capsys, "sessions", "--folder", folder)
    assert "trouble" not in out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--port", "65536", "a port is a number from 0 to 65535"),
        ("--port", "-1", "a port is a number from 0 to 65535"),
        ("--issuer", "", "a name has 1 to 200 printable characters"),
        ("--issuer", "a\nb", "a name has 1 to 200 printable characters"),
        ("--issuer", "x" * 201, "a name has 1 to 200 printable characters"),
    ],
)
def test_what_a_service_could_not_run_by_is_refused_at_once(
    tmp_path: Path, capsys: Capture, option: str, value: str, said: str
) -> None:
    """The resolver takes port 65536 for 0, any free one; reports by such an issuer could not be read."""
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "run", "--folder", str(tmp_path / "service"), option, value)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "service").exists()


def test_nothing_of_a_row_is_cut_off_and_a_state_is_told_once(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe has no width, and a terminal may be narrow: half a name is none."""
    monkeypatch.setenv("COLUMNS", "40")
    world = make_world(tmp_path / "service")
    machine = world.machine()
    for version in (3, 4):
        world.service.now += 1
        session = machine.attest()
        rules = RulesUsed("a-fleet-with-a-name", version, bytes(32))
        session.heartbeat(session.runtime_report(session.nonce, world.service.settings.issuer, rules=rules))
    _, out, _ = run(capsys, "sessions", "--folder", str(tmp_path / "service"))
    head, *rows = out.splitlines()
    assert head.split() == ["session", "device", "level", "state", "violations", "rules", "seen"]
    assert [row.split()[3] for row in rows] == ["superseded", "alive"]
    assert all("a-fleet-with-a-name" in row and row.rstrip().endswith("s ago") for row in rows)


def test_a_database_of_another_version_is_refused(folder: str, capsys: Capture) -> None:
    engine = open_database(f"sqlite:///{folder}/service.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE affiant_schema SET version = 99")
    code, _, err = run(capsys, "sessions", "--folder", folder)
    assert code == 2
    assert "schema version 99" in err
    assert "use the version of Affiant that made it" in err


def test_an_address_that_is_none_is_refused(folder: str, capsys: Capture) -> None:
    code, _, err = run(capsys, "sessions", "--folder", folder, "--database", "nonsense")
    assert code == 2
    assert "database" in err


def test_the_service_runs_says_when_it_is_ready_and_ends_well(tmp_path: Path) -> None:
    """As the demo starts it: an empty folder, a free port, a file that tells when."""
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "affiant.cli", "service", "run", "--folder", str(tmp_path / "s")]
    command += ["--port", "0", "--ready-file", str(ready)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            word = json.loads(ready.read_text())
            assert word["pid"] == process.pid
            with urllib.request.urlopen(word["url"] + "/v1/root") as answer:
                load_root(answer.read())
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines] == ["request"]
    with open_database(f"sqlite:///{tmp_path}/s/service.db").begin() as connection:
        assert all_sessions(connection) == ()
