from __future__ import annotations

import pytest

from tests.unit.kernel.site_world import SiteWorld


@pytest.fixture
def world() -> SiteWorld:
    return SiteWorld()
