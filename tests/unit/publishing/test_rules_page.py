"""docs/rules.md is done, from the first command to the last: what it shows is what is said."""

from __future__ import annotations

import re

import pytest

from affiant.publishing.folder import LIVES
from tests.page import ROOT, Command, blocks
from tests.unit.publishing.conftest import Desk

PAGE = ROOT / "docs" / "rules.md"

# Other doors, which need machines and have tests of their own; that the commands exist, test_docs sees.
_ELSEWHERE = ("affiant service run", "affiant vm start", "affiant verify")


def test_the_page_is_done_as_it_says(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: "correct horse")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    monitor = None
    done = 0
    for block in blocks(PAGE):
        assert isinstance(block, Command)
        if block.line.startswith(_ELSEWHERE):
            continue
        code, said = block.run(desk.capsys)
        missing = block.words[2] in ("publish", "withdraw") and "may sign" in said
        assert code == (1 if missing else 0), f"{block.line}: {said}"
        if "published:" in said and (desk.folder.public / "metadata/timestamp.json").exists():
            monitor = desk.monitor() if monitor is None else monitor
            monitor.update()
        done += 1
    assert done > 40
    assert monitor is not None
    assert monitor.trusted.root_version == 3
    assert monitor.trusted.bundle.version == 6
    assert set(monitor.trusted.bundle.rollouts) == {"kernel_known"}


def test_the_lives_in_the_table_are_those_of_the_code() -> None:
    text = PAGE.read_text()
    for role, days in LIVES.items():
        assert re.search(rf"^\| {role} \|.*\| {days} days? \|$", text, re.MULTILINE), role
