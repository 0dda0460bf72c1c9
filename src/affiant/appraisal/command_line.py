"""The kernel's command line, read as suspiciously as the kernel reads it generously.

The kernel parses its parameters several times and not always in the same way
(Documentation/admin-guide/kernel-parameters.rst): `-` and `_` are the same in names, double quotes
protect spaces, and `--` hands the rest to init; but the code that runs before the kernel proper
(KASLR, early x86 options) looks for whole words anywhere, quotes and `--` or not. A parameter
counts as given here when *any* of these readings would see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["find_parameters", "parameters"]

_QUOTE = '"'


@lru_cache(maxsize=256)  # several rules ask the same line, and a fleet has few lines
def parameters(command_line: str) -> tuple[str, ...]:
    """Return every parameter that some reading of `command_line` sees, in order, without doubles.

    Names are normalised (`-` becomes `_`), values are kept without their quotes. The first word of
    a boot loader's line may be the kernel's path: it comes out as a parameter that nobody denies.
    """
    seen: dict[str, None] = {}
    for word in (*_quoted_words(command_line), *command_line.split()):
        seen[_normalised(word)] = None
        seen[_normalised(word.strip(_QUOTE))] = None
    seen.pop("", None)
    return tuple(seen)


def find_parameters(command_line: str, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters that one of `patterns` covers.

    A pattern is `name` (with any value or none), `name=value` (that value alone, or as one of a
    comma-separated list) or either with a final `*`. Module parameters are matched with their
    prefix (`module.sig_enforce=0`); names compare as the kernel compares them.
    """
    wanted = _wanted(tuple(patterns))
    return tuple(parameter for parameter in parameters(command_line) if wanted.covers(parameter))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Patterns, sorted by what must be compared: a line has many parameters, a policy many patterns."""

    prefixes: tuple[str, ...]
    names: frozenset[str]
    values: frozenset[tuple[str, str]]

    def covers(self, parameter: str) -> bool:
        if parameter.startswith(self.prefixes):
            return True
        name, equals, value = parameter.partition("=")
        if name in self.names:
            return True
        return bool(equals) and any((name, one) in self.values for one in (value, *value.split(",")))


@lru_cache(maxsize=64)
def _wanted(patterns: tuple[str, ...]) -> _Wanted:
    prefixes, names, values = [], set(), set()
    for pattern in map(_normalised, patterns):
        name, wants_value, value = pattern.partition("=")
        if pattern.endswith("*"):
            prefixes.append(pattern[:-1])
        elif wants_value:
            values.add((name, value))
        else:
            names.add(name)
    return _Wanted(tuple(prefixes), frozenset(names), frozenset(values))


def _normalised(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").strip(_QUOTE) + equals + value.strip(_QUOTE)


def _quoted_words(text: str) -> Iterator[str]:
    """Split as the kernel's parameter parser does: spaces inside double quotes do not separate."""
    word: list[str] = []
    quoted = False
    for character in text:
        if character == _QUOTE:
            quoted = not quoted
            word.append(character)
        elif character.isspace() and not quoted:
            yield "".join(word)
            word.clear()
        else:
            word.append(character)
    yield "".join(word)
