"""Copies of guest pages for the monitor: in a file that has a page wherever RAM has it, and is mostly a hole.

Guest memory is only copied here, never looked at: the monitor says which pages, the registers of the
vCPUs which ones beside them. The monitor gets the file for reading.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable, Sequence

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["PageCopies"]

_PAGE = 4096
_FOUR_GIB = 1 << 32
_ADDRESS = 0x000F_FFFF_FFFF_F000
_PAIR = 0x1000  # with page table isolation, a process has two top-level tables, one page after the other
_MOST_ROOTS = 4096  # of moments that are over
_CR3 = re.compile(r"\bCR3=([0-9a-f]{8,16})\b")


class PageCopies:
    """The file of copies of one guest, whose RAM is behind `ram`; `below_4g_bytes` of it start at zero.

    Copies are made in two steps: `prepare` takes the time that is not the guest's, `take` is a plain copy.
    What was copied before may stay in the file until `forget`.
    """

    def __init__(self, ram: int, *, memory_bytes: int, below_4g_bytes: int) -> None:
        """Map the guest's RAM; `ram` stays the caller's. Raises `UnavailableError` if that cannot be."""
        self._size = memory_bytes
        self._below_4g_bytes = below_4g_bytes
        with contextlib.ExitStack() as undo:
            try:
                self._file = os.memfd_create("page-copies", os.MFD_CLOEXEC)
                undo.callback(os.close, self._file)
                os.ftruncate(self._file, memory_bytes)
                self.descriptor = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
                """For the monitor, for reading."""
                undo.callback(os.close, self.descriptor)
                self._ram = mmap.mmap(ram, memory_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
                self._copies = mmap.mmap(self._file, memory_bytes)
            except (OSError, ValueError) as error:
                raise UnavailableError(f"the guest's pages cannot be copied: {error}") from error
            undo.pop_all()
        self._from, self._to = memoryview(self._ram), memoryview(self._copies)
        self._runs: Sequence[tuple[int, int]] = ()
        self._roots = 0

    def prepare(self, runs: Sequence[tuple[int, int]]) -> None:
        """Copy these pages once, so that `take` finds all of it in place, and forget others.

        Raises `SetupError` for pages that the guest does not have.
        """
        if any((first + count) * _PAGE > self._size for first, count in runs):
            raise SetupError("pages are asked for that the guest does not have")
        if runs != self._runs or self._roots > _MOST_ROOTS:
            self.forget()
            self._runs = runs
        self.take(runs)

    def take(self, runs: Iterable[tuple[int, int]]) -> None:
        """Copy pages as they are now: each run is a first page of the RAM file and how many."""
        for first, count in runs:
            place = slice(first * _PAGE, (first + count) * _PAGE)
            self._to[place] = self._from[place]

    def take_roots(self, listings: Iterable[str]) -> tuple[int, ...]:
        """Copy the page tables that the vCPUs' CR3 name, as far as they are RAM; return these pages.

        A process that a vCPU is on now may not have been there when it was said which pages to copy.
        """
        named = [int(found[1], 16) & _ADDRESS for listing in listings for found in _CR3.finditer(listing)]
        places = {self._offset(address) for root in named for address in (root, root ^ _PAIR)}
        pages = sorted(place // _PAGE for place in places if place is not None)
        self.take((page, 1) for page in pages)
        self._roots += len(pages)
        return tuple(pages)

    def forget(self) -> None:
        """Give the memory of all copies back.

        The file stays as long as it is: whoever touched it while it was shorter, a monitor that reads or a
        copy that QEMU let wait, would be killed (SIGBUS, mmap(2)).
        """
        self._copies.madvise(mmap.MADV_REMOVE)
        self._runs, self._roots = (), 0

    def close(self) -> None:
        """Give everything back. The monitor keeps its descriptor, of a file that is all hole."""
        self.forget()
        self._from.release()
        self._to.release()
        self._ram.close()
        self._copies.close()
        os.close(self.descriptor)
        os.close(self._file)

    def _offset(self, address: int) -> int | None:
        """Return where the page at a physical address is in the RAM file, None if it is not RAM."""
        if address >= _FOUR_GIB:
            address -= _FOUR_GIB - self._below_4g_bytes
            return address if address < self._size else None
        return address if address < self._below_4g_bytes else None
