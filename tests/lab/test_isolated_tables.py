"""Page table isolation on live kernels: pairs of tables are quiet, and what is put into one is found.

Emulated processors need no isolation, so that the kernels of other tests do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.page_tables.page_rights import ISOLATION
from affiant.kernel.page_tables.table_owners import known_roots
from affiant.model.outcome import Outcome
from lab.guests import GuestPlan, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.looking import WaitingClock, judge_twice
from lab.references import reference_of
from lab.tamper.technique import SUITES

_LOOKS: Final = 20
_BEHIND: Final = 0x1000
_RULES: Final = {"page_tables_shared", "pages_protected", "executable_pages_owned", "processors_as_built"}


@pytest.fixture(scope="module", params=SUITES)
def isolated(request: pytest.FixtureRequest) -> Iterator[LiveGuest]:
    plan = GuestPlan(suite=request.param, firmware=False, tpm=False, append="pti=on")
    with start_guest(plan) as guest, open_live_guest(guest, reference_of(guest.kernel)) as live:
        yield live


def rights(guest: Guest) -> dict[str, Any]:
    return collect(guest, ["page_rights"])["page_rights"].to_json()


def test_the_kernels_text_tells_that_it_isolates(isolated: LiveGuest) -> None:
    votes = [rule.votes()[ISOLATION] for rule in isolated.guest.text_content.voters]
    assert sum(there for _, there in votes) > 1
    assert sum(missing for missing, _ in votes) == 0


def test_a_guest_with_isolated_tables_is_found_no_fault_with(isolated: LiveGuest) -> None:
    """Both processors run user mode nearly always, on the other table of a pair."""
    run = isolated.lab.console.run
    run("{ (while :; do :; done) & (while :; do :; done) & }")
    try:
        halves = 0
        for _ in range(_LOOKS):
            guest = isolated.refreshed()
            halves += sum(bool(cpu.page_table & _BEHIND) for cpu in guest.cpus)
            seen = rights(guest)
            assert seen["findings"] == []
            assert all(seen["cpu_tables"].values()), seen["cpu_tables"]
            assert seen["roots"]["user halves"] > seen["roots"]["tasks"]
        assert halves, "no processor was ever seen in user mode"
        with Engine(packaged_library()) as engine:
            results = judge_twice(isolated, engine, clock=WaitingClock())
        assert [result.name for result in results if result.outcome is Outcome.VIOLATED] == []
        assert {result.name for result in results if result.outcome is Outcome.HOLDS} >= _RULES
    finally:
        run("kill %1 %2; wait")


def test_more_than_the_way_into_the_kernel_is_found(isolated: LiveGuest) -> None:
    """The other table of one process maps all memory of the machine: what Meltdown reads."""
    guest = isolated.refreshed()
    space = guest.kernel_space
    (root, *_), _ = known_roots(guest.program, space, space.leaves())
    direct_map = guest.program.word(guest.program.address("page_offset_base"))
    slot = 8 * (direct_map >> 12 + 9 * (space.levels - 1) & 511)
    entry = isolated.memory.read(space.root + slot, 8)
    with isolated.physically_changed(root.physical + _BEHIND + slot, entry):
        found = rights(isolated.refreshed())["findings"]
    assert {one["root"].startswith("user half of task ") for one in found} == {True}
    assert {one["what"] for one in found} == {"differs from the kernel's own"}
    assert rights(isolated.refreshed())["findings"] == []
