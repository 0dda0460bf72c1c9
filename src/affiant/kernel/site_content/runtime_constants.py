"""Immediate operands that the kernel sets once at boot (asm/runtime-const.h, since 6.11).

All sites of one table hold one value; what it is depends on the machine, and the code around the
operand is compared as any other. A shift count is at most 63; a pointer is what its variable holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.rule import Objection, SiteSet

__all__ = ["RuntimeConstants"]

_PREFIXES = ("runtime_shift_", "runtime_ptr_")
_LARGEST_SHIFT = 63


class RuntimeConstants:
    """The rule for runtime shifts, or for runtime pointers."""

    def __init__(self, image: KernelImage, kind: SiteClass, sites: SiteSet) -> None:
        self.kind = kind
        self.sites = sites
        self._image = image
        self._width = 1 if kind is SiteClass.RUNTIME_SHIFT else 8
        self._linked = self._values(image.linked(sites.offset, self._width))
        self._held = self._linked.copy()
        self._variable = self._variables()

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: any value of the kind; `review` compares it with its variable and its fellows."""
        values = self._values(found[:, : self._width])
        legal = np.ones(len(indices), dtype=bool)
        if self.kind is SiteClass.RUNTIME_SHIFT:
            legal = values <= np.uint64(_LARGEST_SHIFT)
        self._held[indices[legal]] = values[legal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`: there are few of them, so that each is judged."""
        return np.zeros(len(self.sites), dtype=bool)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`: as linked, and as most of its fellows have it."""
        usual = self._usual(int(self.sites.table[index]))
        return tuple(dict.fromkeys(self._bytes(value) for value in (int(self._linked[index]), usual)))

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the kernel changes these before anything else runs, or with all else stopped."""
        return False

    def review(self) -> Iterable[Objection]:
        """See `Rule`."""
        for table in np.unique(self.sites.table).tolist():
            usual = self._usual(table)
            name = self._image.reference.tables[table].name
            for index in np.flatnonzero(
                (self.sites.table == table) & (self._held != np.uint64(usual))
            ).tolist():
                yield Objection(
                    index,
                    f"{name} is {int(self._held[index]):#x}, and {usual:#x} at its other sites",
                    allowed=(self._bytes(usual),),
                )
            variable = self._variable.get(table)
            if variable is None or usual == int(self._linked[self.sites.table == table][0]):
                continue
            (value,) = self._image.words(np.array([variable], dtype=np.uint64)).tolist()
            # A variable of the same name holds the same; a shift is kept in 32 bits.
            if value & ((1 << 32) - 1 if self._width == 1 else (1 << 64) - 1) != usual:
                first = int(np.flatnonzero(self.sites.table == table)[0])
                yield Objection(
                    first, f"{name} is {usual:#x}, and its variable {value:#x}", allowed=(self._bytes(value),)
                )

    def _usual(self, table: int) -> int:
        values, counts = np.unique(self._held[self.sites.table == table], return_counts=True)
        return int(values[counts.argmax()])

    def _variables(self) -> dict[int, int]:
        """Return where the variable of each table is, for those that are named after one."""
        found: dict[int, int] = {}
        for table in np.unique(self.sites.table).tolist():
            name = self._image.reference.tables[table].name
            for prefix in _PREFIXES:
                address = (
                    self._image.program.find(name.removeprefix(prefix)) if name.startswith(prefix) else None
                )
                if address is not None:
                    found[table] = address
        return found

    def _values(self, rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
        padded = np.zeros((len(rows), 8), dtype=np.uint8)
        padded[:, : self._width] = rows[:, : self._width]
        return padded.view("<u8")[:, 0].astype(np.uint64)

    def _bytes(self, value: int) -> bytes:
        return (value & (1 << 8 * self._width) - 1).to_bytes(self._width, "little")
