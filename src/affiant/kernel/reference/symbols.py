"""The symbols of a reference image: by name, and by address."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.kallsyms import KallsymsEntry
from affiant.kernel.reference.linked import LinkedKernel
from affiant.model.errors import MalformedError

__all__ = ["Symbol", "SymbolTable", "encode_symbols"]

_MAX_SYMBOLS = 1 << 20


@dataclass(frozen=True, slots=True)
class Symbol:
    """`address` is the link address (add the slide), `type` nm's letter, upper case when global.

    `size` is the distance in bytes to the next symbol or the end of the section, so it includes
    padding; 0 when unknown.
    """

    name: str
    address: int
    type: str
    size: int


class SymbolTable:
    """Symbols in ascending order of address. Built by `SymbolTable.decode` or from parts of an image."""

    def __init__(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint32],
        types: bytes,
        names: Sequence[str],
    ) -> None:
        self.addresses = addresses
        self._sizes = sizes
        self._types = types
        self._names = names

    @classmethod
    def decode(cls, parts: Mapping[str, bytes | memoryview]) -> SymbolTable:
        """Read what `encode_symbols` wrote.

        Guaranteed: as many sizes, types and names as addresses, at most 1 Mi; addresses ascend; names
        are printable ASCII and not empty. Raises `MalformedError` otherwise.
        """
        try:
            raw = [parts[f"symbols.{field}"] for field in ("address", "size", "type", "name")]
        except KeyError as error:
            raise MalformedError(f"the reference image has no part {error}") from None
        count = len(raw[2])
        if not 0 < count <= _MAX_SYMBOLS or len(raw[0]) != 8 * count or len(raw[1]) != 4 * count:
            raise MalformedError("the reference image's symbol arrays differ in length")
        addresses = np.frombuffer(raw[0], dtype="<u8")
        if np.any(addresses[1:] < addresses[:-1]):
            raise MalformedError("the reference image's symbols are not in order")
        types, text = bytes(raw[2]), bytes(raw[3])
        if not text.isascii() or not types.isascii() or not types.decode("ascii").isprintable():
            raise MalformedError("the reference image's symbols are not ASCII")
        names = text.decode("ascii").split("\n")
        if len(names) != count or not all(names) or not text.decode("ascii").replace("\n", "").isprintable():
            raise MalformedError("the reference image's symbol names are broken")
        return cls(addresses, np.frombuffer(raw[1], dtype="<u4"), types, names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Symbol]:
        return (self._symbol(index) for index in range(len(self._names)))

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def named(self, name: str) -> list[Symbol]:
        """Return every symbol of that name, in order of address; static functions often share one."""
        return [self._symbol(index) for index in self._by_name.get(name, ())]

    def unique(self, name: str) -> Symbol | None:
        """Return the only symbol of that name, or else the only global one; None if there is none."""
        if name not in self._by_name:
            return None
        if name not in self._unique:
            found = self.named(name)
            if len(found) > 1:
                found = [symbol for symbol in found if symbol.type.isupper()]
            self._unique[name] = found[0] if len(found) == 1 else None
        return self._unique[name]

    def matching(self, pattern: str) -> list[Symbol]:
        """Return every symbol whose whole name matches a regular expression, in order of address."""
        matches = re.compile(pattern).fullmatch
        return [self._symbol(index) for index, name in enumerate(self._names) if matches(name)]

    def starting_at(self, address: int) -> list[Symbol]:
        """Return every symbol of exactly that link address."""
        if not 0 <= address < 1 << 64:
            return []
        first = int(np.searchsorted(self.addresses, np.uint64(address), side="left"))
        last = int(np.searchsorted(self.addresses, np.uint64(address), side="right"))
        return [self._symbol(index) for index in range(first, last)]

    def addresses_of(self, types: str) -> NDArray[np.uint64]:
        """Return the link addresses of all symbols that have one of these types, ascending, each once."""
        wanted = np.isin(np.frombuffer(self._types, dtype=np.uint8), np.frombuffer(types.encode(), np.uint8))
        return np.unique(self.addresses[wanted])

    def at(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol that covers a link address, and the offset into it.

        Of several names for one address the first is taken, as the kernel itself does.
        """
        if not 0 <= address < 1 << 64:
            return None
        after = int(np.searchsorted(self.addresses, np.uint64(address), side="right"))
        if after == 0:
            return None
        start = self.addresses[after - 1]
        symbol = self._symbol(int(np.searchsorted(self.addresses, start, side="left")))
        offset = address - symbol.address
        return (symbol, offset) if offset < max(symbol.size, 1) else None

    @cached_property
    def _unique(self) -> dict[str, Symbol | None]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        index: dict[str, list[int]] = {}
        for number, name in enumerate(self._names):
            index.setdefault(name, []).append(number)
        return index

    def _symbol(self, index: int) -> Symbol:
        return Symbol(
            name=self._names[index],
            address=int(self.addresses[index]),
            type=chr(self._types[index]),
            size=int(self._sizes[index]),
        )


def encode_symbols(entries: Sequence[KallsymsEntry], kernel: LinkedKernel) -> dict[str, bytes]:
    """Return the parts of a reference image that hold these symbols, which must ascend by address."""
    addresses = np.array([entry.address for entry in entries], dtype="<u8")
    return {
        "symbols.address": addresses.tobytes(),
        "symbols.size": _sizes(addresses, kernel).astype("<u4").tobytes(),
        "symbols.type": "".join(entry.type for entry in entries).encode("ascii"),
        "symbols.name": "\n".join(entry.name for entry in entries).encode("ascii"),
    }


def _sizes(addresses: NDArray[np.uint64], kernel: LinkedKernel) -> NDArray[np.uint64]:
    """Distance to the next higher symbol address, cut at the end of the section; 0 outside sections."""
    if not len(addresses):
        return addresses
    distinct = np.unique(addresses)
    following = np.append(distinct[1:], distinct[-1])
    ends = following[np.searchsorted(distinct, addresses)]
    limits = np.zeros(len(addresses), dtype=np.uint64)
    for section in kernel.sections:
        distance = addresses - np.uint64(section.address)
        limits[distance < np.uint64(section.size)] = section.address + section.size
    ends = np.where(ends > addresses, np.minimum(ends, limits), limits)
    return np.where(limits > addresses, np.minimum(ends - addresses, np.uint64(0xFFFFFFFF)), np.uint64(0))
