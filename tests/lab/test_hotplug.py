"""Processors that come and go: parked ones are compared, those that start are found no fault with."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from affiant.kernel.facts.registry import collect
from lab.guests import GuestPlan, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of
from lab.tamper.technique import SUITES

_ONLINE: Final = "/sys/devices/system/cpu/cpu1/online"
_FACTS: Final = ("cpu_state", "system_registers")
_TURNS: Final = 12
_ASKED_EVERY: Final = 20  # looks
_MOST_SECONDS: Final = 300.0


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
    seen = collect(live.refreshed(), _FACTS)
    facts = [seen[name].to_json() for name in _FACTS]
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
    """The guest takes it down and up again and again, until looks of both kinds fell into its start."""
    run = live.lab.console.run
    turn = f"echo 0 > {_ONLINE}; echo 1 > {_ONLINE} && n=$((n+1)); echo $n > /turns"
    run(f"rm -f /halt; {{ (n=0; while [ ! -e /halt ]; do {turn}; done) 2> /dev/null & }}")
    caught: set[str] = set()
    turns = looks = 0
    deadline = time.monotonic() + _MOST_SECONDS
    try:
        while (turns < _TURNS or len(caught) < len(_FACTS)) and time.monotonic() < deadline:
            caught |= {name for name, fact in zip(_FACTS, look(live), strict=True) if fact["starting"]}
            looks += 1
            if looks % _ASKED_EVERY == 0:
                told = re.findall(r"^(\d+)$", run("cat /turns; true", timeout=_MOST_SECONDS), re.MULTILINE)
                turns = int(told[-1]) if told else turns
    finally:
        # A start that the host is too busy for takes its time, and the guest says when it is over.
        run("touch /halt; wait; rm -f /halt /turns", timeout=_MOST_SECONDS)
        run(f"cat {_ONLINE} | grep -q 1 || echo 1 > {_ONLINE}", timeout=_MOST_SECONDS)
    assert caught == set(_FACTS), f"no look of {looks} fell into one of {turns} starts"
    assert turns >= _TURNS, f"the guest took it down and up {turns} times in {_MOST_SECONDS:.0f} s"
