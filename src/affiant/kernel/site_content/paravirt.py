"""Calls through pv_ops, by which a kernel runs on several hypervisors.

At boot each `call *pv_ops[n]` becomes a direct call of what the entry holds, or nothing if that does
nothing (apply_paravirt() until 6.8, alt_replace_call() since). So the bytes must agree with pv_ops, and
pv_ops is data of the guest: an entry must hold what was linked, or a function of the kernel that is
made for it, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import CALL, NOPS, branch, branches
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.rule import Objection, SiteSet

__all__ = ["DIRECT_CALL_BYTES", "Paravirt", "PvOps", "padded"]

DIRECT_CALL_BYTES: Final = b"\xff\x15"
"""`call *disp32(%rip)`."""

_CALL_SIZE: Final = 5
_IS_ILLEGAL, _DOES_NOTHING, _IS_MISSING, _CALLS = range(4)
_NOTHING: Final = ("_paravirt_nop", "nop_func")
_MISSING: Final = ("paravirt_BUG", "BUG_func")
# What setup of a hypervisor's guest puts into pv_ops (kvm.c, xen/, hyperv/, vmware.c, paravirt-spinlocks.c).
_MADE_FOR_IT: Final = re.compile(
    r"(__raw_callee_save_)?_*(pv_native|native|kvm|xen|hv|hyperv|vmware|tdx)_\w+"
    r"|(__raw_callee_save_)?__pv_queued_spin_(un)?lock\w*"
    r"|_paravirt_nop|_paravirt_ident_64|paravirt_ret0|paravirt_BUG|nop_func|BUG_func|tlb_remove_table"
)


class PvOps:
    """The table of calls, read from the guest and judged entry by entry."""

    def __init__(self, image: KernelImage) -> None:
        self._image = image
        self.start = image.program.find("pv_ops") or 0
        self._seen: dict[int, int | None] = {}
        self._idle: dict[int, bool] = {}  # whether a function does nothing, by its name in the reference

    def form(self, slot: int) -> tuple[int, int]:
        """Return which form a direct call in place of one through `slot` has, and the function called."""
        target = self.legal_target(slot)
        if target is None:
            return _IS_ILLEGAL, 0
        if target not in self._idle:
            self._idle[target] = any(name in _NOTHING for name in self._image.names_at(target))
        if self._idle[target]:
            return _DOES_NOTHING, 0
        return (_CALLS, target) if target else (_IS_MISSING, 0)

    def direct_forms(self, slot: int, address: int, length: int) -> tuple[bytes, ...]:
        """Return the forms of a direct call in place of one through `slot`; none if the entry is illegal."""
        kind, target = self.form(slot)
        if kind == _IS_ILLEGAL:
            return ()
        if kind == _DOES_NOTHING:
            return (padded(b"", length),)
        if kind == _IS_MISSING:
            missing = [self._image.program.find(name) for name in _MISSING]
            return tuple(padded(branch(CALL, address, bug), length) for bug in missing if bug)
        return (padded(branch(CALL, address, target), length),)

    def legal_target(self, slot: int) -> int | None:
        """Return what the guest's pv_ops holds in a slot, None if no kernel puts that there."""
        if slot not in self._seen:
            if not self.start:
                return None
            found = int(self._image.words(np.array([slot], dtype=np.uint64))[0])
            self._seen[slot] = found if self.is_legal(slot, found) else None
        return self._seen[slot]

    def read(self, slots: NDArray[np.uint64]) -> None:
        """Read many slots of the guest's table at once, as `legal_target` does one."""
        if self.start and len(slots):
            for slot, found in zip(slots.tolist(), self._image.words(slots).tolist(), strict=True):
                self._seen[slot] = found if self.is_legal(slot, found) else None

    def forget(self) -> None:
        """Have the guest's table be read anew when it is asked for next."""
        self._seen.clear()

    def is_legal(self, slot: int, target: int) -> bool:
        """Tell whether a kernel may put `target` into a slot."""
        if target in (0, self._linked(slot)):
            return True
        return any(_MADE_FOR_IT.fullmatch(name) for name in self._image.names_at(target))

    def _linked(self, slot: int) -> int:
        try:
            linked = int.from_bytes(self._image.reference.read(slot - self._image.slide, 8), "little")
        except KeyError:
            return 0
        return linked + self._image.slide if linked else 0


