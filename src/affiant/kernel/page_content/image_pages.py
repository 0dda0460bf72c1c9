"""Executable pages outside of text and module area that hold fixed code of the kernel image.

`vsyscall`: the page at a fixed address that old programs call (not mapped executable by most kernels).
`real mode`: the code that starts other processors, below 1 MiB, relocated as setup_real_mode() does it
(arch/x86/realmode/init.c); its data and header change and are no code. Both are compared byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.claim import Claim, Fault, pages_around
from affiant.kernel.page_content.view import View
from affiant.kernel.page_tables.fixed_code import VSYSCALL, real_mode_pages
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["RealModePages", "VsyscallPage"]

_HEADER: Final = struct.Struct("<II")  # struct real_mode_header: text_start, ro_end
_MOST_RELOCATIONS: Final = 65536


class VsyscallPage:
    """Judges the vsyscall page."""

    kind = "vsyscall"

    def __init__(self, guest: RunningKernel) -> None:
        self._space = guest.kernel_space

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim if the page is mapped executable."""
        page = view.program.find("__vsyscall_page")
        if page is None:
            return
        try:
            mapped = self._space.translate(VSYSCALL)
        except MemoryFault:
            return
        if not mapped.executable:
            return
        expected = _linked(view.program, "__vsyscall_page", PAGE_SIZE)
        found = view.read(VSYSCALL, VSYSCALL + PAGE_SIZE)
        yield Claim(
            VSYSCALL, VSYSCALL + PAGE_SIZE, "vsyscall", _faults(VSYSCALL, "vsyscall", expected, found)
        )


class RealModePages:
    """Judges the code that starts other processors."""

    kind = "real mode"

    def __init__(self, guest: RunningKernel) -> None:
        self._space = guest.kernel_space
        self._relocated: dict[int, bytes] = {}

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for the executable part."""
        program = view.program
        place = real_mode_pages(program, self._space)
        if place is None:
            return
        physical, _ = place
        if physical not in self._relocated:
            # It follows from the reference and its place; there is one, and a guest may say what it likes.
            self._relocated = {physical: _relocated(program, physical)}
        blob = self._relocated[physical]
        start, end = (value - physical for value in _HEADER.unpack_from(blob))
        if not 0 < start < end <= len(blob):
            raise UnavailableError("the reference's code for real mode names no text")
        virtual = program.word(program.address("real_mode_header"))
        found = view.read(virtual + start, virtual + end)
        faults = _faults(virtual + start, "real mode", blob[start:end], found)
        yield Claim(*pages_around(virtual + start, virtual + end), "real mode", faults)


def _relocated(program: KernelProgram, physical: int) -> bytes:
    """Return the code as setup_real_mode() puts it at a physical address."""
    size = program.address("real_mode_blob_end") - program.address("real_mode_blob")
    blob = bytearray(_linked(program, "real_mode_blob", size))
    linked = program.address("real_mode_relocs") - program.location.slide
    for width in (2, 4):
        count = _word(program, linked)
        if count > _MOST_RELOCATIONS:
            raise UnavailableError("the reference's relocations for real mode have no end")
        for _ in range(count):
            linked += 4
            offset = _word(program, linked)
            if offset + width > size:
                raise MalformedError("a relocation for real mode lies outside of its code")
            held = int.from_bytes(blob[offset : offset + width], "little")
            value = physical >> 4 if width == 2 else held + physical
            blob[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        linked += 4
    return bytes(blob)


def _word(program: KernelProgram, linked: int) -> int:
    try:
        return int.from_bytes(program.reference.read(linked, 4), "little")
    except KeyError:
        raise UnavailableError("the reference does not store the relocations for real mode") from None


def _linked(program: KernelProgram, symbol: str, size: int) -> bytes:
    try:
        return bytes(program.reference.read(program.address(symbol) - program.location.slide, size))
    except KeyError:
        raise UnavailableError(f"the reference does not store {symbol}") from None


def _faults(address: int, owner: str, expected: bytes, found: bytes) -> tuple[Fault, ...]:
    if expected == found:
        return ()
    first = next(index for index, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
    return (Fault.at(address + first, owner, "is not what the kernel image holds", found[first:]),)
