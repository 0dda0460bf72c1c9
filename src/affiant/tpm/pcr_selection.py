"""Which PCRs of which banks: TPML_PCR_SELECTION (TPM 2.0 Library, Part 2, sections 10.6 and 10.9.7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm, read_hash_algorithm
from affiant.tpm.octets import OctetReader

__all__ = ["PcrSelection", "encode_pcr_selections", "read_pcr_selections"]

_MAXIMUM_BANKS: Final = 16  # HASH_COUNT of any TPM is smaller
_MAXIMUM_SELECT: Final = 4  # octets of a bitmap; PC Client has 24 PCRs, hence 3
_PCR_COUNT: Final = 24


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """The PCRs of one bank, ascending."""

    bank: HashAlgorithm
    pcrs: tuple[int, ...]


def read_pcr_selections(reader: OctetReader) -> tuple[PcrSelection, ...]:
    """Read a TPML_PCR_SELECTION, in its order.

    Raises MalformedError: more than 16 banks, a bank twice, an unknown hash, a bitmap over 32 bits.
    """
    count = reader.u32()
    if count > _MAXIMUM_BANKS:
        raise MalformedError(f"PCR selection of {count} banks")
    selections: list[PcrSelection] = []
    for _ in range(count):
        bank = read_hash_algorithm(reader.u16(), "PCR selection")
        size = reader.u8()
        if size > _MAXIMUM_SELECT:
            raise MalformedError(f"PCR selection: bitmap of {size} octets")
        bitmap = int.from_bytes(reader.take(size), "little")
        if any(bank == other.bank for other in selections):
            raise MalformedError(f"PCR selection names the {bank.title} bank twice")
        selections.append(PcrSelection(bank, tuple(i for i in range(8 * size) if bitmap >> i & 1)))
    return tuple(selections)


def encode_pcr_selections(selections: Iterable[PcrSelection]) -> bytes:
    """The TPML_PCR_SELECTION of `selections`, each with the 3-octet bitmap of PC Client TPMs."""
    encoded = []
    for selection in selections:
        bitmap = 0
        for pcr in selection.pcrs:
            if not 0 <= pcr < _PCR_COUNT:
                raise ValueError(f"there is no PCR {pcr}")
            bitmap |= 1 << pcr
        encoded.append(selection.bank.to_bytes(2, "big") + b"\x03" + bitmap.to_bytes(3, "little"))
    return len(encoded).to_bytes(4, "big") + b"".join(encoded)
