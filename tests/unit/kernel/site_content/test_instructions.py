"""What code does, compared whatever its padding."""

from __future__ import annotations

import pytest

from affiant.kernel.site_content.instructions import meaning


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("909090", "0f1f00"),
        ("e900000000", "9090909090"),
        ("eb03cccccc", "0f1f440000"),
        ("eb030f1f00", "9090909090"),
        ("c390909090", "c3cccccccc"),
        ("eb7e", "eb7e"),
    ],
)
def test_padding_does_not_change_what_code_does(first: str, second: str) -> None:
    one, other = meaning(bytes.fromhex(first), 0x1000), meaning(bytes.fromhex(second), 0x1000)
    assert one == other is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("9048", "4890"),
        ("31c090", "9031c0"),
        ("cc9090", "909090"),
        ("eb02cc90", "90909090"),
        ("ebfe", "6690"),
        ("f390", "6690"),
        ("0f1f05", "0f1f00"),
    ],
)
def test_other_code_is_other_code(first: str, second: str) -> None:
    one, other = meaning(bytes.fromhex(first), 0x1000), meaning(bytes.fromhex(second), 0x1000)
    assert one != other or one is None
