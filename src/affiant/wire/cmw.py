"""Collections of conceptual messages (CMW, RFC 9999): labelled records of typed bytes.

A record is `[media type, bytes, indicator]`; a collection is a map of labels to records, with its own
type under `__cmwc_t`. Media types are texts, so that no registry of numbers is needed to read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.fields import Fields

__all__ = ["ATTESTATION_RESULTS", "EVIDENCE", "RecordKind", "encode_collection", "open_collection"]

EVIDENCE = 4
ATTESTATION_RESULTS = 8

_TYPE = "__cmwc_t"


@dataclass(frozen=True, slots=True)
class RecordKind:
    """Where a record stands and what it says of itself, with the bound of its bytes."""

    label: str
    media_type: str
    indicator: int
    max_size: int

    def read(self, collection: Fields) -> bytes:
        """Return the record's bytes from a collection. Raises `MalformedError`."""
        record = collection.array(self.label, self.label, length=3)
        record.constant(0, "media type", self.media_type)
        record.constant(2, "indicator", self.indicator)
        return record.octets(1, "value", minimum=1, maximum=self.max_size)

    def read_optional(self, collection: Fields) -> bytes | None:
        """Return the record's bytes, or None when the collection has no such label."""
        return self.read(collection) if self.label in collection else None


def encode_collection(collection_type: str, records: list[tuple[RecordKind, bytes]]) -> bytes:
    """Return the encoding of a collection. Raises `ValueError` when a record exceeds its bound."""
    item: dict[Key, Item] = {_TYPE: collection_type}
    for kind, value in records:
        if not 1 <= len(value) <= kind.max_size:
            raise ValueError(f"{kind.label}: {len(value)} bytes, not 1 to {kind.max_size}")
        item[kind.label] = [kind.media_type, value, kind.indicator]
    return cbor.encode(item)


def open_collection(data: bytes, *, collection_type: str, name: str, max_size: int) -> Fields:
    """Return the readers of a collection's records; the caller closes them.

    Guaranteed: the collection is of `collection_type`. Raises `MalformedError`.
    """
    fields = Fields.of_map(cbor.decode(data, max_size=max_size, name=name), name)
    fields.constant(_TYPE, "collection type", collection_type)
    return fields
