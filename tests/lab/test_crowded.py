"""A guest as crowded as a small server, on a processor without five-level paging: all as packaged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from affiant.kernel.facts.registry import collect
from lab.crowded import crowded_guest
from lab.guests import GuestPlan
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of

_FACTS = ("kernel_text", "kernel_rodata", "module_code")


@pytest.fixture(scope="module", params=["bookworm", "trixie", "sid"])
def crowded(request: pytest.FixtureRequest) -> Iterator[LiveGuest]:
    """Sixty modules with static calls, per-CPU variables and short patch sites of their own."""
    plan = GuestPlan(suite=request.param, firmware=False, tpm=False, append="no5lvl")
    with crowded_guest(plan) as guest, open_live_guest(guest, reference_of(guest.kernel)) as live:
        yield live


@pytest.mark.parametrize("anew", [True, False], ids=["anew", "steady"])
def test_sixty_modules_and_the_kernel_are_as_packaged(crowded: LiveGuest, anew: bool) -> None:
    if anew:
        crowded.guest.forget_verified()
    facts = {name: fact.to_json() for name, fact in collect(crowded.refreshed(), _FACTS).items()}
    for name in ("kernel_text", "kernel_rodata"):
        assert (facts[name]["unexplained"], facts[name]["unjudged"]) == ([], [])
    modules = facts["module_code"]["modules"]
    assert len(modules) == 60
    odd = [module for module in modules if module["verdict"] != "as packaged" or module["reason"]]
    assert odd == [], facts["module_code"]["differences"]
