"""What a person does with a script before it judges anything: begin it, lint it, test it."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from affiant.assertions.bundle import Bundle, make_bundle
from affiant.assertions.documentation import missing_sections
from affiant.assertions.flaw import Flaw, ScriptError, place_of
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.assertions.recording import Recording
from affiant.assertions.script import Script, lint, read_script
from affiant.model.errors import MalformedError, SetupError
from affiant.model.outcome import Outcome

__all__ = ["begin", "load", "problems", "untested"]

_NAME = re.compile(r"[a-z][a-z0-9_]{2,63}\Z")


def begin(name: str, folder: Path) -> Path:
    """Write a script to start from, which compiles and is in audit mode; return its path.

    Raises `SetupError` for a name that no script can have, or if the file is already there.
    """
    if not _NAME.match(name):
        raise SetupError(
            f"{name!r} is no name for a property",
            hint="Use 3 to 64 of a-z, 0-9 and _, beginning with a letter: modules_listed.",
        )
    template = importlib.resources.files("affiant.assertions").joinpath("template.star").read_text("utf-8")
    sentence = f"Every {name.replace('_', ' ')} is as the kernel was built."
    path = folder / f"{name}.star"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template.replace("{name}", name).replace("{sentence}", sentence))
    except FileExistsError:
        raise SetupError(f"{path} is already there") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None
    return path


def load(path: Path) -> tuple[Script, Bundle]:
    """Return the script in a file, and a bundle of it alone.

    Raises `SetupError` if the file cannot be read and `MalformedError`, which tells file, line and column,
    if it is no script.
    """
    source = _read(path)
    name = path.name.removesuffix(".star")
    try:
        script = read_script(name, source)
    except ScriptError as error:
        told = "; ".join(f"{path}:{flaw}" if flaw.line else f"{path}: {flaw}" for flaw in error.flaws)
        raise MalformedError(told, hint=f"affiant assertions lint {path}") from None
    return script, make_bundle("one-script", 1, {name: source})


def problems(path: Path, *, known_facts: Collection[str]) -> tuple[Flaw, ...]:
    """Return all that is wrong with the script in a file, empty if nothing is.

    Looked at: whether it is a script at all, what Starlark's linter and type checker say, facts that
    nobody offers, facts and answers that are declared and not used, and sections that the documentation
    lacks. Raises `SetupError` if the file cannot be read.
    """
    source = _read(path)
    found: list[Flaw] = []
    try:
        found += lint(source)
        script = read_script(path.name.removesuffix(".star"), source)
    except ScriptError as error:
        return _in_order([*found, *error.flaws])
    found += _unknown(script, known_facts)
    found += _unread(script, known_facts)
    found += [
        Flaw(*_documented_at(source), f"the docstring has no section {title!r}")
        for title in missing_sections(script)
    ]
    return _in_order(found)


def untested(path: Path, recordings: Collection[Recording]) -> tuple[Flaw, ...]:
    """Return which of the two recordings that each script needs are missing: healthy and tampered."""
    outcomes = {recording.outcome for recording in recordings}
    needed = {Outcome.HOLDS: "on which it holds", Outcome.VIOLATED: "on which it is violated"}
    return tuple(
        Flaw(0, 0, f"there is no recording {text} beside {path.name}")
        for outcome, text in needed.items()
        if outcome not in outcomes
    )


def _unknown(script: Script, known: Collection[str]) -> Iterator[Flaw]:
    for fact in script.facts:
        if fact not in known:
            close = difflib.get_close_matches(fact, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "; `affiant assertions facts` lists them"
            text = f"FACTS names {fact!r}, which is no known fact{meant}"
            yield Flaw(*place_of(script.source, "FACTS", fact), text)


def _unread(script: Script, known: Collection[str]) -> Iterator[Flaw]:
    code = script.source.replace(script.documentation, "")
    for fact in script.facts:
        if fact in known and len(re.findall(rf"""["']{fact}["']""", code)) < 2:
            text = f"FACTS names {fact!r}, which check does not read"
            yield Flaw(*place_of(script.source, "FACTS", fact), text)
    before, _, declared = code.partition("\nQUERIES")
    for query in script.queries:
        # A name that is written once, and there, is that of the declaration; one that is made up is not
        # written, and one that a table above holds is read by it.
        written = rf"""["']{query.name}["']"""
        if (
            re.search(rf"{written}\s*:", declared)
            and len(re.findall(written, declared)) == 1
            and not re.search(written, before)
        ):
            text = f"QUERIES asks for {query.name!r}, which check does not read"
            yield Flaw(*place_of(script.source, "QUERIES", query.name), text)


def _documented_at(source: str) -> tuple[int, int]:
    at = source.find('"""')
    return source.count("\n", 0, at) + 1, at - source.rfind("\n", 0, at)


def _in_order(flaws: Iterable[Flaw]) -> tuple[Flaw, ...]:
    return tuple(sorted(flaws, key=lambda flaw: (flaw.line, flaw.column, flaw.text)))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            encoded = file.read(DEFAULT_LIMITS.source_bytes + 1)
        return encoded.decode()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MalformedError(f"{path} is not UTF-8") from None
