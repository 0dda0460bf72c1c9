"""A repository on disk, its signers, and a clock that only tests turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from affiant.assertions.bundle import Bundle, compile_bundle
from affiant.cli import main
from affiant.publishing.folder import RulesFolder
from affiant.rules.trusted import RulesUpdate, TrustedRules

NOW = 1_800_000_000
RULE = '''"""No module is called evil.

Claims: No module on the list is called evil.
Why: It is an example.
Reads: modules.
Cannot see: What is not on the list.
Kernels: any.
"""

load("affiant", "bad", "ok")

NAME = "no_evil"
VERSION = 1
SENTENCE = "No listed module is called evil."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "enforce"
FACTS = ["modules"]


def check(facts):
    observations = [ok("the list of modules")]
    for module in facts["modules"]["listed"]:
        if module["name"] == "evil":
            observations.append(bad("module evil", "another name", "evil"))
    return observations
'''


@dataclass
class Desk:
    """Where people sit: `run` is the command line, `time` what the clock says, `out` what was said last."""

    folder: RulesFolder
    time: int
    capsys: pytest.CaptureFixture[str]
    out: str = ""

    def run(self, *words: str) -> int:
        code = main(["rules", *words])
        said = self.capsys.readouterr()
        self.out = said.out + said.err
        return code

    def done(self, *words: str) -> str:
        """Run a command that must succeed."""
        assert self.run(*words) == 0, self.out
        return self.out

    def refused(self, *words: str, code: int = 2) -> str:
        """Run a command that must fail, and leave what is given out as it was."""
        before = self.given_out()
        assert self.run(*words) == code, self.out
        assert self.given_out() == before
        return self.out

    def here(self, name: str) -> Path:
        """A file on the desk."""
        return self.folder.path.parent.parent / name

    def given_out(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder.public)): path.read_bytes()
            for path in self.folder.public.rglob("*")
            if path.is_file()
        }

    def signed(self, *keys: str) -> None:
        for key in keys:
            self.done("sign", f"{key}.pem", "--yes")

    def monitor(self, root_version: int = 1, compiled: Callable[..., Bundle] = compile_bundle) -> Monitor:
        root = (self.folder.public / "metadata" / f"{root_version}.root.json").read_bytes()
        digest = hashlib.sha256(root).digest()
        first = Bundle("affiant-library", 1, bytes(32), ())
        return Monitor(self, TrustedRules(root, expected_digest=digest, first=first, compiled=compiled))


@dataclass
class Monitor:
    """A client that reads what is given out, at the desk's time."""

    desk: Desk
    trusted: TrustedRules

    def update(self, **expected: object) -> RulesUpdate:
        options = {"now": self.desk.time, "fleet": "web"} | expected
        return self.trusted.update(self.desk.folder.fetch, **options)  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """Return an empty desk with the rule `no_evil.star` on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path / "home"))
    (tmp_path / "no_evil.star").write_text(RULE)
    desk = Desk(RulesFolder(tmp_path / "home" / "rules"), NOW, capsys)
    for module in ("commands", "key_commands", "asking"):
        monkeypatch.setattr(f"affiant.publishing.{module}.current_time", lambda: desk.time)
    return desk


@pytest.fixture
def published(desk: Desk) -> Desk:
    """A repository whose roles have two keys each, two signatures due; alice and bob have published 2."""
    desk.done("init", "--fleet", "web")
    for name in ("alice", "bob"):
        desk.done("new-key", f"{name}.pem", "--unsafe-no-passphrase")
        for role in ("root", "targets"):
            desk.done("add-key", role, f"{name}.pub", *(("--threshold", "2") if name == "bob" else ()))
    assert desk.run("publish", "no_evil.star", "--without-library") == 1
    desk.signed("alice", "bob")
    desk.done("publish")
    return desk
