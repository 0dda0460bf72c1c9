"""What the evaluator says of an error, as place and sentence instead of a picture."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Fault", "fault_of", "one_sentence", "printable"]

_MESSAGE = re.compile(r"^error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r"^ *--> (.+):(\d+):(\d+)$", re.MULTILINE)
_PICTURE = re.compile(r"^ *\d+ \|", re.MULTILINE)
_FRAME = re.compile(r"^ *\* (.+):(\d+), in ", re.MULTILINE)
_WANTED = re.compile(r", expected one of (?:.+, ){4,}.+ or .+$")
_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Fault:
    """An error of a script; `line` and `column` count from 1, 0 where it has no place."""

    line: int
    column: int
    text: str

    def __str__(self) -> str:
        if not self.line:
            return self.text
        column = f", column {self.column}" if self.column else ""
        return f"line {self.line}{column}: {self.text}"


def fault_of(error: str, source: str = "") -> Fault:
    """Return what a Starlark error says, and its place in the script where it has one.

    Code that is not the script's own has a name in brackets; an error there is told at the line of
    the script that called it. `source` is the script, for errors at its end.
    """
    messages = _MESSAGE.findall(error)
    message = _WANTED.sub("", messages[-1].removeprefix("fail: ")) if messages else error
    if places := _PLACE.findall(error):
        file, line, column = places[-1]
        if not file.startswith("("):
            if source and not _PICTURE.search(error):
                # The evaluator has no place for the end of the file, and says 1:1.
                lines = source.rstrip().splitlines() or [""]
                return Fault(len(lines), len(lines[-1]) + 1, "Parse error: the script ends in the middle")
            return Fault(int(line), int(column), printable(message))
    frames = [int(line) for file, line in _FRAME.findall(error) if not file.startswith("(")]
    return Fault(frames[-1] if frames else 0, 0, printable(message))


def one_sentence(error: str) -> str:
    """Return the message of a Starlark error, led by its place in the script where it has one."""
    return printable(str(fault_of(error)))


def printable(text: str) -> str:
    """Return `text` on one line of at most 256 characters, with unprintable ones escaped.

    What a guest calls itself ends on terminals and in logs: no escape sequence gets there.
    """
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
