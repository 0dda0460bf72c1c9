"""Guest memory for one attempt at one query: each page is copied once, and only so many of them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import UnavailableError

__all__ = ["Budget", "NoTimeError", "NotingSnapshot", "Snapshot"]

_MOST_PAGES: Final = 1 << 16
_MOST_KEPT: Final = 2048
_MOST_ANSWER_BYTES: Final = 4 << 20
_END: Final = 1 << 64


class NoTimeError(UnavailableError):
    """The time for a query is used up; with more of it, there might have been an answer."""


class Budget:
    """What a query may use: processor-independent bounds first, and a time by which it must be done.

    Over all attempts, at most 65,536 pages are copied and at most 4 MiB of answer are made; `clock`
    tells monotonic seconds. Exceeding a bound raises `UnavailableError`: looking again won't help.
    """

    def __init__(self, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._pages = _MOST_PAGES
        self._answer = _MOST_ANSWER_BYTES

    def page(self) -> None:
        """Count one page, and look at the clock."""
        self._pages -= 1
        if self._pages < 0:
            raise UnavailableError(f"the query reads more than {_MOST_PAGES} pages")
        self.step()

    def step(self) -> None:
        """Look at the clock."""
        if self._clock() > self._deadline:
            raise NoTimeError("no time was left for the query")

    def answer(self, size: int) -> None:
        """Count bytes of answer."""
        self._answer -= size
        if self._answer < 0:
            raise UnavailableError(f"the answer to the query exceeds {_MOST_ANSWER_BYTES} bytes")

    def again(self) -> None:
        """Begin another attempt: what was answered is thrown away, what was used stays used."""
        self._answer = _MOST_ANSWER_BYTES


class Snapshot:
    """Kernel memory as one attempt sees it: a value that is read twice does not change meanwhile.

    At most 2,048 pages (8 MiB) are kept; beyond, the first ones are forgotten, and all at `forget`. Raises
    MemoryFault where no RAM answers, and what `Budget` raises.
    """

    def __init__(self, program: KernelProgram, budget: Budget) -> None:
        self.program = program
        self.budget = budget
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a virtual address of the kernel."""
        if address < 0 or address + size > _END:
            raise MemoryFault(f"{address:#x} (+{size:#x}) is no address")
        offset = address % PAGE_SIZE
        page = self._page(address - offset)
        if offset + size <= PAGE_SIZE:
            return page[offset : offset + size]
        following = range(address - offset + PAGE_SIZE, address + size, PAGE_SIZE)
        return b"".join([page[offset:], *map(self._page, following)])[:size]

    def word(self, address: int) -> int:
        """Return the 64-bit word, little-endian, at a virtual address of the kernel."""
        return int.from_bytes(self.read(address, 8), "little")

    def text(self, address: int, size: int) -> bytes:
        """Return the bytes before the first NUL, at most `size`; no page after that NUL is read."""
        text = b""
        while len(text) < size:
            here = address + len(text)
            part = self.read(here, min(size - len(text), PAGE_SIZE - here % PAGE_SIZE))
            end = part.find(b"\0")
            if end >= 0:
                return text + part[:end]
            text += part
        return text

    def forget(self) -> None:
        """Have what is read from now on be as it is from now on."""
        self._pages.clear()

    def _page(self, address: int) -> bytes:
        page = self._pages.get(address)
        if page is None:
            self.budget.page()
            page = self.program.read(address, PAGE_SIZE)
            if len(self._pages) >= _MOST_KEPT:
                del self._pages[next(iter(self._pages))]
            self._pages[address] = page
        return page


class NotingSnapshot(Snapshot):
    """The same memory at the same moment as another snapshot, and a note of each byte that is read of it.

    `addresses` and `sizes` are those of the reads, in their order. `whole` says whether all of them found
    memory: of what is not there, there are no bytes to note.
    """

    def __init__(self, memory: Snapshot) -> None:
        super().__init__(memory.program, memory.budget)
        self._pages = memory._pages
        self._plain = memory
        self.addresses, self.sizes = array("Q"), array("Q")
        self.whole = True

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a virtual address of the kernel, and note them."""
        try:
            data = super().read(address, size)
        except MemoryFault:
            self.whole = False
            raise
        if size > 0:
            self.addresses.append(address)
            self.sizes.append(size)
        return data

    def text(self, address: int, size: int) -> bytes:
        """Return the bytes before the first NUL, at most `size`, and note them and the NUL."""
        try:
            text = self._plain.text(address, size)
        except MemoryFault:
            self.whole = False
            raise
        if size > 0:
            self.addresses.append(address)
            self.sizes.append(min(len(text) + 1, size))
        return text

    def page(self, address: int) -> bytes | None:
        """Return the page at an address as it was read, None if it is not kept any more."""
        return self._pages.get(address)
