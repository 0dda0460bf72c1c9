"""The compressions of kernels, modules and packages: xz, zstd, gzip and lz4's legacy frames.

Every function takes the largest size that the caller is ready to hold, and stops there: compressed
bytes from outside may be a bomb.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from affiant.model.errors import MalformedError

__all__ = ["compression_of", "decompress"]

_LZ4_LEGACY_MAGIC = 0x184C2102
_LZ4_LEGACY_BLOCK = 8 << 20  # LZ4 frame format, "Legacy frame": blocks of 8 MiB, the last one smaller
_ZSTD_STEP = 1 << 10  # a block of 4 bytes may hold 128 KiB, so one step makes at most 32 MiB beyond the limit
_LZMA_MEMORY = 512 << 20
_ZSTD_WINDOW = 1 << 27

_MAGICS = (
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip"),
    (b"\x02\x21\x4c\x18", "lz4"),
)


def compression_of(data: bytes | memoryview) -> str | None:
    """Return the compression that the first bytes announce (`xz`, `zstd`, `gzip`, `lz4`), or None."""
    head = bytes(data[:8])
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def decompress(data: bytes | memoryview, *, limit: int) -> bytes:
    """Return what one compressed stream at the start of `data` holds; bytes behind it are ignored.

    The kernel's build appends the uncompressed size to the payload, so a tail is normal.
    Guaranteed: at most `limit` bytes; the stream was complete, and its own check (xz, zstd and gzip
    carry one, lz4's legacy frame does not) held.

    Raises `MalformedError` for an unknown or broken stream, or one that holds more than `limit`.
    """
    kind = compression_of(data)
    if kind is None:
        raise MalformedError("neither xz, zstd, gzip nor lz4 data")
    try:
        return _DECOMPRESSORS[kind](memoryview(data), limit)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise MalformedError(f"broken {kind} data: {error}") from error


def _too_large(limit: int) -> MalformedError:
    return MalformedError(f"compressed data holds more than {limit} bytes")


def _xz(data: memoryview, limit: int) -> bytes:
    stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
    out = stream.decompress(bytes(data), max_length=limit + 1)
    if len(out) > limit:
        raise _too_large(limit)
    # The last call may return the whole content and still have the index to read.
    while not stream.eof:
        more = stream.decompress(b"", max_length=limit + 1 - len(out))
        if stream.needs_input and not stream.eof:
            raise MalformedError("xz data is truncated")
        out += more
        if len(out) > limit:
            raise _too_large(limit)
    return out


def _gzip(data: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out = stream.decompress(data, limit + 1)
    if len(out) > limit:
        raise _too_large(limit)
    if not stream.eof:
        out += stream.decompress(stream.unconsumed_tail, limit + 1 - len(out) or 1)
        if len(out) > limit:
            raise _too_large(limit)
        if not stream.eof:
            raise MalformedError("gzip data is truncated")
    return out


def _zstd(data: memoryview, limit: int) -> bytes:
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    out = bytearray()
    for start in range(0, len(data), _ZSTD_STEP):
        out += stream.decompress(bytes(data[start : start + _ZSTD_STEP]))
        if len(out) > limit:
            raise _too_large(limit)
        if stream.eof:
            return bytes(out)
    raise MalformedError("zstd data is truncated")


def _lz4(data: memoryview, limit: int) -> bytes:
    """Blocks, each behind its 4-byte length; there is no end mark, only the end of the input.

    The payload's tail is the uncompressed size, which the loop meets as a last, impossible length.
    """
    out = bytearray()
    position = 4
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        if length == _LZ4_LEGACY_MAGIC:
            position += 4
            continue
        if length == 0 or position + 4 + length > len(data):
            if position + 4 == len(data) and length == len(out):
                break
            raise MalformedError("lz4 data is truncated")
        block = data[position + 4 : position + 4 + length]
        out += lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK)
        if len(out) > limit:
            raise _too_large(limit)
        position += 4 + length
    return bytes(out)


_DECOMPRESSORS: dict[str, Callable[[memoryview, int], bytes]] = {
    "xz": _xz,
    "zstd": _zstd,
    "gzip": _gzip,
    "lz4": _lz4,
}
