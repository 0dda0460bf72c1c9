"""Code of EFI services on a machine that booted through firmware: kept as it was first seen."""

from __future__ import annotations

from typing import Any

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.page_tables.address_roots import EFI_AREA
from affiant.kernel.page_tables.table_owners import efi_root
from lab.guests import LabGuest
from lab.live_guest import open_live_guest
from lab.references import reference_of


def look(guest: Guest, now: float) -> dict[str, Any]:
    return collect(guest, ["executable_pages"], now=now)["executable_pages"].to_json()


def test_firmware_that_is_changed_after_the_first_look_is_found(secure_boot_guest: LabGuest) -> None:
    with open_live_guest(secure_boot_guest, reference_of(secure_boot_guest.kernel)) as live:
        guest = live.guest
        first = look(guest, 0.0)
        services = first["owners"]["efi services"]
        assert services["pieces"] == services["trusted"] > 10
        assert services["trust"] == ["firmware is what the first look found"]
        root = efi_root(guest.program, guest.kernel_space)
        assert root is not None
        space = AddressSpace(guest.memory, root.physical, guest.location.levels)
        leaves = space.leaves(EFI_AREA[0], EFI_AREA[1] - 1)
        code = leaves.select(leaves.executable & ~leaves.writable)
        ends = [
            (int(address + size) - 1, int(physical + size) - 1)
            for address, physical, size in zip(code.address, code.physical, code.size, strict=True)
        ]
        # Padding behind the code of one of the services: nobody runs it.
        address, physical = next(end for end in ends if live.memory.read(end[1] - 15, 16) == bytes(16))
        with live.physically_changed(physical, b"\xcc"):
            found = [look(guest, float(now))["findings"] for now in range(1, 12)][-1]
        assert [(each["address"], each["owner"]) for each in found] == [(hex(address), "efi services")]
        assert look(guest, 20.0)["findings"] == []
