"""`affiant assertions`, with what needs a machine: `record`, and `test --vm`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affiant.assertions import commands as assertions
from affiant.trial import rejudge_commands

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.assertions.bundle import Bundle
    from affiant.trial.live import LiveMachine

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `affiant assertions`."""
    actions = assertions.register(subcommands)

    test = actions.choices["test"]
    test.add_argument("--vm", metavar="NAME", help="judge this running machine instead")
    test.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="with --vm: look again for so long, until it is violated (what hides shows in about 6)",
    )
    test.set_defaults(run=_test)

    record = actions.add_parser(
        "record",
        help="record what rules read of a running machine",
        description="Writes the facts of a running machine to a file, for tests and for later. "
        "With one rule, the file is a recording of it: move it beside the rule as RULE.CASE.json.",
    )
    record.add_argument(
        "rules",
        metavar="RULE",
        nargs="*",
        help="a .star file or a rule of the library (default: the library)",
    )
    record.add_argument("--vm", metavar="NAME", required=True, help="a machine that `affiant vm` started")
    record.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the file to write")
    record.add_argument("--json", action="store_true", help="tell what was written for programs")
    record.set_defaults(run=_record)

    rejudge_commands.register(actions)


def _test(arguments: argparse.Namespace) -> int:
    if arguments.vm is None:
        return assertions.test(arguments)

    from affiant.assertions.engine import Engine
    from affiant.assertions.telling import entry_of, exit_code, lines_of
    from affiant.inspect.look import machine_target
    from affiant.model.errors import SetupError
    from affiant.trial.bundles import bundle_of
    from affiant.trial.live import judge_until, open_machine

    if arguments.facts is not None:
        raise SetupError("--facts and --vm are two things to judge", hint="leave one of them out")
    bundle = bundle_of([str(path) for path in arguments.files])
    with open_machine(machine_target(arguments.vm)) as machine, Engine(bundle) as engine:
        results, _ = judge_until(machine, engine, seconds=arguments.seconds)
    entries = [entry_of(result, case=machine.name) for result in results]
    if arguments.json:
        print(json.dumps(entries, indent=2))
    else:
        for entry in entries:
            print("\n".join(lines_of(entry)))
    return exit_code(results)


def _record(arguments: argparse.Namespace) -> int:
    from affiant.assertions.engine import Engine
    from affiant.assertions.recording import Recording, recorded_facts_text, recording_text
    from affiant.inspect.look import machine_target
    from affiant.model.errors import SetupError
    from affiant.trial.bundles import bundle_of
    from affiant.trial.live import open_machine

    bundle = bundle_of(arguments.rules)
    with open_machine(machine_target(arguments.vm)) as machine:
        facts = machine.facts_of(bundle.scripts)
    about = _about(machine)
    if len(bundle.scripts) == 1:
        with Engine(bundle) as engine:
            (result,) = engine.judge(facts)
        subjects = tuple(finding.subject for finding in result.findings)
        text = recording_text(Recording(result.name, "", about, result.outcome, subjects, facts))
        verdict = {result.name: result.outcome.value}
    else:
        text, verdict = recorded_facts_text(about, facts), {}
    try:
        with arguments.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SetupError(f"{arguments.output} is already there", hint="remove it, or name another") from None
    except OSError as error:
        raise SetupError(f"{arguments.output} cannot be written: {error.strerror}") from None
    contents = _contents(bundle, facts)
    if arguments.json:
        print(json.dumps({"file": str(arguments.output), "outcomes": verdict, "facts": contents}, indent=2))
        return 0
    print("; ".join([f"wrote {arguments.output}", *(f"{name}: {said}" for name, said in verdict.items())]))
    width = max(len(each["name"]) for each in contents)
    for each in contents:
        begin = f"  {each['name']:{width}}  {each['bytes']:>9,} bytes  "
        print(textwrap.fill(begin + each["meaning"], 140, subsequent_indent=" " * len(begin)))
    print("nothing was left out or made unreadable: names, ids and addresses are the machine's own")
    return 0


def _contents(bundle: Bundle, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the file holds, so that nobody hands on more of a machine than they know."""
    from affiant.assertions.query import describe_query
    from affiant.kernel.facts.registry import FACTS

    contents = []
    for name, fact in facts.items():
        if "unavailable" in fact:
            meaning = f"unavailable: {fact['unavailable']}"
        elif "absent" in fact:
            meaning = f"absent: {fact['absent']}"
        else:
            query = bundle.queries.get(name)
            meaning = FACTS[name].description if query is None else describe_query(query)
        meaning = "".join(character for character in meaning if character.isprintable())
        contents.append({"name": name, "bytes": len(json.dumps(fact)), "meaning": meaning})
    return contents


def _about(machine: LiveMachine) -> str:
    from datetime import UTC, datetime

    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"Linux {machine.release}, machine {machine.name}, recorded on {moment}."
