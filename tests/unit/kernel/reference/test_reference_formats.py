"""The formats that a kernel comes in, read from hostile bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import struct
import tracemalloc

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.reference.authenticode import authenticode_digest
from affiant.kernel.reference.bzimage import read_bzimage
from affiant.kernel.reference.decompress import compression_of, decompress
from affiant.kernel.reference.elf import read_elf
from affiant.kernel.reference.linked import linked_kernel
from affiant.kernel.reference.modules import read_module
from affiant.kernel.reference.relocations import relocate, split_relocations
from affiant.model.errors import MalformedError
from tests.unit.kernel.reference import tiny_files
from tests.unit.kernel.reference.tiny_files import Section
from tests.unit.kernel.reference.tiny_kernel import RODATA, TEXT, TinyKernel

COMPRESSIONS = ("gzip", "xz", "zstd", "lz4")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [0, 1, 5000, (8 << 20) + 5])
def test_what_was_compressed_comes_back(compression: str, size: int) -> None:
    data = bytes(range(250)) * (size // 250) + bytes(size % 250)
    packed = tiny_files.compress(data, compression)
    assert compression_of(packed) == compression
    assert decompress(packed, limit=size) == data


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bomb_is_refused_within_memory(compression: str) -> None:
    """Half a gigabyte of zeros that a limit of one megabyte must stop early."""
    zeros = bytes(1 << 20)
    if compression == "gzip":
        bomb = gzip.compress(bytes(64 << 20))
    elif compression == "xz":
        bomb = lzma.compress(bytes(256 << 20), preset=0)
    elif compression == "zstd":
        packer = zstandard.ZstdCompressor().compressobj()
        bomb = b"".join(packer.compress(zeros) for _ in range(512)) + packer.flush()
    else:
        block = lz4.block.compress(bytes(8 << 20), store_size=False)
        bomb = b"\x02\x21\x4c\x18" + (struct.pack("<I", len(block)) + block) * 64
    tracemalloc.start()
    with pytest.raises(MalformedError, match="more than 1048576 bytes"):
        decompress(bomb, limit=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated_stream_is_refused(compression: str) -> None:
    packed = tiny_files.compress(hashlib.sha512(b"seed").digest() * 3000, compression)
    stream = packed if compression == "gzip" else packed[:-4]
    for length in (8, len(stream) // 2, len(stream) - 1):
        with pytest.raises(MalformedError):
            decompress(stream[:length], limit=1 << 20)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bent_stream_gives_an_error_or_stays_bounded(compression: str, data: st.DataObject) -> None:
    packed = bytearray(tiny_files.compress(b"kernel " * 3000, compression))
    packed[data.draw(st.integers(6, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedError):
        assert len(decompress(bytes(packed), limit=30_000)) <= 30_000


def test_lz4_that_lies_about_its_size_is_refused() -> None:
    packed = bytearray(tiny_files.compress(b"kernel", "lz4"))
    packed[-4:] = struct.pack("<I", 7)
    with pytest.raises(MalformedError):
        decompress(bytes(packed), limit=100)


def test_uncompressed_bytes_are_refused() -> None:
    with pytest.raises(MalformedError, match="neither"):
        decompress(b"plain text", limit=100)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0x202, b"XXXX", "not a Linux kernel image"),
        (0x1FE, b"\0\0", "not a Linux kernel image"),
        (0x206, b"\x09\x02", "not 64-bit"),
        (0x236, b"\0\0", "not 64-bit"),
        (0x24C, b"\xff\xff\xff\x7f", "beyond the end"),
        (0x24C, b"\0\0\0\0", "beyond the end"),
        (0x1F1, b"\xff", "beyond the end"),
        (0x230, b"\x03\0\0\0", "not a power of two"),
        (0x20E, b"\xf0\xff", "outside its setup"),
        (0x300, b"\x01\x02", "not printable"),
    ],
)
def test_bent_setup_header_is_refused(offset: int, value: bytes, why: str) -> None:
    image = bytearray(TinyKernel().bzimage())
    image[offset : offset + len(value)] = value
    with pytest.raises(MalformedError, match=why):
        read_bzimage(bytes(image))


def test_setup_header_is_read() -> None:
    image = read_bzimage(TinyKernel().bzimage())
    assert (image.banner, image.alignment, image.preferred_address) == (tiny_files.RELEASE, 1 << 21, 1 << 24)


def test_signature_does_not_change_the_authenticode_digest() -> None:
    image = TinyKernel().bzimage(pe=False)
    unsigned = tiny_files.with_pe_header(image)
    signed = tiny_files.with_pe_header(image, certificates=b"certificate!" * 4)
    assert authenticode_digest(signed) == authenticode_digest(unsigned)
    assert hashlib.sha256(signed).digest() != hashlib.sha256(unsigned).digest()


@pytest.mark.parametrize("position", [0x1C8, 0x300, 0x500, -1])
def test_any_other_byte_changes_the_authenticode_digest(position: int) -> None:
    image = bytearray(TinyKernel().bzimage())
    before = authenticode_digest(bytes(image))
    image[position] ^= 1
    assert authenticode_digest(bytes(image)) != before


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0x40 + 24, b"\x0b\x01"),  # PE32, not PE32+
        (0x40 + 24 + 60, b"\x10\0\0\0"),  # SizeOfHeaders inside the headers
        (0x40 + 24 + 108, b"\x02\0\0\0"),  # no certificate directory
        (0x40 + 24 + 160 + 20, b"\xc8\x01\0\0"),  # a gap before the section
        (0x40 + 24 + 160 + 16, b"\xff\xff\xff\0"),  # a section beyond the file
        (0x40 + 24 + 112 + 32, b"\x10\0\0\0\x08\0\0\0"),  # certificates in the middle
        (0x46, b"\xff\0"),  # more sections than there may be
    ],
)
def test_contradicting_pe_headers_are_refused(offset: int, value: bytes) -> None:
    image = bytearray(TinyKernel().bzimage())
    image[offset : offset + len(value)] = value
    with pytest.raises(MalformedError, match="PE"):
        authenticode_digest(bytes(image))


def test_relocation_tables_are_split_from_the_end() -> None:
    words = [0, 0x81000010, 0x81000008, 0, 0x81000020, 0, 0x81000030]
    found = split_relocations(struct.pack("<7I", *words))
    assert [hex(a) for a in found.absolute64] == ["0xffffffff81000008", "0xffffffff81000010"]
    assert list(found.inverse32) == [0xFFFFFFFF81000020]
    assert list(found.absolute32) == [0xFFFFFFFF81000030]
    found = split_relocations(struct.pack("<3I", 0, 0, 0x81000030))
    assert (len(found.absolute64), len(found.inverse32), list(found.absolute32)) == (
        0,
        0,
        [0xFFFFFFFF81000030],
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        [0],
        [0x81000000, 0, 0],
        [0, 0x81000000],
        [0, 0, 0, 0],
        [0, 0x81000000, 0x81000000, 0, 0x81000004],
        [0, 0x7F000000, 0, 0x81000004],
    ],
)
def test_bogus_relocation_table_is_refused(words: list[int]) -> None:
    with pytest.raises(MalformedError):
        split_relocations(struct.pack(f"<{len(words)}I", *words))


def test_relocation_table_of_odd_size_is_refused() -> None:
    with pytest.raises(MalformedError):
        split_relocations(bytes(13))


def test_place_that_ends_behind_the_section_is_left_alone() -> None:
    tables = split_relocations(struct.pack("<4I", 0, 0x81000004, 0, 0x8100000E))
    data = np.zeros(16, dtype=np.uint8)
    relocate(data, TEXT, 0x200000, tables)
    assert data.tobytes() == bytes(4) + struct.pack("<Q", 0x200000) + bytes(4)


def test_relocations_wrap_as_machine_words_do() -> None:
    tables = split_relocations(struct.pack("<5I", 0, 0, 0x81000004, 0, 0x81000000))
    data = np.frombuffer(b"\xff\xff\xff\xff\x00\x00\x00\x00", dtype=np.uint8).copy()
    relocate(data, TEXT, 0x200000, tables)
    assert struct.unpack("<II", data.tobytes()) == (0x1FFFFF, 0xFFE00000)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x7fFLE"),
        (4, b"\x01"),
        (5, b"\x02"),
        (18, b"\x03\0"),
        (60, b"\0\0"),
        (60, b"\xff\x0f"),
        (56, b"\xff\0"),
        (40, struct.pack("<Q", 1 << 60)),
        (62, b"\xff\xfe"),
    ],
)
def test_bent_elf_header_is_refused(offset: int, value: bytes) -> None:
    elf = bytearray(TinyKernel().vmlinux())
    elf[offset : offset + len(value)] = value
    with pytest.raises(MalformedError):
        read_elf(bytes(elf))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_bent_elf_ends_in_one_kind_of_error(data: st.DataObject) -> None:
    elf = bytearray(tiny_files.elf(TinyKernel().sections()))
    table = struct.unpack_from("<Q", elf, 40)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.sampled_from([0, 64, table]))
        elf[min(start + data.draw(st.integers(0, 800)), len(elf) - 1)] = data.draw(st.integers(0, 255))
    try:
        for section in linked_kernel(read_elf(bytes(elf))).sections:
            assert len(section.data) in (0, section.size)
    except MalformedError:
        pass


def _linked(*sections: Section) -> object:
    return linked_kernel(read_elf(tiny_files.elf(sections)))


def test_overlapping_sections_are_refused() -> None:
    text, rodata = Section(".text", TEXT, bytes(64), 6), Section(".rodata", TEXT + 63, bytes(64), 2)
    with pytest.raises(MalformedError, match="overlaps"):
        _linked(text, rodata)


def test_two_sections_of_one_name_are_refused() -> None:
    parts = [
        Section(name, TEXT + 64 * n, bytes(64), 6) for n, name in enumerate((".text", ".rodata", ".text"))
    ]
    with pytest.raises(MalformedError, match="two kernel sections"):
        _linked(*parts)


def test_kernel_without_text_or_outside_its_range_is_refused() -> None:
    with pytest.raises(MalformedError, match=r"no section \.text"):
        _linked(Section(".rodata", RODATA, bytes(64), 2))
    with pytest.raises(MalformedError):
        _linked(Section(".text", 0x1000, bytes(64), 6, load=0x1000), Section(".rodata", RODATA, bytes(8), 2))


def test_module_with_a_name_that_is_no_name_is_refused() -> None:
    with pytest.raises(MalformedError, match="module name"):
        read_module("kernel/x.ko", tiny_files.module("../../etc"))


def test_module_that_is_no_elf_file_is_refused() -> None:
    with pytest.raises(MalformedError):
        read_module("kernel/x.ko.xz", lzma.compress(b"text"))
