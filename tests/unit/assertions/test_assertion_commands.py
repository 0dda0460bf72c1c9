"""The command line of the assertions, run as a person runs it."""

from __future__ import annotations

import json
import shutil

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.recording import Recording, read_recording, recordings_beside, write_recording
from affiant.cli import main
from affiant.model.errors import MalformedError
from affiant.model.outcome import Outcome

LISTED = {"listed": [{"name": "dummy", "base": "0xffffffffc0000000"}]}


@pytest.fixture
def rule(tmp_path, capsys):
    """Return a script just begun, with both recordings that it needs."""
    assert main(["assertions", "new", "named_modules", "--folder", str(tmp_path)]) == 0
    capsys.readouterr()
    nameless = {"listed": [{"name": "", "base": "0xffffffffc0000000"}]}
    for case, outcome, subjects, modules in (
        ("healthy", Outcome.HOLDS, (), LISTED),
        ("nameless", Outcome.VIOLATED, ("module at 0xffffffffc0000000",), nameless),
    ):
        write_recording(
            tmp_path, Recording("named_modules", case, "made up", outcome, subjects, {"modules": modules})
        )
    return tmp_path / "named_modules.star"


def test_list_names_every_rule_and_the_digest(capsys):
    assert main(["assertions", "list"]) == 0
    told = capsys.readouterr().out
    bundle = packaged_library()
    assert all(script.name in told and script.sentence in told for script in bundle.scripts)
    assert bundle.digest.hex() in told
    assert main(["assertions", "list", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in content["assertions"]] == [script.name for script in bundle.scripts]


def test_explain_tells_what_a_rule_cannot_see(capsys, rule):
    assert main(["assertions", "explain", "modules_listed"]) == 0
    assert "What it cannot see: " in capsys.readouterr().out
    assert main(["assertions", "explain", str(rule), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sections"]["Kernels"] == "Where it was seen to work."


def test_explain_of_an_unknown_rule_tells_what_is_known(capsys):
    assert main(["assertions", "explain", "nothing"]) == 2
    told = capsys.readouterr().err
    assert "no property 'nothing'" in told
    assert "binary_formats_owned" in told
    assert "affiant assertions list" in told
    assert main(["assertions", "explain", "kernel_text_intect"]) == 2
    assert "did you mean kernel_text_intact" in capsys.readouterr().err


def test_a_new_script_is_clean_and_tests_as_expected(rule, capsys):
    assert main(["assertions", "lint", str(rule)]) == 0
    assert main(["assertions", "test", str(rule)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "as expected  named_modules.healthy: holds",
        "as expected  named_modules.nameless: violated",
    ]


def test_new_refuses_to_overwrite_and_bad_names(rule, capsys):
    before = rule.read_text()
    assert main(["assertions", "new", "named_modules", "--folder", str(rule.parent)]) == 2
    assert "already there" in capsys.readouterr().err
    assert rule.read_text() == before
    assert main(["assertions", "new", "../evil", "--folder", str(rule.parent)]) == 2
    assert main(["assertions", "new", "fine", "--folder", str(rule.parent / "missing")]) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("count = 1", ""), ""),
        (('ok("module %s"', 'ok(1 + "%s"'), "24:36: Expected type `str` but got"),
        (("Why: What", "Because: What"), "the docstring has no section 'Why'"),
        (
            ('FACTS = ["modules"]', 'FACTS = ["modules", "tasks"]'),
            "18:21: FACTS names 'tasks', which check does not read",
        ),
        (('"modules"', '"astrology"'), "18:10: FACTS names 'astrology', which is no known fact"),
        (('["modules"]\n', '["mudoles"]\n'), "did you mean 'modules'?"),
        (
            ("MODE =", 'QUERIES = {"tasks": {"path": "x"}}\nMODE ='),
            "QUERIES asks for 'tasks', which check does not read",
        ),
        (("MODE =", 'QUERIES = {"q": {"path": "x", "deep": 1}}\nMODE ='), "17:31: query q: has 'deep'"),
        (("def check", "def look"), "the script defines no function check(facts)"),
        (
            ("return observations", "return observations +"),
            "27:26: Parse error: unexpected new line here",
        ),
        (("return observations\n", "return [\n"), "27:13: Parse error: the script ends in the middle"),
        (("return observations", "return ]"), "27:12: Parse error: unexpected symbol ']' here"),
        (('SENTENCE = "Every', 'SENTENCE = "" and "'), "14:12: SENTENCE is one sentence on one line"),
        (('SENTENCE = "Every', 'SENTENCE_ = "Every'), "12:1: the header sets no SENTENCE"),
        (('NAME = "named', 'NAME = "nemed'), "12:8: NAME must be 'named_modules', as the file is called"),
        (('"medium"', '"huge"'), "15:12: SEVERITY is one of 'low'"),
        (('TECHNIQUE = ""', 'TECHNIQUE = "rootkit"'), "16:13: TECHNIQUE is a MITRE"),
        (('MODE = "audit"', 'MODE = "off"'), "17:8: MODE is one of"),
        (("VERSION = 1", "VERSION = 0"), "13:11: VERSION is a whole number"),
        (("module in facts", "module in nowhere"), "22:19: Variable `nowhere` not found"),
        (("facts: dict[", "facts: dict[str, int, "), "20:31: Parse error: unexpected symbol ','"),
        (("MODE =", 'QUERIES = {\n  "q": {"path": "1x"},\n}\nMODE ='), "18:9: query q: 'path' is a path"),
        (
            (
                "MODE =",
                'QUERIES = {"q": {"walk": "list", "at": "x", "of": "struct x", "by": "y", '
                '"each": {"z": {"path": "z"}}}}\nMODE =',
            ),
            "17:12: query q: the walk has no bound",
        ),
    ],
)
def test_lint_points_at_what_is_wrong(rule, capsys, change, problem):
    rule.write_text(rule.read_text().replace(*change))
    assert main(["assertions", "lint", str(rule)]) == (1 if problem else 0)
    assert problem in capsys.readouterr().out


def test_test_fails_where_a_verdict_differs(rule, capsys):
    rule.write_text(rule.read_text().replace('if module["name"]', "if True"))
    assert main(["assertions", "test", str(rule)]) == 1
    told = capsys.readouterr().out
    assert "FAILED  named_modules.nameless: holds" in told
    assert "expected violated, found holds" in told
    assert main(["assertions", "test", "--json", str(rule)]) == 1
    assert [bool(entry["differences"]) for entry in json.loads(capsys.readouterr().out)] == [False, True]


def test_test_fails_without_a_tampered_recording(rule, capsys):
    (rule.parent / "named_modules.nameless.json").unlink()
    assert main(["assertions", "test", str(rule)]) == 1
    assert "there is no recording on which it is violated" in capsys.readouterr().out


def test_facts_from_a_file_are_judged_and_told(rule, capsys, tmp_path):
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"modules": LISTED}))
    assert main(["assertions", "test", str(rule), "--facts", str(facts)]) == 0
    assert capsys.readouterr().out == "named_modules.facts.json: holds\n"
    nameless = tmp_path / "named_modules.nameless.json"
    assert main(["assertions", "test", str(rule), "--facts", str(nameless)]) == 1
    assert "    module at 0xffffffffc0000000: expected a name, found none" in capsys.readouterr().out
    facts.write_text("{}")
    assert main(["assertions", "test", str(rule), "--facts", str(facts)]) == 3
    assert "inconclusive (the fact modules is missing)" in capsys.readouterr().out


