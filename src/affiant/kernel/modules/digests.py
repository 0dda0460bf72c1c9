"""SHA-256 of code that no reference has: what an unknown module is told by."""

from __future__ import annotations

import hashlib
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.modules.loaded import Module

__all__ = ["CodeDigests"]

_MOST_HASHED: Final = 64 << 20
"""Bytes in one look, a quarter of a second: twice what the largest modules known, of graphics cards, have."""


class CodeDigests:
    """Hashes the code of modules, within a bound for each look.

    Modules say themselves how long they are, and a guest may list thousands of them over the same pages.
    """

    def __init__(self) -> None:
        self._left = _MOST_HASHED

    def begin(self) -> None:
        """Begin a look: so much may be hashed in it."""
        self._left = _MOST_HASHED

    def of(self, space: AddressSpace, module: Module) -> tuple[str, str]:
        """Return the digest of a module's code in memory; "", and why, if it cannot be told in this look."""
        size = sum(end - start for start, end in module.text)
        if size > self._left:
            return "", "more code of unknown modules than one look hashes"
        digest = hashlib.sha256()
        for start, end in module.text:
            for page in range(start, end, PAGE_SIZE):
                length = min(PAGE_SIZE, end - page)
                try:
                    digest.update(space.read(page, length))
                except MemoryFault:
                    return "", "a page of its code is missing"
                self._left -= length
        return digest.hexdigest(), ""
