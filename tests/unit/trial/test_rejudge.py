"""Rules written today are judged on records of last week, and what cannot be believed is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.assertions.query import parse_queries, query_identity
from affiant.cli import main
from affiant.kernel.facts.registry import FACTS
from affiant.model.errors import ForgedError
from affiant.model.fact_record import FactRecord
from affiant.trial.kept import load_facts, open_records
from affiant.wire.cose import parse_sign1
from affiant.wire.fact_record import sign_fact_record, write_kept
from affiant.wire.facts_key import private_pem, public_pem
from tests.unit.wire.world import (
    AUTHORITY,
    CHALLENGE,
    DEVICE,
    NOW,
    OTHER_AUTHORITY,
    ROOT,
    RUNTIME_REPORT,
    SESSION_KEY,
    SESSION_REPORT,
    SESSION_REPORT_BYTES,
    sign_session,
)

KEY = X25519PrivateKey.from_private_bytes(b"\x0f" * 32)

RULE = '''"""No module is called evil.

Claims: No module of that name is on the list.
Why: It was in the news.
Reads: modules.
Cannot see: One of another name.
Kernels: none.
"""

load("affiant", "bad", "ok")

NAME = "no_evil"
VERSION = 1
SENTENCE = "No module is called evil."
SEVERITY = "high"
TECHNIQUE = "T1014"
MODE = "audit"
FACTS = ["modules"]

def check(facts: dict[str, dict[str, typing.Any]]) -> list[tuple]:
    return [
        bad("module %s" % module["name"], "another name", module["name"]) if module["name"] == "evil"
        else ok(module["name"])
        for module in facts["modules"]["listed"]
    ]
'''
QUERY = {"path": "modprobe_path", "as": "text", "bytes": 64}
QUERY_RULE = (
    RULE.replace("no_evil", "modprobe_is_there")
    .replace('FACTS = ["modules"]', f'FACTS = []\nQUERIES = {{"path": {QUERY!r}}}')
    .split("def check")[0]
    + """def check(facts: dict[str, dict[str, typing.Any]]) -> list[tuple]:
    found = facts["path"]["value"]
    return [ok("path")] if found == "/sbin/modprobe" else [bad("path", "/sbin/modprobe", found)]
"""
)

MODULES = f"fact {FACTS['modules'].version}"
MINUTE = 60


def modules(*names: str) -> dict[str, Any]:
    return {"modules": {"listed": [{"name": name} for name in names]}}


class Keeper:
    """Writes a chain of records into a folder, as a launcher keeps those of a monitor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipient: bytes | None = None
        self.chain = b"\xc4" * 16
        self.sequence = 0
        self.previous = bytes(32)

    def keep(self, facts: dict[str, Any], *, minute: int, authority=AUTHORITY, **changes: Any) -> Path:
        self.sequence += 1
        record = FactRecord(
            device=DEVICE,
            taken_at=NOW + MINUTE * minute,
            chain=self.chain,
            sequence=self.sequence,
            previous=self.previous,
            rules=RUNTIME_REPORT.rules,
            reference=b"\x4e" * 32,
            facts=facts,
            origins=changes.pop("origins", dict.fromkeys(facts, MODULES)),
            left_out=changes.pop("left_out", ()),
            digest=b"",
        )
        session = SESSION_REPORT_BYTES if authority is AUTHORITY else sign_session(SESSION_REPORT, authority)
        message = sign_fact_record(
            replace(record, **changes),
            session_report=session,
            key=SESSION_KEY,
            certificates=authority.session_chain,
        )
        self.previous = parse_sign1(message, name="x", max_size=1 << 20).digest
        path = self.folder / f"{self.sequence:012}.facts"
        path.write_bytes(write_kept(message, recipient=self.recipient, challenge=CHALLENGE.digest))
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "facts"
    folder.mkdir()
    return folder