def test_files_that_are_not_there_are_one_clear_line(tmp_path, capsys):
    for action in ("lint", "test"):
        assert main(["assertions", action, str(tmp_path / "none.star")]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_a_recording_reads_back_as_it_was_written(tmp_path):
    recording = Recording(
        "named", "case", "about é", Outcome.INCONCLUSIVE, ("a", "b"), {"fact": {"x": [1, None]}}
    )
    assert read_recording(write_recording(tmp_path, recording)) == recording
    assert recordings_beside(tmp_path / "named.star") == (recording,)
    assert recordings_beside(tmp_path / "name.star") == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100000,
        b'{"about": "x"}',
        b'{"about": 1, "outcome": "holds", "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": "fine", "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": [], "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": "holds", "subjects": [1], "facts": {}}',
        b'{"about": "", "outcome": "holds", "subjects": [], "facts": []}',
        b'{"about": "", "outcome": "holds", "subjects": [], "facts": {}, "more": 1}',
        b" " * ((16 << 20) + 1),
    ],
    ids=range(12),
)
def test_what_is_no_recording_is_refused(tmp_path, content):
    path = tmp_path / "a.b.json"
    path.write_bytes(content)
    with pytest.raises(MalformedError, match=r"a\.b\.json"):
        read_recording(path)


def test_the_library_can_be_tested_where_it_lies(capsys, tmp_path):
    """A person may copy a rule and its recordings elsewhere and go on from there."""
    import importlib.resources

    folder = importlib.resources.files("affiant.assertions").joinpath("library")
    shutil.copytree(str(folder), tmp_path / "rules")
    paths = [str(path) for path in sorted((tmp_path / "rules").glob("*.star"))]
    assert main(["assertions", "test", *paths]) == 0
    assert "FAILED" not in capsys.readouterr().out
