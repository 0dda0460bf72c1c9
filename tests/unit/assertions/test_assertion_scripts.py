"""What makes a script a script, and what is refused as none."""

from __future__ import annotations

import re

import pytest

from affiant.assertions.flaw import Flaw
from affiant.assertions.script import Script, Severity, describe, lint, read_script
from affiant.model.errors import MalformedError
from affiant.model.outcome import Mode


def test_a_complete_script_is_read_with_all_that_its_header_says(write):
    source = write(
        TECHNIQUE='"T1014.001"', MODE='"audit"', SEVERITY='"critical"', FACTS='["b", "a"]', VERSION="7"
    )
    script = read_script("example", source)
    assert script == Script(
        name="example",
        version=7,
        sentence="The kernel is an example.",
        severity=Severity.CRITICAL,
        technique="T1014.001",
        mode=Mode.AUDIT,
        facts=("b", "a"),
        documentation="An example.",
        source=source,
    )


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        *[
            ({key: ""}, f"sets no {key}")
            for key in ("NAME", "VERSION", "SENTENCE", "SEVERITY", "MODE", "FACTS")
        ],
        ({"TECHNIQUE": ""}, "sets no TECHNIQUE"),
        ({"NAME": '"other"'}, "NAME must be 'example', as the file is called"),
        ({"NAME": '"Ex ample"'}, "NAME is a-z, 0-9 and _, 3 to 64 characters, not 'Ex ample'"),
        ({"NAME": "1 << 70"}, "NAME is neither a text"),
        ({"VERSION": "0"}, "VERSION"),
        ({"VERSION": "True"}, "VERSION"),
        ({"VERSION": '"1"'}, "VERSION"),
        ({"VERSION": "1 << 31"}, "VERSION"),
        ({"SENTENCE": '"No dot"'}, "SENTENCE"),
        ({"SENTENCE": '""'}, "SENTENCE"),
        ({"SENTENCE": '"Two\\nlines."'}, "SENTENCE"),
        ({"SENTENCE": '"x" * 200 + "."'}, "SENTENCE"),
        ({"SENTENCE": '"x" * 100000 + "."'}, "sensible size"),
        ({"SEVERITY": '"awful"'}, "'low', 'medium', 'high', 'critical'"),
        ({"TECHNIQUE": '"rootkit"'}, "line 7, column 13: TECHNIQUE is a MITRE ATT&CK technique"),
        ({"MODE": '"off"'}, "'enforce', 'audit'"),
        ({"MODE": "[]"}, "MODE"),
        ({"FACTS": "[]"}, "FACTS"),
        ({"FACTS": '["a", "a"]'}, "FACTS"),
        ({"FACTS": '["../a"]'}, "FACTS"),
        ({"FACTS": '"fact"'}, "FACTS"),
        ({"FACTS": '["f%d" % i for i in range(17)]'}, "FACTS"),
        ({"FACTS": '[["fact"]]'}, "sensible size"),
    ],
)
def test_an_incomplete_header_is_refused(write, header, complaint):
    with pytest.raises(MalformedError, match=re.escape(complaint)):
        read_script("example", write(**header))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda source: source.replace('"""An example."""', ""), "docstring"),
        (lambda source: source.replace("An example.", "   "), "docstring"),
        (lambda source: source.replace("An example.", r"An \x41."), "docstring"),
        (lambda source: source.replace("def check(facts)", "def look(facts)"), "check"),
        (
            lambda source: source.replace("def check(facts):", "check = 1\ndef look(facts):"),
            "function, not int",
        ),
        (lambda source: source + "x = \n", r"line \d+, column 5: Parse error"),
        (lambda source: source + "x = nowhere\n", r"line \d+, column 5: Variable `nowhere` not found"),
        (lambda source: source + "fail('why')\n", r"line \d+, column 1: why"),
        (lambda source: source + "#" * 65536, "at most 65536"),
        (lambda source: source + "x = '\ud800'", "not UTF-8"),
        (lambda source: source + 'load("fold", "fold")', "no module 'fold'"),
        (lambda source: source + 'load("example", "check")', "no module 'example'"),
        (lambda source: source + 'load("fact:modules", "value")', "no module 'fact:modules'"),
        (lambda source: source + 'load("/etc/passwd", "root")', "no module '/etc/passwd'"),
    ],
)
def test_what_is_no_script_is_refused_with_its_place(write, change, complaint):
    with pytest.raises(MalformedError, match=complaint):
        read_script("example", change(write()))


def test_a_script_that_kills_the_worker_while_compiling_is_refused_and_its_neighbours_are_read(write):
    sources = {
        "first": write(name="first"),
        "crash": write(name="crash", top="x = " + "-" * 50000 + "1"),
        "middle": write(name="middle"),
        "panic": write(name="panic", top="x = " + "lambda: " * 6000 + "1"),
        "last": write(name="last"),
    }
    outcomes = describe(sources)
    assert list(outcomes) == list(sources)
    assert [isinstance(outcome, Script) for outcome in outcomes.values()] == [True, False, True, False, True]
    assert "SIGSEGV" in str(outcomes["crash"])


def test_documentation_is_the_docstring_after_comments_and_dedented(write):
    source = write().replace('"""An example."""', '# SPDX\n\n"""First.\n\n    Claims: a\n      b\n"""')
    assert read_script("example", source).documentation == "First.\n\nClaims: a\n  b"


def test_lint_points_at_line_and_column_of_a_wrong_type(write):
    problems = lint(write('return [ok("x", count = "three")]'))
    assert Flaw(12, 21, "Expected type `int` but got `str`") in problems


def test_lint_refuses_what_cannot_be_parsed():
    with pytest.raises(MalformedError, match=r"line 1, column \d+: Parse error"):
        lint("x = (")
    with pytest.raises(MalformedError, match="SIGSEGV"):
        lint("x = " + "-" * 50000 + "1")
