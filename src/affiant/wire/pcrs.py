"""PCR selections and PCR values (SHA-256 bank) inside messages."""

from __future__ import annotations

from itertools import pairwise

from affiant.wire.cbor import Item, Key
from affiant.wire.fields import Fields

__all__ = ["read_pcr_selection", "read_pcr_values", "write_pcr_values"]

_MAX_PCR = 23


def read_pcr_selection(fields: Fields, key: Key) -> tuple[int, ...]:
    """Return a selection of 1 to 24 indices, ascending. Raises `MalformedError`."""
    pcrs = fields.each(key, "PCRs", _read_index, minimum=1, maximum=_MAX_PCR + 1)
    if any(later <= earlier for earlier, later in pairwise(pcrs)):
        raise fields.error("PCRs", "not ascending")
    return pcrs


def write_pcr_values(values: tuple[tuple[int, bytes], ...]) -> dict[Key, Item]:
    """Return the map of values. Raises `ValueError` when an index comes twice."""
    written: dict[Key, Item] = dict(values)
    if len(written) != len(values):
        raise ValueError("a PCR twice")
    return written


def read_pcr_values(fields: Fields, key: Key) -> tuple[tuple[int, bytes], ...]:
    """Return the values by ascending index, 32 bytes each. Raises `MalformedError`."""
    values = fields.map(key, "PCR values", maximum=_MAX_PCR + 1)
    pcrs = tuple(
        (index, values.digest(index, f"PCR {index}")) for index in range(_MAX_PCR + 1) if index in values
    )
    values.close()
    return pcrs


def _read_index(pcrs: Fields, index: int) -> int:
    return pcrs.integer(index, str(index), maximum=_MAX_PCR)
