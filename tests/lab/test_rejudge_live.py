"""A real machine's facts are kept by its launcher, sealed, and judged later by a rule of another day."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from pathlib import Path

import pytest

from affiant.cli import main
from lab.console import Console
from tests.lab.attested import BOOT_SECONDS, Service, attested_guest, request_for, until

RULE = '''"""The module dummy is not loaded.

Claims: No module of that name is on the list.
Why: It stands for one that was in the news this morning.
Reads: modules.
Cannot see: One of another name.
Kernels: Debian 6.1.
"""

load("affiant", "bad", "ok")

NAME = "no_dummy"
VERSION = 1
SENTENCE = "The module dummy is not loaded."
SEVERITY = "high"
TECHNIQUE = "T1547.006"
MODE = "audit"
FACTS = ["modules"]

def check(facts: dict[str, dict[str, typing.Any]]) -> list[tuple]:
    names = [module["name"] for module in facts["modules"]["listed"]]
    return [bad("module dummy", "not loaded", "loaded")] if "dummy" in names else [ok("the list of modules")]
'''
KEPT = 6


def test_were_we_hit_by_this_before(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, key = tmp_path / "no_dummy.star", tmp_path / "operator.pem"
    rule.write_text(RULE)
    assert main(["assertions", "facts-key", str(key)]) == 0
    request = request_for(
        service,
        "keeping",
        firmware=False,
        tpm=False,
        keep_facts=KEPT,
        keep_facts_seconds=1,
        facts_key=tmp_path / "operator.pem.pub",
    )
    with attested_guest(service, request) as guest, Console(guest.state.console_socket) as console:
        folder = guest.state.folder / "facts"
        console.type("\n")
        console.wait("guest# ", timeout=BOOT_SECONDS)
        console.silence_kernel()
        until(lambda: _records(folder) >= 1, seconds=180)
        guest.ask()
        console.run("insmod /lib/load-modules/*dummy.ko")
        kept_before = _newest(folder)
        until(lambda: _newest(folder) > kept_before + 1, seconds=180)
        console.run("rmmod dummy")
        kept_before = _newest(folder)
        until(lambda: _newest(folder) > kept_before + 1, seconds=180)
        # The ring is bounded; a new record is there a moment before the oldest makes room.
        until(lambda: _records(folder) <= KEPT, seconds=30)
        copy = tmp_path / "evidence"
        copy.mkdir()
        with suppress(FileNotFoundError):  # the oldest may make room meanwhile, so it comes last
            for path in sorted(folder.glob("*.facts"), reverse=True):
                (copy / path.name).write_bytes(content := path.read_bytes())
                assert b"kernel_text" not in content, "sealed"
    capsys.readouterr()
    words = ["assertions", "rejudge", str(rule), "--facts", str(copy), "--root", str(service.root), "--json"]
    assert main([*words, "--key", str(key)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is True
    assert told["refused"] == told["gaps"] == []
    (machine,) = told["machines"]
    (violation,) = machine["violations"]
    assert violation["findings"][0]["subject"] == "module dummy"
    assert machine["from"] <= violation["first_seen"] <= violation["last_seen"] <= machine["to"]
    assert main([*words, "--key", str(_other_key(tmp_path))]) == 2
    assert "the seal does not open" in capsys.readouterr().err


def _records(folder: Path) -> int:
    return len(list(folder.glob("*.facts")))


def _newest(folder: Path) -> int:
    return max((int(path.name.partition(".")[0]) for path in folder.glob("*.facts")), default=0)


def _other_key(folder: Path) -> Path:
    path = folder / f"{secrets.token_hex(4)}.pem"
    assert main(["assertions", "facts-key", str(path)]) == 0
    return path
