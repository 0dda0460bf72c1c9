"""Every attack starts from a truthful world."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulator import Machine, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A service that trusts one maker of TPMs, one monitor and one kernel."""
    return make_world(tmp_path / "service")


@pytest.fixture
def machine(world: World) -> Machine:
    """A machine that was booted and enrolled, and deserves level 4."""
    return world.machine()
