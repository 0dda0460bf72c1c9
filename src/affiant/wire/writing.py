"""A writer never makes what its own reader refuses."""

from __future__ import annotations

from collections.abc import Callable

from affiant.model.errors import MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import Item

__all__ = ["encode_checked"]


def encode_checked(item: Item, read: Callable[[bytes], object]) -> bytes:
    """Return the encoding of `item` after `read` accepted it.

    The bounds of a message then stand in one place, its reader. Raises `ValueError` with the
    reader's words when a caller gave a value beyond them.
    """
    encoding = cbor.encode(item)
    try:
        read(encoding)
    except MalformedError as error:
        raise ValueError(str(error)) from None
    return encoding
