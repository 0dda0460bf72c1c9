"""Copies of guest pages for the monitor: in a file that has a page wherever RAM has it, and is mostly a hole.

Guest memory is only copied here, never looked at: the monitor says which pages, the registers of the
vCPUs which ones beside them. The monitor gets the file for reading.
"""

from __future__ import annotations

import contextlib
import ctypes
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
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # include/uapi/linux/falloc.h
_MADV_POPULATE_READ = 22  # Linux 5.14; before, pages are read by the kernel's hand
_CR3 = re.compile(r"\bCR3=([0-9a-f]{8,16})\b")


class PageCopies:
    """The file of copies of one guest, whose RAM is behind `ram`; `below_4g_bytes` of it start at zero.

    Copies are made in two steps: `prepare` takes the time that is not the guest's, `take` is a plain copy.
    What was copied before may stay in the file until `forget`.
    """

    def __init__(self, ram: int, *, memory_bytes: int, below_4g_bytes: int) -> None:
        """Make the file; `ram` stays the caller's. Raises `UnavailableError` if that cannot be."""
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
                self._ram = os.dup(ram)
                undo.callback(os.close, self._ram)
                self._mapped_ram = mmap.mmap(
                    self._ram, memory_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ
                )
                undo.callback(self._mapped_ram.close)
                self._copies = mmap.mmap(self._file, memory_bytes)
            except (OSError, ValueError) as error:
                raise UnavailableError(f"the guest's pages cannot be copied: {error}") from error
            undo.pop_all()
        self._from, self._to = memoryview(self._mapped_ram), memoryview(self._copies)
        self._runs: Sequence[tuple[int, int]] = ()
        self._in_place: frozenset[tuple[int, int]] = frozenset()
        self._roots = 0

    def prepare(self, runs: Sequence[tuple[int, int]]) -> None:
        """Copy these pages once, so that `take` finds all of it in place, and forget others.

        Raises `SetupError` for pages that the guest does not have, `UnavailableError` where there is no
        memory for them; nothing is copied then.
        """
        if any((first + count) * _PAGE > self._size for first, count in runs):
            raise SetupError("pages are asked for that the guest does not have")
        if runs != self._runs or self._roots > _MOST_ROOTS:
            self.forget()
            try:
                self._allocate(runs)
            except UnavailableError:
                self.forget()
                raise
            self._runs = runs
        self._in_place = frozenset(run for run in runs if self._is_in_place(run))
        self.take(runs)

    def take(self, runs: Iterable[tuple[int, int]]) -> None:
        """Copy pages as they are now: each run is a first page of the RAM file and how many.

        Raises `UnavailableError` for pages that cannot be had.
        """
        for run in runs:
            start, size = run[0] * _PAGE, run[1] * _PAGE
            if run in self._in_place:
                self._to[start : start + size] = self._from[start : start + size]
            else:
                self._read(start, size)

    def take_roots(self, listings: Iterable[str]) -> tuple[int, ...]:
        """Copy the page tables that the vCPUs' CR3 name, as far as they are RAM; return these pages.

        A process that a vCPU is on now may not have been there when it was said which pages to copy.
        """
        named = [int(found[1], 16) & _ADDRESS for listing in listings for found in _CR3.finditer(listing)]
        places = {self._offset(address) for root in named for address in (root, root ^ _PAIR)}
        pages = sorted(place // _PAGE for place in places if place is not None)
        runs = [(page, 1) for page in pages]
        self._allocate(runs)
        self.take(runs)
        self._roots += len(pages)
        return tuple(pages)

    def forget(self) -> None:
        """Give the memory of all copies back.

        The file stays as long as it is: whoever touched it while it was shorter, a monitor that reads or a
        copy that QEMU let wait, would be killed (SIGBUS, mmap(2)). Raises `UnavailableError` if the memory
        cannot be given back.
        """
        _punch_hole(self._file, self._size)
        self._runs, self._roots, self._in_place = (), 0, frozenset()

    def close(self) -> None:
        """Give everything back. The monitor keeps its descriptor, of a file that is all hole."""
        with contextlib.suppress(UnavailableError):  # the file's memory goes with its last descriptor
            self.forget()
        self._from.release()
        self._to.release()
        self._mapped_ram.close()
        self._copies.close()
        os.close(self._ram)
        os.close(self.descriptor)
        os.close(self._file)

    def _allocate(self, runs: Iterable[tuple[int, int]]) -> None:
        """Have the pages of the file that these runs need, or say that the host has no memory for them."""
        try:
            for first, count in runs:
                os.posix_fallocate(self._file, first * _PAGE, count * _PAGE)
        except OSError as error:
            raise UnavailableError(f"there is no memory for copies of pages: {error.strerror}") from error

    def _is_in_place(self, run: tuple[int, int]) -> bool:
        """Tell whether the pages of a run can be read where they are mapped.

        One that the guest never touched is a hole in the file: whoever touches it takes memory for it, and is
        killed where there is none (SIGBUS, mmap(2)); with the launcher, the guest ends. Asked to take it
        beforehand, the kernel fails instead (madvise(2)).
        """
        try:
            self._mapped_ram.madvise(_MADV_POPULATE_READ, run[0] * _PAGE, run[1] * _PAGE)
        except OSError:
            return False
        return True

    def _read(self, start: int, size: int) -> None:
        """Copy pages that may not be in place, by the kernel's hand: it reads zeros where there are none."""
        try:
            copied = os.preadv(self._ram, [self._to[start : start + size]], start)
        except OSError as error:
            raise UnavailableError(f"the guest's pages cannot be copied: {error.strerror}") from error
        if copied != size:
            raise UnavailableError(f"the guest's pages cannot be copied: {copied} bytes of {size}")

    def _offset(self, address: int) -> int | None:
        """Return where the page at a physical address is in the RAM file, None if it is not RAM."""
        if address >= _FOUR_GIB:
            address -= _FOUR_GIB - self._below_4g_bytes
            return address if address < self._size else None
        return address if address < self._below_4g_bytes else None


def _punch_hole(file: int, size: int) -> None:
    """Make a hole of a whole file (fallocate(2)): madvise(2) does that to no memory that is locked."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, 0, size):
        reason = os.strerror(ctypes.get_errno())
        raise UnavailableError(f"copies of the guest's pages cannot be given back: {reason}")
