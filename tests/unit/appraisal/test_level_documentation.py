"""docs/security-levels.md shows the table that the service uses."""

from __future__ import annotations

from pathlib import Path

from affiant.appraisal.levels import REQUIREMENTS, Requirement
from affiant.appraisal.windows_levels import WINDOWS_REQUIREMENTS
from affiant.model.level import SecurityLevel

PAGE = (Path(__file__).parents[3] / "docs" / "security-levels.md").read_text()


GUESTS, WINDOWS = PAGE.split("## Windows machines")


def published(text: str) -> list[str]:
    """The rows of a table of requirements."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line.split("|")[2].strip().startswith("`")]


def rows(table: tuple[Requirement, ...]) -> list[str]:
    return [f"| {int(r.level)} {r.level.title} | `{r.claim}` | {r.sentence} |" for r in table]


def test_the_published_requirements_are_those_in_the_code() -> None:
    assert published(GUESTS) == rows(REQUIREMENTS)


def test_the_published_requirements_of_windows_are_those_in_the_code() -> None:
    assert published(WINDOWS) == rows(WINDOWS_REQUIREMENTS)


def test_every_level_has_its_row_and_its_section() -> None:
    for level in SecurityLevel:
        assert f"| {int(level)} | {level.title} |" in PAGE
        assert f"### {int(level)}, {level.title}" in PAGE
