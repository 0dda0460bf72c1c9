"""Commands over PCRs: read and extend them, and quote them with a key."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import Algorithm, HashAlgorithm
from affiant.tpm.command import Command, build_command, password
from affiant.tpm.command_bytes.answer import read_nothing
from affiant.tpm.octets import OctetReader, sized
from affiant.tpm.pcr_selection import PcrSelection, encode_pcr_selections, read_pcr_selections
from affiant.tpm.signature import parse_signature

__all__ = ["PCRS_PER_READ", "PcrValues", "QuoteResponse", "pcr_extend", "pcr_read", "quote"]

PCRS_PER_READ: Final = 8
"""How many values one TPM2_PCR_Read answers with, at most (a TPML_DIGEST holds eight)."""


@dataclass(frozen=True, slots=True)
class PcrValues:
    """Values of one bank and the update counter, which tells whether two reads belong together."""

    update_counter: int
    values: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class QuoteResponse:
    """`attest` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE; `quote.verify_quote` checks them."""

    attest: bytes
    signature: bytes


def pcr_read(pcrs: Collection[int], *, bank: HashAlgorithm = HashAlgorithm.SHA256) -> Command[PcrValues]:
    """TPM2_PCR_Read (Part 3, section 22.4) of at most eight PCRs of one bank.

    `MalformedError` when the TPM answers with fewer values than asked for (a bank that is not allocated).
    """
    wanted = tuple(sorted(set(pcrs)))
    if not 0 < len(wanted) <= PCRS_PER_READ:
        raise ValueError(f"one read takes 1 to {PCRS_PER_READ} PCRs")

    def read(reader: OctetReader, _: int) -> PcrValues:
        counter = reader.u32()
        answered = read_pcr_selections(reader)
        count = reader.u32()
        if answered != (PcrSelection(bank, wanted),) or count != len(wanted):
            raise MalformedError(f"TPM2_PCR_Read: no values of the {bank.title} bank for PCRs {wanted}")
        values = tuple((pcr, reader.sized("PCR", maximum=bank.digest_size)) for pcr in wanted)
        return PcrValues(counter, values)

    parameters = encode_pcr_selections([PcrSelection(bank, wanted)])
    return build_command("TPM2_PCR_Read", 0x17E, read, parameters=parameters)


def pcr_extend(pcr: int, digest: bytes, *, bank: HashAlgorithm = HashAlgorithm.SHA256) -> Command[None]:
    """TPM2_PCR_Extend (Part 3, section 22.2) of one bank."""
    if len(digest) != bank.digest_size:
        raise ValueError(f"a {bank.title} digest has {bank.digest_size} octets")
    return build_command(
        "TPM2_PCR_Extend",
        0x182,
        read_nothing,
        handles=(pcr,),
        authorizations=(password(b""),),
        parameters=struct.pack(">IH", 1, bank) + digest,
    )


def quote(
    key: int,
    *,
    auth: bytes,
    extra_data: bytes,
    pcrs: Collection[int],
    bank: HashAlgorithm = HashAlgorithm.SHA256,
) -> Command[QuoteResponse]:
    """TPM2_Quote (Part 3, section 18.4) with the key's own scheme."""
    parameters = (
        sized(extra_data)
        + struct.pack(">H", Algorithm.NULL)
        + encode_pcr_selections([PcrSelection(bank, tuple(sorted(set(pcrs))))])
    )

    def read(reader: OctetReader, _: int) -> QuoteResponse:
        attest, signature = reader.sized("quoted", maximum=2048), reader.take(reader.remaining)
        parse_signature(signature)
        return QuoteResponse(attest, signature)

    return build_command(
        "TPM2_Quote", 0x158, read, handles=(key,), authorizations=(password(auth),), parameters=parameters
    )
