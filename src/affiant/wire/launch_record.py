"""The launch record's encoding: the bytes whose digest PCR 17 holds."""

from __future__ import annotations

from affiant.model.launch_record import LaunchRecord
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.fields import Fields
from affiant.wire.keys import load_point
from affiant.wire.rules_path import FLEET
from affiant.wire.writing import encode_checked

__all__ = ["MAX_LAUNCH_RECORD", "decode_launch_record", "encode_launch_record"]

_KIND = "affiant/1/launch"
MAX_LAUNCH_RECORD = 1024
"""The longest launch record, in bytes."""

_NAME = "launch record"


def encode_launch_record(record: LaunchRecord) -> bytes:
    """Return the one encoding of `record`. Raises `ValueError` for values beyond its bounds."""
    fields: dict[Key, Item] = {
        0: _KIND,
        1: record.monitor_image,
        2: record.monitor_version,
        3: record.security_version,
        4: record.debug,
        5: record.service_root,
        6: record.identity_key,
    }
    if record.rules_root is not None:
        fields[7] = record.rules_root
    if record.fleet is not None:
        fields[8] = record.fleet
    return encode_checked(fields, decode_launch_record)


def decode_launch_record(data: bytes) -> LaunchRecord:
    """Return the record in `data`: form only, it proves nothing until a quote's PCR 17 holds it.

    Guaranteed: `encode_launch_record` of the result is `data`; the identity key lies on P-256; a fleet is
    named where a rules root is, and there only.
    Raises `MalformedError` otherwise.
    """
    fields = Fields.of_map(cbor.decode(data, max_size=MAX_LAUNCH_RECORD, name=_NAME), _NAME)
    fields.constant(0, "kind", _KIND)
    record = LaunchRecord(
        monitor_image=fields.digest(1, "monitor image"),
        monitor_version=fields.text(2, "monitor version", minimum=1, maximum=64),
        security_version=fields.integer(3, "security version"),
        debug=fields.boolean(4, "debug"),
        service_root=fields.digest(5, "service root"),
        identity_key=fields.octets(6, "identity key", size=65),
        rules_root=fields.optional(fields.digest, 7, "rules root"),
        fleet=fields.optional(fields.text, 8, "fleet"),
    )
    fields.close()
    if (record.fleet is None) != (record.rules_root is None):
        raise fields.error("fleet", "it and the rules root stand together, or neither does")
    if record.fleet is not None and not FLEET.fullmatch(record.fleet):
        raise fields.error("fleet", "not the name of one")
    load_point(record.identity_key, name=f"{_NAME}: identity key")
    return record