def padded(code: bytes, length: int) -> bytes:
    """Return code filled up to `length` with no-operations, the longest first (add_nops() until 6.8)."""
    left = length - len(code)
    while left > 0:
        nop = NOPS[min(left, 8)]
        code, left = code + nop, left - len(nop)
    return code


class Paravirt:
    """The rule for sites of `.parainstructions`, which kernels have until 6.8."""

    kind = SiteClass.PARAVIRT

    def __init__(self, image: KernelImage, sites: SiteSet, pv_ops: PvOps) -> None:
        self.sites = sites
        self._image = image
        self._pv_ops = pv_ops
        self._width = int(sites.length.max(initial=1))
        self._linked = image.linked(sites.offset, self._width)
        self._slot = np.full(len(sites), pv_ops.start, dtype=np.uint64) + np.uint64(8) * _types(image, sites)
        self._inside = np.arange(self._width) < sites.length[:, None]
        self._nothing = np.zeros((len(sites), self._width), dtype=np.uint8)
        self._padding = np.zeros_like(self._nothing)  # behind a direct call
        for length in np.unique(sites.length).tolist():
            rows = sites.length == length
            self._nothing[rows, :length] = np.frombuffer(padded(b"", length), dtype=np.uint8)
            if length > _CALL_SIZE:
                filling = padded(bytes(_CALL_SIZE), length)
                self._padding[rows, :length] = np.frombuffer(filling, dtype=np.uint8)

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`."""
        whole = cls.__new__(cls)
        whole.sites, whole._image, whole._pv_ops = sites, image, PvOps(image)
        whole._width = max(part._width for part in parts)
        share(whole, parts, "_linked", "_slot", "_inside", "_nothing", "_padding")
        return whole

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: as linked, or what the slot of pv_ops asks for."""
        found = found[:, : self._width]
        self._pv_ops.forget()
        slots, of_slot = np.unique(self._slot[indices], return_inverse=True)
        self._pv_ops.read(slots)
        forms = [self._pv_ops.form(slot) for slot in slots.tolist()]
        kinds = np.array([form[0] for form in forms], dtype=np.int64)[of_slot]
        wanted = np.array([form[1] for form in forms], dtype=np.uint64)[of_slot]
        calls = self._padding[indices].copy()
        if self._width >= _CALL_SIZE:
            calls[:, :_CALL_SIZE] = branches(CALL, self.sites.address[indices], wanted)
        inside = self._inside[indices]
        legal = _equal(found, self._linked[indices], inside)
        legal |= (kinds == _CALLS) & _equal(found, calls, inside) & (self.sites.length[indices] >= _CALL_SIZE)
        legal |= (kinds == _DOES_NOTHING) & _equal(found, self._nothing[indices], inside)
        for row in np.flatnonzero(~legal & (kinds == _IS_MISSING)).tolist():
            index = int(indices[row])
            legal[row] = found[row, : int(self.sites.length[index])].tobytes() in self._forms(index)
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`: none, for nothing is remembered."""
        return np.zeros(len(self.sites), dtype=bool)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`."""
        linked = self._linked[index, : int(self.sites.length[index])].tobytes()
        try:
            return tuple(dict.fromkeys((linked, *self._forms(index))))
        except MemoryFault:
            return (linked,)

    def forms_at(self, address: int) -> tuple[bytes, ...]:
        """Return what may stand at the site at an address."""
        index = int(np.searchsorted(self.sites.address, np.uint64(address)))
        return self.allowed(index)

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the kernel changes these before anything else runs, or with all else stopped."""
        return False

    def review(self) -> Iterable[Objection]:
        """See `Rule`: sites are patched once, at boot, so that what was legal then stays so."""
        return ()

    def _forms(self, index: int) -> tuple[bytes, ...]:
        return self._pv_ops.direct_forms(
            int(self._slot[index]), int(self.sites.address[index]), int(self.sites.length[index])
        )


def _equal(
    found: NDArray[np.uint8], wanted: NDArray[np.uint8], inside: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    return np.asarray(~((found != wanted) & inside).any(axis=1))


def _types(image: KernelImage, sites: SiteSet) -> NDArray[np.uint64]:
    """Return the index into pv_ops of each site's entry (`struct paravirt_patch_site`, `type`)."""
    types = np.zeros(len(sites), dtype=np.uint64)
    for number in np.unique(sites.table).tolist():
        entries = image.reference.table_entries(number)
        mask = sites.table == number
        types[mask] = entries["type"][sites.entry[mask]]
    return types
