"""Every technique of the table, on every kernel that it applies to: told, undone, and survived."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from lab.guests import load_modules, unload_modules
from lab.live_guest import LiveGuest
from lab.looking import SkippingClock
from lab.tamper.table import TECHNIQUES
from lab.tamper.technique import Technique
from lab.tamper.trial import assert_healthy, try_technique


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(packaged_library()) as engine:
        yield engine


@pytest.fixture(scope="module")
def clock() -> SkippingClock:
    return SkippingClock()


@pytest.fixture(scope="module")
def live(supported: LiveGuest) -> Iterator[LiveGuest]:
    load_modules(supported.lab)
    yield supported
    unload_modules(supported.lab)


def test_a_healthy_guest_holds_every_property(live: LiveGuest, engine: Engine, clock: SkippingClock) -> None:
    assert_healthy(live, engine, clock=clock)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_a_tampered_guest_is_told_of_until_it_is_restored(
    live: LiveGuest, engine: Engine, clock: SkippingClock, technique: Technique
) -> None:
    if live.lab.plan.suite not in technique.suites:
        pytest.skip(f"the kernel of {live.lab.plan.suite} has nothing that {technique.name} changes")
    try_technique(live, engine, technique, clock=clock)
