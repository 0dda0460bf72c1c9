"""The command line as a whole: help, errors, completion, a reader that leaves."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from affiant.cli import build_parser, main
from affiant.model.errors import UnavailableError


def subparsers(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield " ".join(path), parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from subparsers(sub, (*path, name))


PARSERS = dict(subparsers(build_parser()))


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_every_option_says_what_it_is(name: str) -> None:
    unsaid = [
        action.dest
        for action in PARSERS[name]._actions
        if not action.help and (action.option_strings or not action.metavar)
    ]
    groups = [action for action in PARSERS[name]._actions if isinstance(action, argparse._SubParsersAction)]
    assert not [dest for dest in unsaid if dest not in {group.dest for group in groups} | {"shell"}]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("verify", "trust-ek", "--min-level"))


def test_a_completion_script_is_one_for_bash() -> None:
    script = subprocess.run(
        [sys.executable, "-m", "affiant.cli", "completion", "bash"], capture_output=True, check=True
    ).stdout
    subprocess.run(["bash", "-n"], input=script, check=True)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m affiant.cli completion zsh | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.endswith(("141\n", "0\n"))


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "/nonexistent", "--root", "/nonexistent", "--nonce", "00" * 32]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2


def test_words_of_others_in_an_error_do_not_reach_the_terminal_as_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay says why there is no passport, and may say it in escape sequences."""

    def fail(_: argparse.Namespace) -> int:
        raise UnavailableError("no passport now: \x1b[2J\x1b]0;owned\x07\u202e", hint="wait\r\x1b[1A")

    monkeypatch.setattr("affiant.cli._completion", fail)
    assert main(["completion", "bash"]) == 3
    error = capsys.readouterr().err
    assert (
        error
        == "error: no passport now: \\u001b[2J\\u001b]0;owned\\u0007\\u202e\nhint: wait\\u000d\\u001b[1A\n"
    )


@pytest.mark.parametrize(
    "words", [["vm", "stop", "one"], ["rules", "new-key", "x.pem"], ["completion", "bash"]]
)
def test_an_unknown_option_is_told_with_the_usage_of_its_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--nothing"])
    said = capsys.readouterr().err
    assert said.startswith(f"usage: affiant {' '.join(words[:-1])} ")
    assert f"affiant {' '.join(words[:-1])}: error: unrecognized arguments: --nothing" in said
