"""Which guests are soaked."""

from __future__ import annotations

import pytest

from lab.soak import KINDS, chosen


def _names(*asked: str) -> list[str]:
    return [kind.name for kind in chosen(asked)]


def test_a_name_in_full_is_that_guest_alone() -> None:
    assert _names("bookworm-2") == ["bookworm-2"]


def test_a_part_of_a_name_is_every_guest_that_has_it() -> None:
    assert _names("patching") == [kind.name for kind in KINDS if kind.name.endswith("-patching")]


def test_several_names_are_soaked_once_each_in_the_table_s_order() -> None:
    assert _names("sid-2", "bookworm-2", "sid-2") == ["bookworm-2", "sid-2"]


def test_no_name_is_every_guest() -> None:
    assert _names() == [kind.name for kind in KINDS]


def test_a_name_of_no_guest_is_refused() -> None:
    with pytest.raises(ValueError, match="no guest is called 'buster'"):
        chosen(["sid-2", "buster"])
