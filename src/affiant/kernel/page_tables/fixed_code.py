"""Code that has its place outside of the kernel's text: what starts other CPUs, and the vsyscall page."""

from __future__ import annotations

from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError

__all__ = ["VSYSCALL", "real_mode_pages"]

VSYSCALL: Final = 0xFFFF_FFFF_FF60_0000
"""The one page of the kernel half that user mode may execute (VSYSCALL_ADDR)."""

_REAL_MODE_END: Final = 1 << 20


def real_mode_pages(program: KernelProgram, space: AddressSpace) -> tuple[int, int] | None:
    """Return (physical address, size) of the code that starts other CPUs; None if there is none.

    Its place is what the kernel believes (`real_mode_header`); its size is that of the reference.
    """
    header, start, end = (
        program.find("real_mode_header"),
        program.find("real_mode_blob"),
        program.find("real_mode_blob_end"),
    )
    if header is None or start is None or end is None or not start < end:
        return None
    try:
        place = space.translate(program.word(header)).physical
    except AffiantError:
        return None
    size = -(-(end - start) // PAGE_SIZE) * PAGE_SIZE
    return (place, size) if place % PAGE_SIZE == 0 and place + size <= _REAL_MODE_END else None
