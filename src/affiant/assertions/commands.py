"""Command line of the assertions: see them, write them, test them."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.assertions.script import Script
    from affiant.model.outcome import AssertionResult

__all__ = ["register", "test"]


def register(
    subcommands: _SubParsersAction[argparse.ArgumentParser],
) -> _SubParsersAction[argparse.ArgumentParser]:
    """Add `affiant assertions`, and return its actions, for a door above that knows machines."""
    parser = subcommands.add_parser(
        "assertions", help="the properties that are looked at: see, write and test them"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    show = actions.add_parser("list", help="list the properties of the library")
    show.add_argument("--json", action="store_true", help="for programs")
    show.set_defaults(run=_list)

    explain = actions.add_parser("explain", help="tell what a property claims and what it cannot see")
    explain.add_argument("name", metavar="NAME", help="a property of the library, or a .star file")
    explain.add_argument("--json", action="store_true", help="for programs")
    explain.set_defaults(run=_explain)

    facts = actions.add_parser("facts", help="tell what built-in facts a script can read")
    facts.add_argument("name", metavar="NAME", nargs="?", help="one of them, with its fields")
    facts.add_argument("--json", action="store_true", help="for programs")
    facts.set_defaults(run=_facts)

    docs = actions.add_parser(
        "docs",
        help="write a page for each property",
        description="Writes Markdown pages made of the scripts' own docstrings, and a table of contents: of "
        "the files given, or of the library with all built-in facts.",
    )
    docs.add_argument("folder", metavar="FOLDER", type=Path, help="where the pages are written")
    docs.add_argument("files", metavar="FILE", type=Path, nargs="*", help="scripts (default: the library)")
    docs.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    docs.set_defaults(run=_docs)

    new = actions.add_parser("new", help="begin a script")
    new.add_argument("name", metavar="NAME", help="what it is called: modules_listed")
    new.add_argument("--folder", type=Path, default=Path(), help="where to write it (default: here)")
    new.set_defaults(run=_new)

    lint = actions.add_parser("lint", help="check scripts; 1 if anything is to be changed")
    lint.add_argument("files", metavar="FILE", type=Path, nargs="+", help="scripts (.star)")
    lint.add_argument("--json", action="store_true", help="for programs")
    lint.set_defaults(run=_lint)

    judge = actions.add_parser(
        "test",
        help="judge the recordings beside scripts; 1 if a verdict differs",
        description="Judges the recordings beside scripts: 1 if a verdict differs from the stated one, or if "
        "one of the two recordings that each script needs is missing. With --facts or --vm: 1 if a rule "
        "is violated, 3 if it is inconclusive.",
    )
    judge.add_argument("files", metavar="FILE", type=Path, nargs="+", help="scripts (.star)")
    judge.add_argument(
        "--facts", type=Path, metavar="JSON", help="judge these facts instead, and tell the verdict"
    )
    judge.add_argument("--json", action="store_true", help="for programs")
    judge.set_defaults(run=test)
    return actions


def _list(arguments: argparse.Namespace) -> int:
    from affiant.assertions.bundle import packaged_library

    bundle = packaged_library()
    if arguments.json:
        content = {
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest.hex(),
            "assertions": [_described(script) for script in bundle.scripts],
        }
        print(json.dumps(content, indent=2))
        return 0
    width = max(len(script.name) for script in bundle.scripts)
    for script in bundle.scripts:
        print(f"{script.name:{width}}  {script.severity.value:8}  {script.mode.value:7}  {script.sentence}")
    print(f"\n{bundle.name} version {bundle.version}, SHA-256 {bundle.digest.hex()}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from affiant.assertions.authoring import load
    from affiant.assertions.bundle import packaged_library
    from affiant.assertions.documentation import SECTIONS, sections
    from affiant.assertions.near_names import near_names
    from affiant.assertions.query import describe_query
    from affiant.model.errors import SetupError

    if arguments.name.endswith(".star"):
        script, _ = load(Path(arguments.name))
    else:
        bundle = packaged_library()
        found = [script for script in bundle.scripts if script.name == arguments.name]
        if not found:
            raise SetupError(
                f"the library has no property {arguments.name!r}",
                hint=f"{near_names(arguments.name, (script.name for script in bundle.scripts))}"
                " (all of them: affiant assertions list)",
            )
        script = found[0]
    texts = sections(script)
    if arguments.json:
        print(json.dumps(_described(script) | {"sections": texts}, indent=2))
        return 0
    _paragraph(f"{script.name} (version {script.version}, {script.severity.value}, {script.mode.value})")
    _paragraph(script.sentence)
    for title, heading in SECTIONS.items():
        _paragraph(f"{heading}: {texts.get(title) or 'not said'}")
    technique = f", MITRE ATT&CK {script.technique}" if script.technique else ""
    _paragraph(f"Facts: {', '.join(script.facts) or 'none'}{technique}")
    for query in script.queries:
        _paragraph(f"Query {query.name}: {describe_query(query)}")
    return 0


def _facts(arguments: argparse.Namespace) -> int:
    from affiant.assertions.near_names import near_names
    from affiant.kernel.facts.registry import FACTS
    from affiant.model.errors import SetupError

    if arguments.name is not None and arguments.name not in FACTS:
        raise SetupError(
            f"there is no built-in fact {arguments.name!r}", hint=near_names(arguments.name, FACTS)
        )
    chosen = [fact for name, fact in FACTS.items() if arguments.name in (None, name)]
    if arguments.json:
        keys = ("name", "version", "description", "fields")
        print(json.dumps([{key: getattr(fact, key) for key in keys} for fact in chosen], indent=2))
        return 0
    width = max(len(fact.name) for fact in chosen)
    for fact in chosen:
        print(f"{fact.name:{width}}  {fact.description}")
    if arguments.name is not None:
        for name, meaning in chosen[0].fields.items():
            _paragraph(f"  {name}: {meaning}")
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    import sys

    from affiant.assertions.authoring import load
    from affiant.assertions.bundle import make_bundle, packaged_library
    from affiant.assertions.documentation import LIBRARY, pages, stale_pages, write_pages
    from affiant.kernel.facts.registry import FACTS
    from affiant.model.errors import SetupError

    if arguments.files:
        sources = {script.name: script.source for script, _ in map(load, arguments.files)}
        folder = os.path.relpath(arguments.files[0].parent, arguments.folder)
        wanted = pages(make_bundle("own", 1, sources), title="Assertions", scripts=folder)
    else:
        wanted = pages(packaged_library(), FACTS.values(), title="The library of assertions", scripts=LIBRARY)
    if arguments.check:
        stale = stale_pages(arguments.folder, wanted)
        for name in stale:
            print(f"error: {arguments.folder / name} is stale", file=sys.stderr)
        return 1 if stale else 0
    try:
        changed = write_pages(arguments.folder, wanted)
    except OSError as error:
        raise SetupError(f"{arguments.folder} cannot be written: {error.strerror}") from None
    print(f"{arguments.folder}: {len(changed)} of {len(wanted)} pages written or removed")
    return 0


def _new(arguments: argparse.Namespace) -> int:
    from affiant.assertions.authoring import begin

    path = begin(arguments.name, arguments.folder)
    print(f"wrote {path}; next: affiant assertions lint {path}")
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    from affiant.assertions.authoring import problems
    from affiant.kernel.facts.registry import FACTS

    found = {str(path): problems(path, known_facts=FACTS) for path in arguments.files}
    if arguments.json:
        content = {
            path: [{"line": p.line, "column": p.column, "text": p.text} for p in listed]
            for path, listed in found.items()
        }
        print(json.dumps(content, indent=2))
    else:
        for path, listed in found.items():
            for problem in listed:
                print(f"{path}:{problem}" if problem.line else f"{path}: {problem}")
    return 1 if any(found.values()) else 0


def test(arguments: argparse.Namespace) -> int:
    """Judge the recordings beside scripts, or facts in a file."""
    from affiant.assertions.authoring import load, untested
    from affiant.assertions.engine import Engine
    from affiant.assertions.recording import read_facts, recordings_beside, replay
    from affiant.assertions.telling import entry_of, exit_code, lines_of

    failed = False
    judged: list[AssertionResult] = []
    told: list[dict[str, object]] = []
    for path in arguments.files:
        script, bundle = load(path)
        with Engine(bundle) as engine:
            if arguments.facts is not None:
                (result,) = engine.judge(read_facts(arguments.facts))
                judged.append(result)
                told.append(entry_of(result, case=arguments.facts.name))
                continue
            recordings = recordings_beside(path)
            for recording in recordings:
                result, differences = replay(engine, recording)
                failed = failed or bool(differences)
                told.append(entry_of(result, case=recording.case, differences=differences))
        for problem in untested(path, recordings) if arguments.facts is None else ():
            failed = True
            told.append({"script": script.name, "case": "", "differences": [str(problem)]})
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        for entry in told:
            print("\n".join(lines_of(entry)))
    return 1 if failed else exit_code(judged)


def _described(script: Script) -> dict[str, object]:
    from affiant.assertions.query import describe_query

    return {
        "name": script.name,
        "version": script.version,
        "sentence": script.sentence,
        "severity": script.severity.value,
        "technique": script.technique,
        "mode": script.mode.value,
        "facts": list(script.facts),
        "queries": {query.name: describe_query(query) for query in script.queries},
    }


def _paragraph(text: str) -> None:
    import textwrap

    print(textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False))