@pytest.fixture
def keeper(folder: Path) -> Keeper:
    return Keeper(folder)


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    path = tmp_path / "no_evil.star"
    path.write_text(RULE)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_bytes(ROOT.public_bytes(Encoding.PEM))
    return path


Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(rule: Path, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that rejudges, and returns the exit code and what was told."""

    def rejudge(*more: str, by: Path = rule) -> tuple[int, dict[str, Any]]:
        words = ["assertions", "rejudge", str(by), "--facts", str(folder), "--root", str(root), "--json"]
        code = main([*words, *more])
        return code, json.loads(capsys.readouterr().out)

    return rejudge


def test_were_we_hit_last_week_and_when(keeper: Keeper, ask: Ask) -> None:
    for minute, names in enumerate((["ext4"], ["ext4", "evil"], ["evil"], ["ext4"], ["ext4", "evil"])):
        keeper.keep(modules(*names), minute=10 * minute)
    code, told = ask()
    assert code == 1
    assert told["verified"] is True
    assert told["gaps"] == told["refused"] == []
    (machine,) = told["machines"]
    assert machine["machine"] == DEVICE.hex()
    assert machine["records"] == {"holds": 2, "violated": 3}
    assert (machine["from"], machine["to"]) == ("2027-01-15T08:00:00Z", "2027-01-15T08:40:00Z")
    first, second = machine["violations"]
    assert (first["last_good"], first["first_seen"], first["last_seen"], first["records"]) == (
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:10:00Z",
        "2027-01-15T08:20:00Z",
        2,
    )
    assert second["last_good"] == "2027-01-15T08:30:00Z"
    assert [finding["subject"] for finding in first["findings"]] == ["module evil"]


def test_a_machine_that_was_never_hit_is_told_so(keeper: Keeper, ask: Ask) -> None:
    for minute in range(3):
        keeper.keep(modules("ext4"), minute=minute)
    code, told = ask()
    assert (code, told["machines"][0]["records"]) == (0, {"holds": 3})


def test_machines_are_told_apart(keeper: Keeper, ask: Ask, tmp_path: Path, capsys, rule, folder) -> None:
    keeper.keep(modules("ext4"), minute=0)
    other = Keeper(folder / "other")
    other.folder.mkdir()
    other.keep(modules("evil"), minute=0, device=b"\x01" + b"\xaa" * 16)
    assert main(["assertions", "rejudge", str(rule), "--facts", str(folder)]) == 1
    told = capsys.readouterr().out
    assert f"machine {DEVICE.hex()}, 2027-01-15T08:00:00Z to 2027-01-15T08:00:00Z: 1 holds" in told
    assert f"machine 01{'aa' * 16}, 2027-01-15T08:00:00Z to 2027-01-15T08:00:00Z: 1 violated" in told
    assert "it was not seen to hold before" in told
    assert "module evil: expected another name, found evil" in told
    assert "nobody vouches for these records" in told


def test_records_of_another_service_are_refused_by_name(keeper: Keeper, ask: Ask) -> None:
    keeper.keep(modules("ext4"), minute=0)
    forged = keeper.keep(modules("ext4"), minute=10, authority=OTHER_AUTHORITY)
    code, told = ask()
    assert code == 3
    (refusal,) = told["refused"]
    assert refusal["file"] == str(forged)
    assert "another root" in refusal["reason"]
    assert told["machines"][0]["records"] == {"holds": 1}


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_truncated_file_is_refused_and_the_others_are_judged(keeper: Keeper, ask: Ask, cut: int) -> None:
    keeper.keep(modules("evil"), minute=0)
    path = keeper.keep(modules("ext4"), minute=10)
    path.write_bytes(path.read_bytes()[:cut])
    code, told = ask()
    assert code == 1
    assert [refusal["file"] for refusal in told["refused"]] == [str(path)]
    assert told["machines"][0]["records"] == {"violated": 1}


def test_a_huge_file_is_not_read(keeper: Keeper, ask: Ask) -> None:
    keeper.keep(modules("ext4"), minute=0)
    (keeper.folder / "huge.facts").write_bytes(bytes(8 << 20))
    code, told = ask()
    assert (code, "more than" in told["refused"][0]["reason"]) == (3, True)


def test_a_record_taken_out_of_the_middle_is_missed(keeper: Keeper, ask: Ask) -> None:
    keeper.keep(modules("ext4"), minute=0)
    keeper.keep(modules("evil"), minute=10).unlink()
    keeper.keep(modules("ext4"), minute=20)
    code, told = ask()
    assert code == 3
    (gap,) = told["gaps"]
    assert (gap["from"], gap["to"], gap["missing"]) == ("2027-01-15T08:00:00Z", "2027-01-15T08:20:00Z", 1)


def test_the_oldest_records_of_a_ring_are_not_missed(keeper: Keeper, ask: Ask) -> None:
    keeper.keep(modules("ext4"), minute=0).unlink()
    keeper.keep(modules("ext4"), minute=10)
    keeper.keep(modules("ext4"), minute=20)
    code, told = ask()
    assert (code, told["gaps"]) == (0, [])


def test_facts_are_read_one_record_at_a_time_and_only_as_they_were_opened(
    keeper: Keeper, folder: Path
) -> None:
    """A week of a fleet does not fit into memory; a file that is swapped meanwhile does not go unnoticed."""
    path = keeper.keep(modules("ext4"), minute=0)
    (kept,), _ = open_records(folder, key=None, root=ROOT)
    assert kept.record.facts == kept.record.origins == {}
    assert load_facts(kept, key=None).facts == modules("ext4")
    keeper.keep(modules("evil"), minute=10).rename(path)
    with pytest.raises(ForgedError, match="was changed meanwhile"):
        load_facts(kept, key=None)


def test_a_copy_of_a_record_counts_once(keeper: Keeper, ask: Ask) -> None:
    path = keeper.keep(modules("ext4"), minute=0)
    (keeper.folder / "copy.facts").write_bytes(path.read_bytes())
    assert ask()[1]["machines"][0]["records"] == {"holds": 1}


def test_sealed_records_need_the_operators_key(keeper, ask, tmp_path, rule, folder, capsys) -> None:
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    mine.write_bytes(private_pem(KEY))
    other.write_bytes(private_pem(X25519PrivateKey.generate()))
    keeper.recipient = KEY.public_key().public_bytes_raw()
    keeper.keep(modules("evil"), minute=0)
    assert ask("--key", str(mine))[0] == 1
    words = ["assertions", "rejudge", str(rule), "--facts", str(folder)]
    assert main(words) == 2
    assert "hint: give the private key: --key FILE" in capsys.readouterr().err
    assert main([*words, "--key", str(other)]) == 2
    told = capsys.readouterr().err
    assert "none of the 1 records" in told
    assert "the seal does not open" in told


def test_what_was_not_recorded_is_inconclusive_and_says_why(keeper: Keeper, ask: Ask) -> None:
    keeper.keep({}, minute=0)
    keeper.keep({}, minute=10, left_out=("modules",))
    keeper.keep(modules("ext4"), minute=20, origins={"modules": "fact 999"})
    code, told = ask()
    assert code == 3
    assert told["machines"][0]["records"] == {"inconclusive": 3}
    reasons = sorted(told["machines"][0]["reasons"])
    assert len(reasons) == 3
    for reason, part in zip(
        reasons, ("recorded as fact 999", "too large to keep", "nobody asked"), strict=True
    ):
        assert part in reason


def test_a_query_is_answered_by_whoever_asked_the_same(keeper: Keeper, ask: Ask, tmp_path: Path) -> None:
    """A rule of another name that reads the same thing of the kernel can be judged on old records."""
    path = tmp_path / "modprobe_is_there.star"
    path.write_text(QUERY_RULE)
    (same,) = parse_queries({"another_name": QUERY})
    (longer,) = parse_queries({"another_name": QUERY | {"bytes": 65}})
    assert query_identity(same) != query_identity(longer)
    for minute, (query, value) in enumerate(((same, "/sbin/modprobe"), (same, "/tmp/x"), (longer, "/tmp/x"))):
        keeper.keep(
            {"library_rule.modprobe": {"value": value}},
            minute=minute,
            origins={"library_rule.modprobe": f"query {query_identity(query)}"},
        )
    code, told = ask(by=path)
    assert (code, told["machines"][0]["records"]) == (1, {"holds": 1, "violated": 1, "inconclusive": 1})


def test_a_folder_without_records_is_no_health(folder, rule, tmp_path, capsys) -> None:
    assert main(["assertions", "rejudge", str(rule), "--facts", str(folder)]) == 2
    assert "--keep-facts" in capsys.readouterr().err
    assert main(["assertions", "rejudge", str(rule), "--facts", str(tmp_path / "none")]) == 2
    assert "--keep-facts" in capsys.readouterr().err
    assert main(["assertions", "rejudge", "nothing", "--facts", str(folder)]) == 2


def test_a_machine_of_this_host_goes_by_its_name(keeper, rule, root, folder, monkeypatch, capsys):
    """Its folder has the records, its own service's root says whose they are."""
    keeper.keep(modules("evil"), minute=0)
    keeper.keep(modules("ext4"), minute=10, authority=OTHER_AUTHORITY)
    state = SimpleNamespace(facts=folder, service_root=root)
    monkeypatch.setattr("affiant.vm.state.VmState.load", lambda name: {"web": state}[name])
    assert main(["assertions", "rejudge", str(rule), "--vm", "web", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], len(told["refused"])) == (True, 1)


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path, capsys) -> None:
    path = tmp_path / "operator.pem"
    assert main(["assertions", "facts-key", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PUBLIC KEY" in (tmp_path / "operator.pem.pub").read_bytes()
    before = path.read_bytes()
    assert main(["assertions", "facts-key", str(path)]) == 2
    assert path.read_bytes() == before
    assert public_pem(KEY.public_key()) != (tmp_path / "operator.pem.pub").read_bytes()
