"""Jump labels: branches that a static key turns into no-operations and back.

arch/x86/kernel/jump_label.c, include/linux/jump_label.h. A site holds a jump to *its* target, which the
reference tells, or a no-operation, and the key's count tells which: it jumps when the key is enabled,
or, for a branch that is taken by default, when it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import NOPS
from affiant.kernel.site_content.fixed_integers import FixedIntegers
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.rule import Objection, SiteSet, is_tail_of

__all__ = ["JumpLabels"]

_SHORT, _NEAR = 2, 5
_SHORT_JUMP, _NEAR_JUMP = 0xEB, 0xE9
_BRANCH: Final = 1  # jump_entry_is_branch(): bit 0 of the key; bit 1 marks sites in init text
_FLAGS: Final = 3
_ENABLING: Final = -1  # static_key_slow_inc() while the code is being changed


class JumpLabels:
    """The rule for jump labels."""

    kind = SiteClass.JUMP_LABEL

    def __init__(self, image: KernelImage, sites: SiteSet) -> None:
        self.sites = sites
        self._image = image
        self._target, self._key, self._branch = _entries(image, sites)
        self._jump, self._nop = self._forms()
        self._inside = np.arange(_NEAR) < sites.length[:, None]
        linked = image.linked(sites.offset, _NEAR)
        everywhere = np.arange(len(sites))
        self._jumps = ~self._differs(linked, self._jump, everywhere)
        self._linked_jumps = self._jumps.copy()
        self._linked_legal = self._jumps | ~self._differs(linked, self._nop, everywhere)
        self._know(image)

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`."""
        whole = cls.__new__(cls)
        whole.sites, whole._image = sites, image
        share(whole, parts, "_target", "_key", "_branch", "_jump", "_nop", "_inside", "_jumps")
        share(whole, parts, "_linked_jumps", "_linked_legal")
        whole._know(image)
        return whole

    def _know(self, image: KernelImage) -> None:
        """Work out what does not depend on one site."""
        self._keys, self._of_key = np.unique(self._key, return_inverse=True)
        self._counts = FixedIntegers(image, self._keys, 4)
        # What the keys held, and which sites jumped, when all agreed.
        self._agreed: tuple[NDArray[np.uint64], NDArray[np.bool_]] | None = None

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: the jump to the site's own target, or the no-operation of its length."""
        jumps = ~self._differs(found, self._jump[indices], indices)
        legal: NDArray[np.bool_] = jumps | ~self._differs(found, self._nop[indices], indices)
        self._jumps[indices[legal]] = jumps[legal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`."""
        return np.asarray((self._jumps == self._linked_jumps) & self._linked_legal)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`."""
        length = int(self.sites.length[index])
        return (self._nop[index, :length].tobytes(), self._jump[index, :length].tobytes())

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`."""
        return is_tail_of(tail, self.allowed(index))

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields sites that their key contradicts; changing a key takes moments."""
        held = self._counts.read()
        if self._agreed is not None and all(map(np.array_equal, self._agreed, (held, self._jumps))):
            return
        self._agreed = None
        odd = False
        counts = held.astype(np.uint32).view(np.int32)[self._of_key]
        expected = (counts > 0) ^ self._branch
        for index in np.flatnonzero((expected != self._jumps) | (counts == _ENABLING)).tolist():
            if counts[index] == _ENABLING and self._jumps[index] == (not self._branch[index]):
                continue
            state = "enabled" if counts[index] > 0 else "disabled"
            name = self._image.program.describe(int(self._key[index]))
            right = self._jump if expected[index] else self._nop
            odd = True
            yield Objection(
                index,
                f"{'jumps' if self._jumps[index] else 'does not jump'}, and its key {name} is {state}",
                passing=True,
                allowed=(right[index, : int(self.sites.length[index])].tobytes(),),
            )
        if not odd:
            self._agreed = held, self._jumps.copy()

    def _forms(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        count = len(self.sites)
        jump, nop = np.zeros((count, _NEAR), dtype=np.uint8), np.zeros((count, _NEAR), dtype=np.uint8)
        for length, opcode in ((_SHORT, _SHORT_JUMP), (_NEAR, _NEAR_JUMP)):
            mask = self.sites.length == length
            jump[mask, 0] = opcode
            distance = (self._target - self.sites.address - np.uint64(length)).astype("<u4")[mask]
            jump[mask, 1:length] = (
                np.ascontiguousarray(distance).view(np.uint8).reshape(-1, 4)[:, : length - 1]
            )
            nop[mask, :length] = np.frombuffer(NOPS[length], dtype=np.uint8)
        return jump, nop

    def _differs(
        self, found: NDArray[np.uint8], form: NDArray[np.uint8], indices: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        return np.asarray(((found[:, :_NEAR] != form) & self._inside[indices]).any(axis=1))


def _entries(
    image: KernelImage, sites: SiteSet
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the running target and key of each site, and whether it is taken by default."""
    target = np.zeros(len(sites), dtype=np.uint64)
    key = np.zeros(len(sites), dtype=np.uint64)
    slide = np.uint64(image.slide)
    for number in np.unique(sites.table).tolist():
        table, entries = image.reference.tables[number], image.reference.table_entries(number)
        mask = sites.table == number
        chosen, rows = entries[sites.entry[mask]], sites.entry[mask].astype(np.uint64)
        places = np.uint64(table.address) + rows * np.uint64(entries.itemsize)
        fields: Mapping[str, Any] = entries.dtype.fields or {}
        for name, into in (("target", target), ("key", key)):
            distance = chosen[name].astype(np.int64).view(np.uint64)
            into[mask] = places + np.uint64(fields[name][1]) + distance + slide
    branch = (key & np.uint64(_BRANCH)).astype(bool)
    return target, key & ~np.uint64(_FLAGS), branch
