"""The table of requirements, and the level that claims deserve."""

from __future__ import annotations

from itertools import pairwise

import pytest

from affiant.appraisal.levels import HIGHEST_ATTAINABLE, REQUIREMENTS, Judgement, explain_level
from affiant.model.level import SecurityLevel

ALL_TRUE = tuple(Judgement(r.claim, True) for r in REQUIREMENTS if r.level <= HIGHEST_ATTAINABLE)


def bent(claim: str, value: bool | None) -> tuple[Judgement, ...]:
    return tuple(Judgement(claim, value, "because") if j.claim == claim else j for j in ALL_TRUE)


def test_the_table_is_in_the_order_of_levels_and_names_each_claim_once() -> None:
    assert all(earlier.level <= later.level for earlier, later in pairwise(REQUIREMENTS))
    assert len({r.claim for r in REQUIREMENTS}) == len(REQUIREMENTS)
    assert {r.level for r in REQUIREMENTS} == set(SecurityLevel) - {SecurityLevel.UNPROVEN}


def test_all_claims_give_the_highest_level_and_the_reason_why_not_the_next() -> None:
    level, shortfalls = explain_level(ALL_TRUE)
    assert level is SecurityLevel.ENFORCED_CODE
    assert [s.claim for s in shortfalls] == ["host_attested"]
    assert shortfalls[0].level is SecurityLevel.HARDWARE_ROOTED_HOST


@pytest.mark.parametrize("value", [False, None])
@pytest.mark.parametrize("requirement", [r for r in REQUIREMENTS if r.level <= HIGHEST_ATTAINABLE])
def test_one_missing_claim_costs_its_level_and_all_above(requirement: object, value: bool | None) -> None:
    claim, at = requirement.claim, requirement.level  # type: ignore[attr-defined]
    level, shortfalls = explain_level(bent(claim, value))
    assert level == at - 1
    assert [(s.claim, s.level, s.explanation) for s in shortfalls if s.claim != "host_attested"] == [
        (claim, at, "because")
    ]


def test_nothing_judged_is_level_zero_with_every_requirement_as_a_reason() -> None:
    level, shortfalls = explain_level(())
    assert level is SecurityLevel.UNPROVEN
    assert [s.claim for s in shortfalls] == [r.claim for r in REQUIREMENTS]
    assert all(s.explanation for s in shortfalls)


def test_a_claim_for_the_host_cannot_buy_a_level_that_is_not_attainable() -> None:
    level, _ = explain_level((*ALL_TRUE, Judgement("host_attested", True)))
    assert level is HIGHEST_ATTAINABLE


@pytest.mark.parametrize("judgements", [(*ALL_TRUE, ALL_TRUE[0]), (Judgement("invented", True),)])
def test_a_claim_twice_or_from_nowhere_is_a_mistake_of_the_caller(judgements: tuple[Judgement, ...]) -> None:
    with pytest.raises(ValueError, match="judged twice, or in no requirement"):
        explain_level(judgements)


def test_a_judgement_explains_itself_exactly_when_it_does_not_hold() -> None:
    with pytest.raises(ValueError, match="explained"):
        Judgement("secure_boot_enabled", None)
    with pytest.raises(ValueError, match="explained"):
        Judgement("secure_boot_enabled", True, "why")
