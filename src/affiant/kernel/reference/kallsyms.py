"""The kernel's own symbol table, decoded from its read-only data without knowing where it is.

kallsyms is a handful of arrays that the build (scripts/kallsyms.c) puts into .rodata. A distribution's
kernel has no other symbols, so the arrays are found by what they must look like. What changed over time:

    up to 6.1    offsets, base, count, names, markers,                 tokens, token index
    6.2, 6.3     offsets, base, count, names, markers, sorted numbers, tokens, token index
                 (commit 60443c88f3a8; also in later 6.1 stable kernels)
    since 6.4    count, names, markers, tokens, token index, offsets, base, sorted numbers
                 (commit 404bad70fcf7)
    lately       the same without a base: each offset counts from its own place

and an offset is either unsigned from the base, or (absolute per-CPU symbols, until 6.15) non-negative
for an absolute value and -1 - offset from the base. No version is compared: exactly one reading must
give ascending addresses with `_text` where the kernel is linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affiant.model.errors import MalformedError

__all__ = ["KallsymsEntry", "decode_kallsyms"]

_MAX_SYMBOLS = 1 << 20
_MIN_SYMBOLS = 16
_MAX_NAME = 512  # KSYM_NAME_LEN
_MARKER_STEP = 256
_TYPES = frozenset(b"ABDGINRSTVWUCabdginrstvwuc?-")
_MAX_CANDIDATES = 200_000


@dataclass(frozen=True, slots=True)
class KallsymsEntry:
    """A symbol as the kernel lists it: link address, nm's type letter, name."""

    address: int
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int
    index: int  # offset of the 256 16-bit positions of the tokens
    tokens: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Names:
    count_position: int
    names: list[bytes]  # type letter and name


def decode_kallsyms(rodata: bytes | memoryview, *, address: int, text: int) -> list[KallsymsEntry]:
    """Return every symbol, in ascending order of address.

    `address` is where `rodata` is linked, `text` where the kernel's first byte (`_text`) is.
    Guaranteed: at most 1 Mi symbols; names are printable ASCII of at most 512 characters; the marker
    array agrees with the names; addresses ascend; `_text` is at `text`.

    Raises `MalformedError` when no reading, or more than one, fulfils this.
    """
    view = memoryview(rodata)
    readings: list[list[KallsymsEntry]] = []
    for tokens in _find_tokens(view):
        names = _find_names(view, tokens)
        if names is None:
            continue
        for read in (_offsets_behind, _offsets_before, _offsets_in_place):
            addresses = read(view, address, tokens, names)
            if addresses is not None and _plausible(addresses, names, text):
                readings.append(_entries(addresses, names))
    if len(readings) != 1:
        raise MalformedError(
            "the kernel's symbol table was not found" if not readings else "two readings of the symbol table",
            hint="the kernel must be built with CONFIG_KALLSYMS; Affiant may not know its layout yet",
        )
    return readings[0]


