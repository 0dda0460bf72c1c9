"""docs/tutorial.md is done; where it needs a machine, what a real one answered stands in for it.

The part with a machine is done in tests/lab/test_tutorial.py, which holds the recording against a live one.
"""

from __future__ import annotations

import shutil

import pytest

from affiant.assertions.bundle import library_file
from affiant.assertions.engine import Engine
from affiant.assertions.recording import read_recording
from affiant.model.outcome import Mode, Outcome
from tests.page import ROOT, Command, blocks
from tests.unit.publishing.conftest import Desk

PAGE = ROOT / "docs" / "tutorial.md"
RECORDED = ROOT / "tests/vectors/tutorial/address_watchers_owned.healthy.json"
_NEED_A_MACHINE = ("affiant service", "affiant vm", "affiant report", "affiant verify")


def test_no_rule_of_the_library_looks_where_the_tutorial_looks() -> None:
    (query,) = {line.strip() for line in PAGE.read_text().splitlines() if line.strip().startswith('"at":')}
    chain = query.split('"')[3].partition(".")[0]
    assert chain == "inetaddr_chain"
    assert not [rule.name for rule in library_file().rules if f'"{chain}' in rule.source]


def test_the_tutorial_is_done_as_it_says(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: "correct horse")
    script, *snippets = (block.text for block in blocks(PAGE) if not isinstance(block, Command))
    done = []
    versions = {}
    for block in blocks(PAGE):
        if not isinstance(block, Command):
            if block.text == script:
                desk.here("address_watchers_owned.star").write_text(script)
            else:
                exec(compile(block.text, PAGE.name, "exec"), {})
        elif block.line.startswith("affiant assertions record"):
            shutil.copy(RECORDED, desk.here("address_watchers_owned.healthy.json"))
        elif not block.line.startswith(_NEED_A_MACHINE) and "--vm" not in block.line:
            code, said = block.run(desk.capsys)
            assert code == 0, f"{block.line}: {said}"
            done.append(block.line)
            if "published:" in said:
                bundle = desk.monitor().update().bundle
                versions[bundle.version] = bundle
    assert len(snippets) == 1
    assert len(done) == 10
    tampered = read_recording(desk.here("address_watchers_owned.watcher.json"))
    with Engine(versions[3]) as engine:
        (result,) = engine.judge(tampered.facts, only=["address_watchers_owned"])
    assert result.outcome is Outcome.VIOLATED
    (finding,) = result.findings
    shown = f"  {finding.subject} (T1546)\n    expected {finding.expected}\n    found    {finding.found}\n"
    assert shown in PAGE.read_text()
    modes = [versions[version].rollouts["address_watchers_owned"].mode for version in (3, 4)]
    assert modes == [Mode.AUDIT, Mode.ENFORCE]
    assert "address_watchers_owned" not in {one.name for one in versions[2].scripts}
