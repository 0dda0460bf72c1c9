"""Partition tables that the firmware measured into PCR 5 before it started something from the disk.

TCG PC Client Platform Firmware Profile, sections 3.3.4.6 (PCR 5) and 10.2.5 (UEFI_GPT_DATA); UEFI,
section 5.3 (GPT). All integers are little-endian, disk addresses count logical blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from affiant.model.errors import MalformedError
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements

__all__ = ["Partition", "PartitionTable", "parse_partition_table", "read_partition_tables"]

_TABLE_PCR: Final = 5
_TYPES: Final = frozenset({EventType.EFI_GPT_EVENT, EventType.EFI_GPT_EVENT2})
_SIGNATURE: Final = b"EFI PART"
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_COUNT: Final = struct.Struct("<Q")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_MAXIMUM_PARTITIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class Partition:
    """One used entry of a table: blocks `first_block` to `last_block`, both included."""

    kind: UUID
    identifier: UUID
    first_block: int
    last_block: int
    attributes: int
    name: str


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A GPT as it was measured, used entries only; trusted as far as the octets were.

    In events of the newer type (EV_EFI_GPT_EVENT2) the identifiers are zeros.
    """

    disk: UUID
    first_block: int
    last_block: int
    partitions: tuple[Partition, ...]


def parse_partition_table(data: bytes) -> PartitionTable:
    """Read a UEFI_GPT_DATA that fills `data`.

    Raises MalformedError: another signature, more than 1024 partitions, sizes that do not fit.
    """
    start = _HEADER.size + _COUNT.size
    if len(data) < start:
        raise MalformedError("partition table: ends early")
    signature, _, size, *_, first, last, disk, _, _, entry_size, _ = _HEADER.unpack_from(data)
    if signature != _SIGNATURE or size != _HEADER.size:
        raise MalformedError("partition table: does not begin as one")
    count: int = _COUNT.unpack_from(data, _HEADER.size)[0]
    if count > _MAXIMUM_PARTITIONS or entry_size < _ENTRY.size:
        raise MalformedError(f"partition table: {count} entries of {entry_size} octets")
    if len(data) != start + count * entry_size:
        raise MalformedError("partition table: sizes do not fill the data")
    return PartitionTable(
        UUID(bytes_le=disk),
        first,
        last,
        tuple(_partition(data, start + position * entry_size) for position in range(count)),
    )


def read_partition_tables(measurements: Measurements) -> tuple[PartitionTable, ...]:
    """The partition tables in PCR 5, in their order.

    When it returns, every table is data that a digest of PCR 5 covers. Whoever may extend PCR 5 can
    add one; none that was measured can be hidden but by its data being left out.
    """
    tables = []
    for bound in measurements.of(_TABLE_PCR):
        if bound.covered is not None and bound.event.untrusted_type in _TYPES:
            try:
                tables.append(parse_partition_table(bound.covered))
            except MalformedError:
                # Measured, hence not forged, but no table: of no use to anybody who asks for tables.
                continue
    return tuple(tables)


def _partition(data: bytes, offset: int) -> Partition:
    kind, identifier, first, last, attributes, name = _ENTRY.unpack_from(data, offset)
    text = name.decode("utf-16-le", "replace").partition("\0")[0]
    return Partition(UUID(bytes_le=kind), UUID(bytes_le=identifier), first, last, attributes, text)
