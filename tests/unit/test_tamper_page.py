"""The page of techniques tells each of them, and a page that is not of today's table is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from affiant.model.outcome import Outcome
from lab.tamper.page import page, stale
from lab.tamper.report import main
from lab.tamper.table import TECHNIQUES
from lab.tamper.technique import SUITES, Technique
from lab.tamper.trial import Sighting

KERNELS = {"bookworm": "6.1.0-56-cloud-amd64", "trixie": "6.12.118+deb13-cloud-amd64", "sid": "7.2.13"}
HOOK = replace(TECHNIQUES[0], family="BPF and text", name="hook", about="A hook.", suites=SUITES, attack="")
BLIND = replace(HOOK, name="blind", outcome=Outcome.INCONCLUSIVE, about="A blindfold.", suites=("sid",))


def made(*techniques: Technique, seconds: float = 5.26) -> str:
    seen = {
        (technique.name, suite): Sighting(technique, 1, seconds, "told")
        for technique in techniques
        for suite in technique.suites
    }
    return page(KERNELS, seen, techniques)


PAGE = made(HOOK, BLIND)


def test_a_row_says_who_told_it_and_how_soon() -> None:
    rule = f"[`{HOOK.rule}`](assertions/{HOOK.rule}.md)"
    lines = PAGE.splitlines()
    assert "| technique | ATT&CK | told by | 6.1 | 6.12 | 7.2 |" in lines
    assert f"| A hook. | - | {rule} | 5.3 s | 5.3 s | 5.3 s |" in lines
    assert f"| A blindfold. | - | {rule}, inconclusive | - | - | 5.3 s |" in lines
    assert "| < 0.1 s |" in made(HOOK, seconds=0.04)
    assert lines[-1] == "2 techniques, 4 trials."


def test_a_family_is_spelt_as_it_is() -> None:
    assert "## BPF and text" in PAGE.splitlines()


def test_columns_are_those_of_their_kernels_in_whatever_order_they_were_tried() -> None:
    assert page(dict(reversed(KERNELS.items())), {}, [HOOK]) == page(KERNELS, {}, [HOOK])


def test_a_page_of_today_is_not_stale() -> None:
    assert stale(PAGE, [HOOK, BLIND]) == ()
    assert stale(made(*TECHNIQUES), TECHNIQUES) == ()


def test_a_technique_that_is_missing_or_gone_is_told() -> None:
    new = replace(HOOK, name="new", about="Something new.")
    assert stale(PAGE, [HOOK, BLIND, new]) == (
        "it does not end with: 3 techniques, 7 trials.",
        "new is missing, or is told otherwise",
    )
    gone, count = sorted(stale(PAGE, [HOOK]), key=len, reverse=True)
    assert gone.startswith("there is no more: | A blindfold. | - |")
    assert count == "it does not end with: 1 techniques, 3 trials."


@pytest.mark.parametrize(
    "otherwise",
    [
        replace(HOOK, about="Another hook."),
        replace(HOOK, rule="tasks_listed"),
        replace(HOOK, attack="T1014"),
        replace(HOOK, outcome=Outcome.INCONCLUSIVE),
        replace(HOOK, family="text"),
    ],
)
def test_a_technique_that_is_told_otherwise_today_is_told(otherwise: Technique) -> None:
    assert "hook is missing, or is told otherwise" in stale(PAGE, [otherwise, BLIND])


def test_a_kernel_without_a_time_and_a_time_without_reason_are_told() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| A hook."))
    without = PAGE.replace(row, row.replace("5.3 s", "-", 1))
    assert stale(without, [HOOK, BLIND]) == ("hook has '-' on the kernel of bookworm",)
    fewer = replace(HOOK, suites=("bookworm", "trixie"))
    found = stale(PAGE, [fewer, BLIND])
    assert found == ("hook has '5.3 s' on the kernel of sid", "it does not end with: 2 techniques, 3 trials.")


def test_check_tells_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(made(*TECHNIQUES))
    assert main(["--check", str(path)]) == 0
    path.write_text(made(*TECHNIQUES[1:]))
    assert main(["--check", str(path)]) == 1
    assert f"{TECHNIQUES[0].name} is missing" in capsys.readouterr().out
