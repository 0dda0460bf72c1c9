"""The table of techniques is whole: every rule of the library has one that it must tell."""

from __future__ import annotations

import re
from itertools import groupby

from affiant.assertions.bundle import packaged_library
from lab.tamper.table import TECHNIQUES
from lab.tamper.technique import SUITES


def test_every_rule_has_a_technique_and_every_technique_a_rule() -> None:
    rules = {script.name for script in packaged_library().scripts}
    assert {technique.rule for technique in TECHNIQUES} == rules


def test_rows_are_told_apart_and_say_what_they_do() -> None:
    names = [technique.name for technique in TECHNIQUES]
    assert len(names) == len(set(names))
    for technique in TECHNIQUES:
        assert re.fullmatch(r"T\d{4}(\.\d{3})?|", technique.attack), technique.name
        assert technique.about.endswith("."), technique.name
        assert set(technique.suites) <= set(SUITES), technique.name
        assert technique.suites, technique.name


def test_families_stand_together() -> None:
    families = [technique.family for technique in TECHNIQUES]
    assert len(list(groupby(families))) == len(set(families))
