"""Which guests are soaked, and how often their load came round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lab import soak
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


def test_rounds_are_counted_where_the_kernel_speaks_in_between() -> None:
    """A line that a message has torn is read the next time; a loop that nobody tells of came round never."""
    said = iter(
        ["  12 /tmp/soak.0\n[   3.1] smpboot: CPU 1 is now offline\n 7 /tmp/so[ 3.2] x\nak.1\n 19 total\n"]
        + ["  13 /tmp/soak.0\n 7 /tmp/soak.1\n 0 /tmp/soak.2\n 20 total\n"] * soak._TRIES
    )
    guest = SimpleNamespace(plan=KINDS[0].plan, console=SimpleNamespace(run=lambda *_, **__: next(said)))
    rounds = list(soak._rounds(guest).values())
    assert rounds[:3] == [13, 7, 0] and set(rounds[3:]) == {0}
