"""EFI variables and signature databases: bounds, and what does not fill its own size."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, MalformedError
from affiant.tpm.efi_variable import EFI_GLOBAL, SHIM_LOCK, parse_variable, variable_content
from affiant.tpm.signature_database import (
    CERT_SHA256,
    CERT_X509,
    encode_certificate_list,
    parse_signature_database,
)
from tests.unit.tpm.firmware import variable


def signature_list(size: int, header: int, signature: int, content: bytes) -> bytes:
    return struct.pack("<16sIII", CERT_SHA256.bytes_le, size, header, signature) + content


def test_entries_come_in_order_with_owner_and_kind() -> None:
    digests = b"".join(SHIM_LOCK.bytes_le + bytes([i]) * 32 for i in range(3))
    data = encode_certificate_list(EFI_GLOBAL, b"DER") + signature_list(28 + 144, 0, 48, digests)
    database = parse_signature_database(data)
    entries = database.entries()
    assert database.count == len(entries) == 4
    assert (entries[0].kind, entries[0].owner, entries[0].content) == (CERT_X509, EFI_GLOBAL, b"DER")
    assert [entry.content[0] for entry in entries[1:]] == [0, 1, 2]
    assert {(entry.kind, entry.owner) for entry in entries[1:]} == {(CERT_SHA256, SHIM_LOCK)}


def test_a_header_is_skipped() -> None:
    data = signature_list(28 + 5 + 20, 5, 20, b"extra" + EFI_GLOBAL.bytes_le + b"hash")
    assert [entry.content for entry in parse_signature_database(data).entries()] == [b"hash"]


@pytest.mark.parametrize(
    "data",
    [
        bytes(27),
        signature_list(27, 0, 16, b""),
        signature_list(0, 0, 16, bytes(16)),
        signature_list(29, 0, 16, bytes(16)),
        signature_list(60, 0, 16, bytes(16)),
        signature_list(44, 0, 15, bytes(16)),
        signature_list(44, 0, 0, bytes(16)),
        signature_list(44, 0xFFFFFFFF, 16, bytes(16)),
        signature_list(44, 0, 16, bytes(16)) + b"\0",
        signature_list(28 + 16 * 4097, 0, 16, bytes(16 * 4097)),
        signature_list(28, 0, 16, b"") * 4097,
        bytes((1 << 18) + 1),
    ],
)
def test_what_does_not_fill_its_size_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_signature_database(data)


def test_a_variable_is_read() -> None:
    read = parse_variable(variable(EFI_GLOBAL, "SecureBoot", b"\x01"))
    assert (read.vendor, read.name, read.content) == (EFI_GLOBAL, "SecureBoot", b"\x01")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(31),
        variable(EFI_GLOBAL, "x", b"y") + b"\0",
        variable(EFI_GLOBAL, "x", b"y")[:-1],
        struct.pack("<16sQQ", bytes(16), 1 << 63, 0),
        struct.pack("<16sQQ", bytes(16), 513, 0) + bytes(1026),
        struct.pack("<16sQQ", bytes(16), 0, (1 << 64) - 1),
        struct.pack("<16sQQ", bytes(16), 1, 0) + b"\0\xd8",
    ],
)
def test_what_is_no_variable_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_variable(data)
    assert variable_content(data) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_evidence_at_most(data: bytes) -> None:
    for read in (parse_variable, parse_signature_database):
        with contextlib.suppress(EvidenceError):
            read(data)
