"""Parts of a kernel that bring sections and patch tables of their own, with its reference behind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.sites import Sites

__all__ = ["OverlaidReference"]


class OverlaidReference(ReferenceImage):
    """A kernel's reference with a part's sections in front, and the part's patch tables in place of its own.

    `sections` hold the part's bytes as they are relocated already; their addresses, and those in `sites`,
    are counted without the kernel's slide.
    """

    def __init__(self, kernel: ReferenceImage, sections: tuple[Section, ...], sites: Sites) -> None:
        super().__init__(
            digest=kernel.digest,
            metadata=kernel.metadata,
            kernel=LinkedKernel((*kernel.sections, *sections)),
            symbols=kernel.symbols,
            sites=sites,
            relocations=kernel.relocations,
            data={},
        )
        self._own = {section.name: section for section in sections}

    def section(self, name: str) -> tuple[int, memoryview]:
        """Return a section of the part, else the kernel's."""
        own = self._own.get(name)
        return super().section(name) if own is None else (own.load_address, own.data)

    def relocated_section(self, name: str, slide: int) -> NDArray[np.uint8]:
        """Return a section of the part, which is relocated already, else the kernel's."""
        own = self._own.get(name)
        if own is None:
            return super().relocated_section(name, slide)
        return np.frombuffer(own.data, dtype=np.uint8).copy()
