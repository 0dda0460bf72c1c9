"""The kernel image that sites lie in: its linked bytes, its functions, and its live data."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.memory import GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.site_content.outside import NOBODY, Outside

__all__ = ["KernelImage"]

_ALL = (1 << 64) - 1
_SPAN = 64 << 20  # what is walked of page tables for neighbouring data
_CODE_SYMBOLS = "tTwW"
_KEY = "__SCK__"


class KernelImage:
    """A region of kernel text, with the means to tell what an address in it is.

    Addresses are those of the running kernel. Names and linked bytes come from the reference; only
    `words` and `integers` read the guest.
    """

    def __init__(
        self,
        memory: GuestMemory,
        space: AddressSpace,
        program: KernelProgram,
        region: CodeRegion,
        *,
        outside: Outside = NOBODY,
        reference: ReferenceImage | None = None,
    ) -> None:
        """`outside` tells of code that is none of the image; `reference`, if given, of what is in view."""
        self.program = program
        self._reference = reference or program.reference
        self.region = region
        self.memory = memory
        self.space = space
        self.outside = outside

    @property
    def reference(self) -> ReferenceImage:
        """What the kernel is compared with."""
        return self._reference

    @property
    def slide(self) -> int:
        """How far the kernel runs from where it was linked."""
        return self.program.location.slide

    def within(self, region: CodeRegion) -> KernelImage:
        """Return the same kernel with another region in view."""
        return KernelImage(
            self.memory,
            self.space,
            self.program,
            region,
            outside=self.outside,
            reference=self._reference,
        )

    def linked(self, offsets: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
        """Return the `width` bytes that were linked at each offset, relocated; zeros behind the end."""
        end = len(self.region.expected)
        index = offsets[:, None] + np.arange(width)
        found: NDArray[np.uint8] = self.region.expected[np.minimum(index, end - 1)]
        found[index >= end] = 0
        return found

    def contains(self, address: int) -> bool:
        """Tell whether an address lies in the region."""
        return self.region.start <= address < self.region.end

    def functions_at(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell for each address whether a function of the region starts there."""
        places = np.searchsorted(self._functions, addresses)
        places = np.minimum(places, len(self._functions) - 1)
        return np.asarray(self._functions[places] == addresses)

    def may_be_called(self, address: int) -> bool:
        """Tell whether a function of the region starts at an address, or one that somebody vouches for."""
        return bool(self.callable_among([address]))

    def callable_among(self, addresses: Collection[int]) -> frozenset[int]:
        """Return those of many addresses, as they are given, that may be called; see `may_be_called`."""
        places = np.array(sorted({address & _ALL for address in addresses}), dtype=np.uint64)
        own = self.functions_at(places)
        found = {*places[own].tolist(), *self.outside.functions_among(frozenset(places[~own].tolist()))}
        return frozenset(address for address in addresses if address & _ALL in found)

    def names_at(self, address: int) -> tuple[str, ...]:
        """Return all names of the symbol at an address."""
        return tuple(symbol.name for symbol in self.reference.symbols.starting_at(address - self.slide))

    def own_names_at(self, address: int) -> tuple[str, ...]:
        """Return all names of the symbol at an address, those of whoever the region belongs to included."""
        return self.names_at(address)

    def static_call_keys(self) -> dict[str, int]:
        """Return the running address of the key of each static call that is defined here, by its name."""
        return {
            symbol.name.removeprefix(_KEY): symbol.address + self.slide
            for symbol in self.reference.symbols.matching(rf"{_KEY}\w+")
        }

    def named(self, pattern: str) -> dict[str, int]:
        """Return the running addresses of all text symbols whose name matches, by name."""
        return {
            symbol.name: symbol.address + self.slide
            for symbol in self.reference.symbols.matching(pattern)
            if symbol.type in _CODE_SYMBOLS
        }

    def integers(self, addresses: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
        """Return the little-endian integers of `width` bytes that the guest holds at each address.

        Raises MemoryFault unless all of them are mapped to RAM.
        """
        found = np.zeros(len(addresses), dtype=np.uint64)
        for *_, near in self.neighbours(addresses, width):
            found[near] = self._near_integers(addresses[near], width)
        return found

    def neighbours(
        self, addresses: NDArray[np.uint64], width: int
    ) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """Return the parts of addresses that are near each other: the first byte, the last one, and which.

        The kernel's data is near each other, and each module's.
        """
        found: list[tuple[int, int, NDArray[np.bool_]]] = []
        left = np.ones(len(addresses), dtype=bool)
        while left.any():
            first = addresses[left].min()
            near = left & (addresses - first < np.uint64(_SPAN - width))
            found.append((int(first), int(addresses[near].max()) + width - 1, near))
            left &= ~near
        return found

    def _near_integers(self, addresses: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
        leaves = self.space.leaves(int(addresses.min()), int(addresses.max()) + width - 1)
        physical, mapped = leaves.locate(addresses)
        found, there = self.memory.integers(physical, width)
        for index in np.flatnonzero(~(there & mapped)).tolist():
            # Not aligned, perhaps across two pages; or not there.
            found[index] = int.from_bytes(self.space.read(int(addresses[index]), width), "little")
        return found

    def linked_words(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the 64-bit words that were linked at each address, relocated as pointers; 0 for none."""
        found = np.zeros(len(addresses), dtype=np.uint64)
        for section in self.reference.sections:
            distance = addresses - np.uint64(self.slide) - np.uint64(section.load_address)
            inside = distance < np.uint64(max(0, len(section.data) - 7))
            if inside.any():
                data = np.frombuffer(section.data, dtype=np.uint8)
                found[inside] = _integers(data[distance[inside].astype(np.int64)[:, None] + np.arange(8)])
        found[found != 0] += np.uint64(self.slide)
        return found

    def words(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the 64-bit words that the guest holds at each address; see `integers`."""
        return self.integers(addresses, 8)

    def row(self, address: int, count: int) -> NDArray[np.uint64]:
        """Return `count` 64-bit words that the guest holds one behind the other.

        Raises MemoryFault unless all of them are mapped to RAM.
        """
        end = address + 8 * count
        runs = self.space.extents(address, end)
        if sum(run.size for run in runs) != end - address:
            raise MemoryFault(f"{address:#x} to {end:#x} is not all mapped")
        parts = [self.memory.array(run.physical, run.size) for run in runs]
        return np.frombuffer(np.concatenate(parts).tobytes(), dtype="<u8").astype(np.uint64, copy=False)

    @cached_property
    def _functions(self) -> NDArray[np.uint64]:
        running = self.reference.symbols.addresses_of(_CODE_SYMBOLS) + np.uint64(self.slide)
        inside = (running >= np.uint64(self.region.start)) & (running < np.uint64(self.region.end))
        return running[inside] if inside.any() else np.zeros(1, dtype=np.uint64)


def _integers(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the little-endian integer that each row of bytes is."""
    padded = np.zeros((len(rows), 8), dtype=np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded.view("<u8")[:, 0].astype(np.uint64)
