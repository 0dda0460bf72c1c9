"""What makes a source no script: each flaw with its place, for the person who can mend it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError

__all__ = ["Flaw", "ScriptError", "place_of"]

_DOCSTRING: Final = re.compile(r'(?:[ \t]*(?:#[^\n]*)?\n)*"""([^\\]*?)"""')
_HEADER: Final = re.compile(r"^[A-Z]+[ \t]*=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong; `line` and `column` count from 1, 0: the script as a whole."""

    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.text}" if self.line else self.text


class ScriptError(MalformedError):
    """A source that is no script; `flaws` are all that was found, the message tells them in one line."""

    def __init__(self, name: str, flaws: Sequence[Flaw]) -> None:
        told = "; ".join(
            f"line {flaw.line}, column {flaw.column}: {flaw.text}" if flaw.line else flaw.text
            for flaw in flaws
        )
        super().__init__(f"{name}: {told}")
        self.flaws = tuple(flaws)


def place_of(source: str, *about: str) -> tuple[int, int]:
    """Return line and column of what a header says: its name, then keys or texts inside its value.

    As much of the way is gone as stands there as a literal; a header that is missing altogether is where
    the others begin. This reads no Starlark: it looks for what people write.
    """
    documentation = _DOCSTRING.match(source)
    start = documentation.end() if documentation else 0
    header = re.compile(rf"^{re.escape(about[0])}[ \t]*=[ \t]*", re.MULTILINE).search(source, start)
    if header is None:
        header = _HEADER.search(source, start)
        return _counted(source, header.start() if header else 0)
    at = header.end()
    for name in about[1:]:
        found = re.compile(rf"""["']{re.escape(name)}["']""").search(source, at)
        if found is None:
            break
        at = found.start()
    return _counted(source, at)


def _counted(source: str, at: int) -> tuple[int, int]:
    return source.count("\n", 0, at) + 1, at - source.rfind("\n", 0, at)
