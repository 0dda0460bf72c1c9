"""Processors that come and go: parked ones are compared, those that start are found no fault with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from affiant.kernel.facts import collect
from lab.guests import GuestPlan, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of
from lab.tamper.technique import SUITES

_ONLINE: Final = "/sys/devices/system/cpu/cpu1/online"
_TURNS: Final = 12
_MOST_LOOKS: Final = 5000


@pytest.fixture(scope="module", params=SUITES)
def live(request: pytest.FixtureRequest) -> Iterator[LiveGuest]:
    """A guest of its own, whose emulated processors run at once: a processor is started by another."""
    with (
        start_guest(GuestPlan(suite=request.param, firmware=False, tpm=False)) as guest,
        open_live_guest(guest, reference_of(guest.kernel)) as live,
    ):
        yield live


def look(live: LiveGuest) -> list[dict[str, Any]]:
    """Return what is seen of all processors, of which nothing may be wrong or unreadable."""
    seen = collect(live.refreshed(), ["cpu_state", "system_registers"])
    facts = [fact.to_json() for fact in seen.values()]
    for fact in facts:
        assert (fact["deviations"], fact["unread"]) == ([], {}), facts
    return facts


def test_a_processor_that_was_taken_down_is_compared_like_any_other(live: LiveGuest) -> None:
    run = live.lab.console.run
    run(f"echo 0 > {_ONLINE}")
    try:
        assert run(f"cat {_ONLINE}").strip() == "0"
        assert [(fact["running"], fact["starting"]) for fact in look(live)] == [(2, [])] * 2
    finally:
        run(f"echo 1 > {_ONLINE}")
    assert [(fact["running"], fact["starting"]) for fact in look(live)] == [(2, [])] * 2


def test_a_processor_that_is_brought_up_is_found_no_fault_with(live: LiveGuest) -> None:
    """Looks fall wherever they do, while the guest takes it down and up again and again."""
    run = live.lab.console.run
    turn = f"echo 0 > {_ONLINE} && echo 1 > {_ONLINE} || break; n=$((n+1))"
    run(f"{{ (n=0; while [ $n -lt {_TURNS} ]; do {turn}; done; echo $n > /turns) & }}")
    try:
        for number in range(_MOST_LOOKS):
            look(live)
            if number % 20 == 19 and "turns" in run("ls /"):
                break
    finally:
        turns = run("wait; cat /turns; rm /turns")
    assert str(_TURNS) in turns.split(), "the guest did not take it down and up as often as it was told to"
