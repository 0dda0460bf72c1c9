"""Truthful files around a tiny kernel: ELF, compressed payloads, bzImage, PE header, modules, packages."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import lz4.block
import zstandard

RELEASE = "6.1.0-tiny"
KERNEL_MAP = 0xFFFFFFFF80000000
_ENTRY = 0xFFFFFFFF81000000


@dataclass
class Section:
    name: str
    address: int
    data: bytes
    flags: int  # SHF_WRITE 1, SHF_ALLOC 2, SHF_EXECINSTR 4
    load: int | None = None
    entry_size: int = 0
    nobits: int = 0

    @property
    def size(self) -> int:
        return self.nobits or len(self.data)


def elf(sections: Sequence[Section]) -> bytes:
    """A 64-bit ELF file; each section has a PT_LOAD of its own."""
    names, offsets = b"\0", []
    for section in sections:
        offsets.append(len(names))
        names += section.name.encode() + b"\0"
    names_at = len(names)
    names += b".shstrtab\0"
    body = bytearray(64 + 56 * len(sections))
    headers = [struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    for index, section in enumerate(sections):
        body += bytes(-len(body) % 64)
        load = section.address if section.load is None else section.load
        segment = (len(body), section.address, load - KERNEL_MAP & (1 << 64) - 1, len(section.data))
        struct.pack_into("<IIQQQQQQ", body, 64 + 56 * index, 1, 7, *segment, section.size, 4096)
        kind = 8 if section.nobits else 1
        place = (section.flags, section.address, len(body), section.size)
        headers.append(struct.pack("<IIQQQQIIQQ", offsets[index], kind, *place, 0, 0, 16, section.entry_size))
        body += section.data
    headers.append(struct.pack("<IIQQQQIIQQ", names_at, 3, 0, 0, len(body), len(names), 0, 0, 1, 0))
    body += names
    body += bytes(-len(body) % 8)
    table = len(body)
    body += b"".join(headers)
    body[:64] = struct.pack(
        "<4sBBBBQHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, _ENTRY, 64, table, 0,
        64, 56, len(sections), 64, len(headers), len(headers) - 1,
    )  # fmt: skip
    return bytes(body)


def compress(data: bytes, compression: str) -> bytes:
    size = struct.pack("<I", len(data))  # the build appends it for all but gzip, which ends in it anyway
    if compression == "gzip":
        return gzip.compress(data, mtime=0)
    if compression == "xz":
        return lzma.compress(data) + size
    if compression == "zstd":
        return zstandard.ZstdCompressor(write_content_size=False).compress(data) + size
    if compression == "lz4":
        blocks = b""
        for start in range(0, len(data), 8 << 20):
            block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
            blocks += struct.pack("<I", len(block)) + block
        return b"\x02\x21\x4c\x18" + blocks + size
    raise ValueError(compression)


def bzimage(payload: bytes, compression: str, *, pe: bool = True) -> bytes:
    """Two setup sectors, then the payload; with `pe` also a PE header as the EFI stub has it."""
    packed = compress(payload, compression)
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<H", setup, 0x20E, 0x300 - 0x200)
    setup[0x300 : 0x300 + len(RELEASE) + 1] = RELEASE.encode() + b"\0"
    struct.pack_into("<I", setup, 0x230, 0x200000)
    struct.pack_into("<H", setup, 0x236, 1)
    struct.pack_into("<II", setup, 0x248, 0, len(packed))
    struct.pack_into("<Q", setup, 0x258, 0x1000000)
    image = bytes(setup) + packed
    image += bytes(-len(image) % 8)
    return with_pe_header(image) if pe else image


def with_pe_header(image: bytes, certificates: bytes = b"") -> bytes:
    """A PE header inside the first sector; one section from there to the end."""
    out = bytearray(image)
    out[:2] = b"MZ"
    pe = 0x40
    struct.pack_into("<I", out, 0x3C, pe)
    out[pe : pe + 4] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", out, pe + 4, 0x8664, 1, 0, 0, 0, 160, 0x206)
    optional = pe + 24
    struct.pack_into("<H", out, optional, 0x20B)
    struct.pack_into("<I", out, optional + 60, 0x1C0)  # SizeOfHeaders
    struct.pack_into("<I", out, optional + 64, 0x12345678)  # CheckSum
    struct.pack_into("<I", out, optional + 108, 6)
    if certificates:
        struct.pack_into("<II", out, optional + 112 + 32, len(image), len(certificates))
    section = optional + 160
    struct.pack_into("<8sIIII", out, section, b".all", len(image), 0x1000, len(image) - 0x1C0, 0x1C0)
    return bytes(out) + certificates


def pe(sections: dict[str, bytes], *, certificates: bytes = b"") -> bytes:
    """A PE file of these sections, each padded in the file as linkers pad them."""
    headers = 0x400
    out = bytearray(headers)
    out[:2], out[0x40:0x44] = b"MZ", b"PE\0\0"
    struct.pack_into("<I", out, 0x3C, 0x40)
    struct.pack_into("<HHIIIHH", out, 0x44, 0x8664, len(sections), 0, 0, 0, 160, 0x206)
    struct.pack_into("<H", out, 0x58, 0x20B)
    struct.pack_into("<I", out, 0x58 + 60, headers)
    struct.pack_into("<I", out, 0x58 + 108, 6)
    for index, (name, content) in enumerate(sections.items()):
        place = (len(content), 0x1000 * (index + 1), len(content) + -len(content) % 0x200, len(out))
        struct.pack_into("<8sIIII", out, 0x58 + 160 + 40 * index, name.encode(), *place)
        out += content + bytes(-len(content) % 0x200)
    if certificates:
        struct.pack_into("<II", out, 0x58 + 112 + 32, len(out), len(certificates))
    return bytes(out) + certificates


def module(name: str) -> bytes:
    """A module with what the index asks for, and a signature's mark at its end."""
    modinfo = f"name={name}\0srcversion=0123456789ABCDEF\0vermagic={RELEASE} SMP \0".encode()
    note = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + hashlib.sha1(name.encode()).digest()
    sections = [
        Section(".text", 0, b"\xc3" * 48, 6),
        Section(".init.text", 0, b"\xc3" * 16, 6),
        Section(".text.unlikely", 0, b"\xc3" * 8, 6),
        Section(".modinfo", 0, modinfo, 2),
        Section(".note.gnu.build-id", 0, note, 2),
    ]
    return elf(sections) + b"signature~Module signature appended~\n"


def deb(
    files: dict[str, bytes],
    *,
    control: str | None = None,
    compression: str = "xz",
    magic: bytes = b"!<arch>\n",
) -> bytes:
    control = control or "Package: linux-image-tiny\nVersion: 6.1-1\nArchitecture: amd64\nDescription: tiny\n"
    members = [
        (b"debian-binary", b"2.0\n"),
        (b"control.tar.xz", lzma.compress(_tar({"./control": control.encode()}))),
    ]
    data = _tar(files)
    if compression == "xz":
        members.append((b"data.tar.xz", lzma.compress(data, preset=0)))
    elif compression == "zstd":
        members.append((b"data.tar.zst", zstandard.compress(data)))
    elif compression == "gzip":
        members.append((b"data.tar.gz", gzip.compress(data, mtime=0)))
    else:
        members.append((b"data.tar", data))
    out = magic
    for name, content in members:
        out += name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6) + b"100644".ljust(8)
        out += str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)
    return out


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
