"""Parts that the answers to several commands share."""

from __future__ import annotations

from affiant.tpm.octets import OctetReader

__all__ = ["read_nothing", "skip_ticket"]


def read_nothing(_: OctetReader, __: int) -> None:
    """Read an answer without parameters."""


def skip_ticket(reader: OctetReader) -> None:
    """Pass over a ticket (TPMT_TK_CREATION, TPMT_TK_AUTH; Part 2, section 10.6)."""
    reader.u16()  # tag
    reader.u32()  # hierarchy
    reader.sized("ticket", maximum=64)
