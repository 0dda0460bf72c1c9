"""Where RAM lies: the hole and the video window are none, whichever way one asks."""

from __future__ import annotations

import numpy as np
import pytest

from affiant.kernel.machine.ram_layout import RamLayout, q35_below_4g_bytes

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096


def test_q35_splits_memory_at_2_gib_from_2_75_gib_on() -> None:
    assert q35_below_4g_bytes(GIB) == GIB
    assert q35_below_4g_bytes(0xB000_0000 - PAGE) == 0xB000_0000 - PAGE
    assert q35_below_4g_bytes(0xB000_0000) == 0x8000_0000


@pytest.mark.parametrize("layout", [RamLayout(8 * MIB, 4 * MIB), RamLayout(8 * MIB, 8 * MIB)])
@pytest.mark.parametrize("unit", [1, PAGE])
def test_one_address_and_many_are_found_in_the_same_places(layout: RamLayout, unit: int) -> None:
    """At every edge, and where an address that is moved below 4 GiB would wrap around."""
    edges = (0, 0xA0000, 0xC0000, 4 * MIB, 8 * MIB, 4 * GIB, 4 * GIB + 4 * MIB, (1 << 64) - PAGE)
    near = (edge + step for edge in edges for step in (-PAGE, 0, PAGE))
    places = [place for place in near if 0 <= place < 1 << 64]
    numbers = np.array([place // unit for place in places], dtype=np.uint64)
    offsets, there = layout.offsets(numbers, unit=unit)
    for place, offset, found in zip(places, offsets.tolist(), there.tolist(), strict=True):
        expected = layout.offset(place, 1)
        assert (offset * unit if found else None) == expected, hex(place)
        assert found or offset == 0
