"""The guest's physical memory, mapped read-only from the file that QEMU backs it with.

The RAM file is not physical address space (`ram_layout`). Addresses that no RAM answers to raise
`MemoryFault`; they never read as zeros. What is read is live and hostile: copy once, then look at the copy.

A look at one moment reads through the same object: `noted` tells which pages a look reads, somebody
copies these pages while the guest stands still, and in `copied` they are read from there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.page_set import PageSet
from affiant.kernel.machine.ram_layout import PhysicalSegment, RamLayout, q35_below_4g_bytes
from affiant.model.errors import SetupError, UnavailableError

__all__ = [
    "PAGE_SIZE",
    "GuestMemory",
    "MemoryFault",
    "SegmentReader",
]

PAGE_SIZE = 4096
# One read is at most this long; larger things are looked at through `view` or `array`.
_LONGEST_READ = 64 << 20


class MemoryFault(UnavailableError):  # noqa: N818 - a fault is what the field (and drgn) calls it
    """No RAM answers to an address that the guest's own structures led to."""


_Ram = mmap.mmap | bytes | bytearray


class _Buffer:
    """The bytes of RAM, or of its copy, in the three forms in which they are read."""

    def __init__(self, ram: _Ram) -> None:
        self.view = memoryview(ram).toreadonly()
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.view, dtype=np.uint8)
        self.pages: NDArray[np.uint64] = self.bytes.view(np.uint64).reshape(-1, PAGE_SIZE // 8)


class SegmentReader:
    """Reads within one segment, as `GuestMemory.view` does, without a search for the segment each time."""

    def __init__(self, memory: GuestMemory, segment: PhysicalSegment) -> None:
        self._memory = memory
        self._start = segment.offset
        self._view = memory._live.view[segment.offset : segment.offset + segment.size]

    def read(self, offset: int, size: int) -> memoryview:
        """Return live bytes, for whoever keeps within the segment."""
        if self._memory._noted is None:
            return self._view[offset : offset + size]
        start = self._start + offset
        return self._memory._source(start, size).view[start : start + size]


class GuestMemory:
    """Read-only physical memory of one guest.

    Every access is bounded to RAM that the machine description names. Nothing is cached: two
    reads of one address may differ, because the guest runs.
    """

    def __init__(
        self,
        ram: _Ram,
        *,
        below_4g_bytes: int,
        descriptor: int = -1,
        copies: _Ram | None = None,
    ) -> None:
        """Wrap `ram`; `descriptor` (owned from now on) lets holes of a sparse file be skipped.

        `copies` is as long as `ram`: somebody puts copies of pages there, each at its own place.
        """
        size = len(ram)
        if size == 0 or size % PAGE_SIZE or below_4g_bytes % PAGE_SIZE:
            raise ValueError("guest memory is a positive number of pages, split at a page")
        self._ram = ram
        self._descriptor = descriptor
        if copies is not None and len(copies) != size:
            raise ValueError("copies of pages take as much room as the guest's memory")
        self._live = _Buffer(ram)
        self._copy = None if copies is None else _Buffer(copies)
        self._noted: PageSet | None = None
        self._copied: PageSet | None = None
        self._layout = RamLayout(size, below_4g_bytes)
        self.below_4g_bytes = below_4g_bytes
        self.segments = self._layout.segments

    @classmethod
    def open(
        cls,
        source: Path | int,
        *,
        memory_bytes: int,
        below_4g_bytes: int | None = None,
        copies: int | None = None,
    ) -> GuestMemory:
        """Map the RAM file at a path, or behind a descriptor (which stays the caller's).

        `copies` is the descriptor of a file as long, which somebody puts copies of pages into. Raises
        SetupError if a file is not exactly `memory_bytes` long, UnavailableError if the RAM file can't be
        opened. `below_4g_bytes` defaults to what q35 does.
        """
        try:
            descriptor = (
                os.dup(source) if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            )
        except OSError as error:
            raise UnavailableError(
                f"guest memory {source} cannot be opened: {error.strerror}",
                hint="is the virtual machine running?",
            ) from error
        try:
            _check_size(source, os.fstat(descriptor).st_size, memory_bytes)
            mapping = _mapped(descriptor, memory_bytes)
            room = None if copies is None else _mapped(copies, memory_bytes)
            split = q35_below_4g_bytes(memory_bytes) if below_4g_bytes is None else below_4g_bytes
            return cls(mapping, below_4g_bytes=split, descriptor=descriptor, copies=room)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise SetupError(f"guest memory {source} cannot be mapped: {error}") from error
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; the mapping goes when the last view of it is gone."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size(self) -> int:
        """RAM in bytes."""
        return len(self._live.view)

    @property
    def has_copies(self) -> bool:
        """Whether there is a place that somebody puts copies of pages into."""
        return self._copy is not None

    @contextmanager
    def noted(self) -> Iterator[PageSet]:
        """Have the pages noted that are read meanwhile; they are read live."""
        with self._reading(PageSet(self.size // PAGE_SIZE), None) as pages:
            yield pages

    @contextmanager
    def copied(self, pages: PageSet) -> Iterator[PageSet]:
        """Have pages that were copied be read from their copies meanwhile; yields those that were not.

        What lies, be it in part, in a page that was not copied is read live, and the page noted: unless
        there is none when the look is over, the look was not one at the moment of the copies.
        """
        if self._copy is None:
            raise ValueError("no copies of this memory are made")
        with self._reading(PageSet(self.size // PAGE_SIZE), pages) as missed:
            yield missed

    @contextmanager
    def _reading(self, noted: PageSet, copied: PageSet | None) -> Iterator[PageSet]:
        before = self._noted, self._copied
        self._noted, self._copied = noted, copied
        try:
            yield noted
        finally:
            self._noted, self._copied = before

    def _source(self, offset: int, size: int) -> _Buffer:
        """Return what holds [offset, offset + size) of the RAM file: it, or the copies."""
        if self._noted is None:
            return self._live
        if self._copied is not None and self._copy is not None and self._copied.has(offset, size):
            return self._copy
        self._noted.add(offset, size)
        return self._live

    def _source_of_each(self, offsets: NDArray[np.uint64], wanted: NDArray[np.bool_]) -> _Buffer:
        """Return what holds the pages of the RAM file around the wanted offsets: it, or the copies."""
        if self._noted is None:
            return self._live
        pages = offsets[wanted] // np.uint64(PAGE_SIZE)
        if self._copied is not None and self._copy is not None:
            pages = self._copied.without(pages)
            if not len(pages):
                return self._copy
        self._noted.add_each(pages)
        return self._live

    def contains(self, address: int, size: int = 1) -> bool:
        """Tell whether RAM answers to all of [address, address + size)."""
        return self._layout.offset(address, size) is not None

    def view(self, address: int, size: int) -> memoryview:
        """Return the live bytes without copying them; raises MemoryFault outside RAM."""
        offset = self._layout.offset(address, size)
        if offset is None:
            raise MemoryFault(f"no RAM at physical address {address:#x} (+{size:#x})")
        return self._source(offset, size).view[offset : offset + size]

    def read(self, address: int, size: int) -> bytes:
        """Return a copy of `size` bytes at a physical address; raises MemoryFault outside RAM."""
        if size > _LONGEST_READ:
            raise ValueError(f"one read is at most {_LONGEST_READ} bytes, not {size}")
        return bytes(self.view(address, size))

    def array(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return the live bytes as an array, without copying; raises MemoryFault outside RAM."""
        offset = self._layout.offset(address, size)
        if offset is None:
            raise MemoryFault(f"no RAM at physical address {address:#x} (+{size:#x})")
        return self._source(offset, size).bytes[offset : offset + size]

    def holds(self, address: int, expected: NDArray[np.uint8]) -> bool:
        """Tell whether RAM at a physical address holds exactly these bytes; False outside RAM."""
        offset = self._layout.offset(address, len(expected))
        if offset is None:
            return False
        live = self._source(offset, len(expected)).bytes[offset : offset + len(expected)]
        words = len(expected) // 8 * 8  # compared eight at a time, which is as fast as memory
        return np.array_equal(live[:words].view(np.uint64), expected[:words].view(np.uint64)) and (
            np.array_equal(live[words:], expected[words:])
        )

    def holds_part(self, address: int, expected: bytes | bytearray, start: int, end: int) -> bool:
        """Tell whether RAM at a physical address holds the bytes of `expected` from `start` to `end`.

        By memcmp, of which there is no other on parts of arrays; False outside RAM.
        """
        if not 0 <= start <= end <= len(expected):
            raise ValueError("not a part of what is expected")
        offset = self._layout.offset(address, end - start)
        if offset is None:
            return False
        live = self._source(offset, end - start).view[offset : offset + end - start]
        return expected.startswith(live, start)

    def integers(
        self, addresses: NDArray[np.uint64], width: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the little-endian integers of `width` bytes (4 or 8) at physical addresses.

        The second array tells which addresses are multiples of `width` and in RAM; the others give zero.
        """
        offsets, in_ram = self._layout.offsets(addresses)
        readable = in_ram & (addresses % np.uint64(width) == 0)
        source = self._source_of_each(offsets, readable)
        values = source.bytes.view(f"<u{width}")[offsets // np.uint64(width)].astype(np.uint64)
        values[~readable] = 0
        return values, readable

    def tables(self, frames: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Copy whole pages by frame number, as rows of 512 little-endian words.

        The second array tells which frames are RAM; the rows of the others are zero.
        """
        source, rows, readable = self._rows(frames)
        pages: NDArray[np.uint64] = source.pages[rows]
        pages[~readable] = 0
        return pages, readable

    def copy_pages(self, frames: NDArray[np.uint64], into: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Copy whole pages by frame number into rows of 512 words; returns which frames are RAM.

        As `tables`, for whoever keeps an array to copy into.
        """
        source, rows, readable = self._rows(frames)
        # All rows exist: with "clip", numpy checks none of them and makes no copy in between.
        np.take(source.pages, rows.astype(np.int64), axis=0, out=into, mode="clip")
        if not readable.all():
            into[~readable] = 0
        return readable

    def keep(self, ranges: Iterable[tuple[int, bytes | memoryview | NDArray[Any]]]) -> KeptRanges:
        """Keep what was read of some ranges, to be compared by `still_holds`: physical addresses, and bytes.

        Raises MemoryFault if one is not RAM.
        """
        kept = KeptRanges([], [], [])
        for address, content in ranges:
            held = bytearray(content)
            offset = self._layout.offset(address, len(held))
            if offset is None:
                raise MemoryFault(f"no RAM at physical address {address:#x} (+{len(held):#x})")
            kept.addresses.append(address)
            kept.contents.append(held)
            kept.live.append(self._live.view[offset : offset + len(held)])
        return kept

    def still_holds(self, kept: KeptRanges) -> bool:
        """Tell whether each of the ranges holds now what it held, all of them being read."""
        if self._noted is None:
            return kept.contents == kept.live
        places = [
            (self._layout.offset(address, len(content)) or 0, len(content))
            for address, content in zip(kept.addresses, kept.contents, strict=True)
        ]
        source = self._live
        if (
            self._copied is not None
            and self._copy is not None
            and all(self._copied.has(*at) for at in places)
        ):
            source = self._copy
        else:
            for at in places:
                self._noted.add(*at)
        return kept.contents == [source.view[offset : offset + size] for offset, size in places]

    def _rows(self, frames: NDArray[np.uint64]) -> tuple[_Buffer, NDArray[np.uint64], NDArray[np.bool_]]:
        """Return what holds frames, their numbers there (0 for those that are not RAM), and which are RAM."""
        rows, readable = self._layout.offsets(frames, unit=PAGE_SIZE)
        return self._source_of_each(rows * np.uint64(PAGE_SIZE), readable), rows, readable

    def populated(self) -> Iterator[tuple[int, int]]:
        """Yield (physical address, size) of what the RAM file holds data for.

        Reading a hole of a file in /dev/shm would allocate it on the host, so whole-memory scans
        go through here.
        """
        for segment in self.segments:
            end = segment.offset + segment.size
            for start, stop in self._data_ranges(segment.offset, end):
                yield segment.address + start - segment.offset, stop - start

    def find(self, needle: bytes, *, maximum: int) -> list[int]:
        """Return the physical addresses of the first `maximum` places that hold `needle`.

        Matches never span two segments or two populated ranges.
        """
        found: list[int] = []
        for segment in self.segments:
            for start, stop in self._data_ranges(segment.offset, segment.offset + segment.size):
                at = start - 1
                while len(found) < maximum:
                    at = self._ram.find(needle, at + 1, stop)
                    if at < 0:
                        break
                    found.append(segment.address + at - segment.offset)
        return found

    def _data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        if self._descriptor < 0:
            yield start, end
            return
        while start < end:
            try:
                start = os.lseek(self._descriptor, start, os.SEEK_DATA)
            except OSError:  # ENXIO: no data after `start`
                return
            if start >= end:
                return
            stop = min(end, os.lseek(self._descriptor, start, os.SEEK_HOLE))
            yield start, stop
            start = stop


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def _check_size(source: Path | int, found: int, expected: int) -> None:
    if found != expected:
        raise SetupError(
            f"guest memory {source} holds {found} bytes, the machine has {expected}",
            hint="give the RAM file of this machine and its exact memory size",
        )
