"""How facts are told to scripts: as JSON, and lists within bounds.

String keys, integers within 53 bits, everything larger (addresses above all) as `0x` strings, bytes as hex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

__all__ = ["LONGEST_INVENTORY", "LONGEST_LIST", "Json", "bounded"]

Json = Any  # what json.dumps accepts; scripts check the shape themselves
_Entry = TypeVar("_Entry")

LONGEST_LIST: Final = 256
"""Entries that are told of a list that grows with tampering."""

LONGEST_INVENTORY: Final = 8192
"""Entries of a list that is an inventory (tasks, modules)."""


def bounded(
    name: str,
    entries: Sequence[_Entry],
    tell: Callable[[_Entry], Json],
    *,
    most: int = LONGEST_LIST,
    left_out: int = 0,
) -> dict[str, Json]:
    """Return the first entries of a list under its name, and under `<name>_left_out` how many more there are.

    `left_out` counts those that did not even come into the list.
    """
    told = [tell(entry) for entry in entries[:most]]
    return {name: told, f"{name}_left_out": left_out + len(entries) - len(told)}
