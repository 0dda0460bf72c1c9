"""Code of the firmware that runs at run time: EFI services, in page tables of their own.

No package holds it: the firmware of this machine loaded it, and moved it once while the kernel booted
(SetVirtualAddressMap()). So it is taken as it was in the first look after the boot, and must stay so: what is
changed or added later is a fault, and so is all of it where that look found none. Firmware that was changed
before is as good as any other here; which one was started, the boot log tells, and not what became of it.

While the kernel says that it boots, nothing is known. It is not believed for ever: who says so from the first
look on has the code looked at after two minutes all the same.

Pages that firmware has mapped both writable and executable hold its data as well, and are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.page_content.claim import Claim, Fault
from affiant.kernel.page_content.view import View
from affiant.kernel.page_tables.address_roots import EFI_AREA
from affiant.kernel.page_tables.table_owners import efi_root
from affiant.model.errors import UnavailableError

__all__ = ["FirmwarePages"]

_MOST_BYTES: Final = 64 << 20
_MOST_TABLES: Final = 1 << 12
_FIRST_LOOK: Final = "firmware is what the first look found"
_WRITABLE: Final = "firmware that is mapped writable is not compared"
_MISSING: Final = np.empty(0, dtype=np.uint8)

_Code = NDArray[np.uint8]


class FirmwarePages:
    """Judges the code of EFI services, and remembers what it was at first."""

    kind = "efi services"

    def __init__(self) -> None:
        self._first: dict[int, _Code] | None = None

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each executable page; none without such firmware.

        Raises UnavailableError while the kernel boots, and where code of the first look is not to be found.
        """
        guest = view.guest
        # A kernel boots once: what it says after the first look excuses nothing.
        if self._first is None and view.booting:
            raise UnavailableError("the kernel says that it boots, and moves its firmware meanwhile")
        root = efi_root(view.program, guest.kernel_space)
        if root is None:
            self._first = self._first or {}
            if self._first:
                raise UnavailableError(
                    "the page tables of EFI services, which were there, are not to be found"
                )
            return
        space = AddressSpace(guest.memory, root.physical, guest.location.levels)
        leaves = space.leaves(EFI_AREA[0], EFI_AREA[1] - 1, maximum_tables=_MOST_TABLES)
        code = leaves.select(leaves.executable)
        if int(code.size.sum()) > _MOST_BYTES:
            raise UnavailableError("EFI services have more code than any firmware")
        pages = list(zip(*(column.tolist() for column in _columns(code)), strict=True))
        if self._first is None:
            self._first = {
                address: _MISSING if writable else _live(guest.memory, physical, size).copy()
                for address, physical, size, writable in pages
            }
        # The kernel unmaps nothing of it; whose code is not looked at may have been changed.
        missing = len(self._first.keys() - {address for address, *_ in pages})
        if missing:
            raise UnavailableError(f"{missing} pages of EFI services, which were there, are not mapped")
        for address, physical, size, writable in pages:
            first = self._first.get(address)
            trust = _WRITABLE if writable and first is not None and not len(first) else _FIRST_LOOK
            live = _live(guest.memory, physical, size)
            faults = () if trust == _WRITABLE else _faults(address, first, live, writable=writable)
            yield Claim(address, address + size, self.kind, faults, trusted=1, trust=trust)


def _columns(leaves: Leaves) -> tuple[NDArray[Any], ...]:
    return leaves.address, leaves.physical, leaves.size, leaves.writable


def _live(memory: GuestMemory, physical: int, size: int) -> _Code:
    """Return live memory; nothing where a device answers, as the flash that firmware lies in may."""
    return memory.array(physical, size) if memory.contains(physical, size) else _MISSING


def _faults(address: int, first: _Code | None, live: _Code, *, writable: bool) -> tuple[Fault, ...]:
    owner = FirmwarePages.kind
    if first is None:
        return (Fault.at(address, owner, "was not there in the first look", live[:64].tobytes()),)
    if writable:
        return (Fault.at(address, owner, "was not writable in the first look", live[:64].tobytes()),)
    if np.array_equal(first, live):
        return ()
    if len(first) != len(live):
        return (Fault.at(address, owner, "lay elsewhere in the first look", live[:64].tobytes()),)
    at = int(np.flatnonzero(first != live)[0])
    return (Fault.at(address + at, owner, "is not what the first look found", live[at : at + 64].tobytes()),)
