"""Pages of the documentation as a person goes through them: their blocks, in order, done and compared."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from affiant.cli import main

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line of a page, and the lines that it is shown to say (`...` stands for anything)."""

    line: str
    shown: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    def run(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        """Run it in this process, see that it says what is shown, and return its exit code and words."""
        capsys.readouterr()
        code = main(self.words[1:])
        said = capsys.readouterr().out
        for line in self.shown:
            pattern = ".*".join(map(re.escape, line.split("...")))
            assert re.search(f"^{pattern}", said, re.MULTILINE), f"{self.line} does not say {line!r}: {said}"
        return code, said


@dataclass(frozen=True)
class Python:
    """A block of Python (or Starlark) on a page."""

    text: str


def blocks(page: Path) -> list[Command | Python]:
    """Return what there is to do on a page, in its order."""
    found: list[Command | Python] = []
    for language, body in _FENCE.findall(page.read_text()):
        if language == "python":
            found.append(Python(body))
        elif language == "console":
            found += _commands(body)
    return found


def _commands(body: str) -> list[Command]:
    lines: list[tuple[str, list[str]]] = []
    for line in body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            lines.append((line[2:], []))
        else:
            lines[-1][1].append(line)
    return [Command(line, tuple(shown)) for line, shown in lines]
