"""Where the pages of module areas lie."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.kernel.running_kernel import RunningKernel

__all__ = ["ModuleFrames"]

_PAGE_BITS: Final = np.uint64(12)


class ModuleFrames:
    """The frame of each page of some regions, looked for anew when page tables of the module area change."""

    def __init__(self, regions: list[CodeRegion]) -> None:
        """Regions are whole pages."""
        self._pages = np.concatenate(
            [np.arange(region.start, region.end, PAGE_SIZE, dtype=np.uint64) for region in regions]
            or [np.empty(0, dtype=np.uint64)]
        )
        self._leaves: Leaves | None = None
        self._found = self._pages, np.zeros(len(self._pages), dtype=bool)

    def find(self, kernel: RunningKernel) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the frame of each page, region after region, and which pages are mapped.

        Page tables are compared now. Raises MalformedError if they have no end.
        """
        leaves = kernel.kernel_space.leaves(kernel.program.address("_end"), LAST_CODE_ADDRESS)
        if leaves is not self._leaves:
            physical, mapped = leaves.locate(self._pages)
            self._leaves, self._found = leaves, (physical >> _PAGE_BITS, mapped)
        return self._found