def _find_tokens(view: memoryview) -> Iterator[_Tokens]:
    """Yield each run of 256 strings that is followed by the 16-bit array of their positions."""
    halves = np.frombuffer(view[: len(view) // 2 * 2], dtype="<u2")
    ascending = np.concatenate(([False], halves[1:] > halves[:-1], [False]))
    breaks = np.flatnonzero(~ascending)
    # A run of ascending values begins at a break and must hold 256 of them, the first one zero.
    long_enough = np.flatnonzero(np.diff(breaks) >= 256)
    for start in (int(breaks[run]) for run in long_enough):
        if halves[start] != 0:
            continue
        positions = [int(value) for value in halves[start : start + 256]]
        found = _tokens_before(view, start * 2, positions)
        if found is not None:
            yield found


def _tokens_before(view: memoryview, index: int, positions: list[int]) -> _Tokens | None:
    for padding in range(8):
        end = index - padding
        if end < 2 or any(view[end:index]) or view[end - 1] != 0:
            return None
        last = end - 2
        while last >= 0 and view[last] != 0 and end - last <= _MAX_NAME:
            last -= 1
        start = last + 1 - positions[255]
        if start < 0 or last + 1 == end - 1:
            continue
        table = bytes(view[start:end])
        bounds = zip(positions, [*positions[1:], len(table)], strict=True)
        tokens = tuple(table[first : after - 1] for first, after in bounds)
        if all(tokens) and table.count(0) == 256 and all(table[p - 1] == 0 for p in positions[1:]):
            return _Tokens(start=start, index=index, tokens=tokens)
    return None


def _find_names(view: memoryview, tokens: _Tokens) -> _Names | None:
    """Find the count before the names: the walk of that many names must end at markers that agree."""
    words = np.frombuffer(view[: tokens.start // 4 * 4], dtype="<u4")
    wanted = (words >= _MIN_SYMBOLS) & (words <= _MAX_SYMBOLS)
    # Two bytes are the least a name takes, and all names lie before the tokens.
    room = (tokens.start - 4 * np.arange(len(words), dtype=np.int64)) // 2
    candidates = np.flatnonzero(wanted & (words.astype(np.int64) < room))
    # Names start with a length and a token whose first letter is a symbol type.
    types = np.zeros(256, dtype=bool)
    types[[value for value, token in enumerate(tokens.tokens) if token[0] in _TYPES]] = True
    data = np.frombuffer(view, dtype=np.uint8)
    for gap in (4, 8):
        starts = candidates * 4 + gap
        keep = (data[starts] > 0) & (data[starts] < 0x80) & types[data[np.minimum(starts + 1, len(data) - 1)]]
        for position in candidates[keep][:_MAX_CANDIDATES]:
            names = _walk_names(view, int(position) * 4, gap, int(words[position]), tokens)
            if names is not None:
                return _Names(count_position=int(position) * 4, names=names)
    return None


def _walk_names(
    view: memoryview, count_position: int, gap: int, count: int, tokens: _Tokens
) -> list[bytes] | None:
    if gap == 8 and any(view[count_position + 4 : count_position + 8]):
        return None
    position = start = count_position + gap
    names: list[bytes] = []
    markers: list[int] = []
    expand = tokens.tokens
    for number in range(count):
        if number % _MARKER_STEP == 0:
            markers.append(position - start)
        if position + 2 > tokens.start:
            return None
        length = view[position]
        position += 1
        if length & 0x80:  # a name of more than 127 tokens (commit 73bbb94466fd)
            length = (length & 0x7F) | view[position] << 7
            position += 1
        if length == 0 or length > _MAX_NAME or position + length > tokens.start:
            return None
        name = b"".join([expand[token] for token in view[position : position + length]])
        if name[0] not in _TYPES or not 1 < len(name) <= _MAX_NAME + 1 or not _printable(name):
            return None
        names.append(name)
        position += length
    expected = np.array(markers, dtype="<u4").tobytes()
    agree = any(
        view[at : at + len(expected)] == expected for at in {_align(position, 4), _align(position, 8)}
    )
    return names if agree else None


def _printable(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable()


def _offsets_behind(
    view: memoryview, address: int, tokens: _Tokens, names: _Names
) -> NDArray[np.int64] | None:
    """The offsets follow the token index, the base follows them."""
    start = _align(tokens.index + 512, 8)
    base = _align(start + 4 * len(names.names), 8)
    return _from_base(view, start, base, names)


def _offsets_before(
    view: memoryview, address: int, tokens: _Tokens, names: _Names
) -> NDArray[np.int64] | None:
    """The base precedes the count, the offsets precede it."""
    base = names.count_position - 8
    return _from_base(view, base - _align(4 * len(names.names), 8), base, names)


def _from_base(view: memoryview, start: int, base: int, names: _Names) -> NDArray[np.int64] | None:
    count = len(names.names)
    if start < 0 or base + 8 > len(view) or start + 4 * count > base:
        return None
    origin = int.from_bytes(view[base : base + 8], "little", signed=True)
    raw = np.frombuffer(view[start : start + 4 * count], dtype="<i4").astype(np.int64)
    if np.any(raw < 0) and np.any(raw >= 0):
        # Absolute values (per-CPU offsets) and, in the same table, distances from the base.
        return np.where(raw >= 0, raw, origin - 1 - raw)
    return (raw & 0xFFFFFFFF) + origin


def _offsets_in_place(
    view: memoryview, address: int, tokens: _Tokens, names: _Names
) -> NDArray[np.int64] | None:
    """The offsets follow the token index, each one counted from its own address."""
    start = _align(tokens.index + 512, 4)
    count = len(names.names)
    if start + 4 * count > len(view):
        return None
    raw = np.frombuffer(view[start : start + 4 * count], dtype="<i4").astype(np.int64)
    origin = address - (1 << 64) if address >> 63 else address
    return raw + origin + start + 4 * np.arange(count, dtype=np.int64)


def _plausible(addresses: NDArray[np.int64], names: _Names, text: int) -> bool:
    """Addresses ascend as unsigned numbers, and `_text` is where the kernel begins."""
    unsigned = addresses.view(np.uint64)
    if np.any(unsigned[1:] < unsigned[:-1]):
        return False
    return any(
        name[1:] == b"_text" and int(unsigned[number]) == text for number, name in enumerate(names.names)
    )


def _entries(addresses: NDArray[np.int64], names: _Names) -> list[KallsymsEntry]:
    return [
        KallsymsEntry(address=address, type=chr(name[0]), name=name[1:].decode("ascii"))
        for address, name in zip(addresses.view(np.uint64).tolist(), names.names, strict=True)
    ]


def _align(position: int, to: int) -> int:
    return -(-position // to) * to
