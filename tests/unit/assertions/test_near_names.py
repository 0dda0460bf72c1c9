"""A name that is none: what may have been meant, in one line."""

from __future__ import annotations

import pytest

from affiant.assertions.near_names import near_names
from affiant.cli import main


def test_a_misspelt_name_is_told_what_it_is_like() -> None:
    known = ["kernel_text_intact", "modules_listed", "tasks_listed"]
    assert near_names("kernel_text_intakt", known) == "did you mean kernel_text_intact?"
    assert near_names("tasks_list", [*known, "tasks_lost"]) == "did you mean tasks_listed or tasks_lost?"


def test_of_many_names_a_few_are_told() -> None:
    assert near_names("zzz", [f"n{number}" for number in range(32)]).endswith("n7 and 24 more")
    assert near_names("zzz", ["one", "two"]) == "known: one, two"
    assert near_names("zzz", []) == "known: none"


@pytest.mark.parametrize("words", [["explain", "kernel_text_intakt"], ["facts", "kernel_texd"]])
def test_commands_do_not_answer_with_all_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assertions", *words]) == 2
    said = capsys.readouterr().err
    assert "hint: did you mean kernel_text" in said
    assert len(said) < 200
