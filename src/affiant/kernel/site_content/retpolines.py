"""Indirect branches, which the compiler made calls of thunks (apply_retpolines()).

Depending on the CPU's flaws the kernel leaves the thunk, calls another one (call depth tracking,
indirect target selection), or puts the indirect branch itself in its place, with or without `lfence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import CALL, INT3, JUMP, NOPS
from affiant.kernel.site_content.fixed_forms import FixedForms, FormTable
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.rule import SiteSet
from affiant.model.errors import AffiantError

__all__ = ["Retpolines"]

_WIDTH: Final = 6
_CS: Final = 0x2E
_LFENCE: Final = bytes.fromhex("0faee8")
_REGISTERS: Final = 16
_THUNK_SIZE: Final = 32  # RETPOLINE_THUNK_SIZE
_ITS_THUNK_SIZE: Final = 64  # ITS_THUNK_SIZE: each thunk in a cache line of its own
_NAMES: Final = (
    "the thunk",
    "an indirect branch",
    "an indirect branch behind prefixes",
    "an indirect branch behind lfence",
    "a counting thunk",
    "a thunk for indirect target selection",
)


class Retpolines(FixedForms):
    """The rule for retpoline sites; a thunk that the kernel made at run time is read and compared."""

    def __init__(self, image: KernelImage, sites: SiteSet) -> None:
        self._image = image
        self._linked = image.linked(sites.offset, _WIDTH)
        self._register = np.full(len(sites), -1, dtype=np.int64)
        super().__init__(SiteClass.RETPOLINE, sites, self._forms(sites))

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`."""
        whole = super().joined(image, sites, parts)
        whole._image = image
        share(whole, parts, "_linked", "_register")
        return whole

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: beside the fixed forms, a branch to a thunk of the same register, made at run time."""
        legal = super().take(indices, found)
        for row in np.flatnonzero(~legal).tolist():
            index = int(indices[row])
            length = int(self.sites.length[index])
            if self._leads_to_made_thunk(index, found[row, :length].tobytes()):
                self._held[index] = _NAMES.index("a thunk for indirect target selection")
                legal[row] = True
        return legal

    def _forms(self, sites: SiteSet) -> FormTable:
        count = len(sites)
        content = np.repeat(self._linked[:, None, :], len(_NAMES), axis=1)
        offered = np.zeros((count, len(_NAMES)), dtype=bool)
        offered[:, 0] = True
        group = np.zeros(count, dtype=np.int64)
        arrays = {name: self._image.program.find(name) or 0 for name in _ARRAYS}
        thunks = arrays["__x86_indirect_thunk_array"]
        for index in range(count):
            address, length = int(sites.address[index]), int(sites.length[index])
            linked = self._linked[index, :length].tobytes()
            target = address + length + int.from_bytes(linked[-4:], "little", signed=True)
            register, rest = divmod(target - thunks, _THUNK_SIZE)
            if not thunks or rest or not 0 <= register < _REGISTERS:
                group[index] = -1
                continue
            self._register[index] = register
            group[index] = (address + 1 + register // 8) >> 5 & 1
            for number, form in self._of_one(linked, address, register, arrays):
                content[index, number, :length] = np.frombuffer(form, dtype=np.uint8)
                offered[index, number] = True
        return FormTable(_NAMES, content, offered, group)

    @staticmethod
    def _of_one(
        linked: bytes, address: int, register: int, arrays: dict[str, int]
    ) -> list[tuple[int, bytes]]:
        length = len(linked)
        forms = [
            (1, _indirect(linked, register, b"")),
            (2, _prefixed(linked, register)),
            (3, _indirect(linked, register, _LFENCE)),
        ]
        counting = "call" if linked[-5] == CALL else "jump"
        for number, array, size in (
            (4, f"__x86_indirect_{counting}_thunk_array", _THUNK_SIZE),
            (5, "__x86_indirect_its_thunk_array", _ITS_THUNK_SIZE),
        ):
            if arrays[array]:
                thunk = arrays[array] + size * register
                forms.append((number, linked[:-4] + _distance(address + length, thunk)))
        return [(number, form) for number, form in forms if len(form) == length]

    def _leads_to_made_thunk(self, index: int, found: bytes) -> bool:
        """Tell whether a branch as linked leads outside the image, to what its_allocate_thunk() makes of it.

        That is `jmp *reg; int3` of the very register, the jump of which ends in the upper half of a cache
        line. What else stands on that page, and whose it is, is judged by `page_content`.
        """
        register, linked = int(self._register[index]), self._linked[index]
        if register < 0 or found[:-4] != linked[: len(found) - 4].tobytes():
            return False
        end = int(self.sites.address[index]) + len(found)
        target = end + int.from_bytes(found[-4:], "little", signed=True)
        if self._image.contains(target):
            return False
        thunk = _register_branch(JUMP, register) + bytes([INT3])
        if not (target + len(thunk) - 2) & 0x20:
            return False
        try:
            return self._image.program.read(target, len(thunk)) == thunk
        except AffiantError:
            return False


_ARRAYS: Final = (
    "__x86_indirect_thunk_array",
    "__x86_indirect_call_thunk_array",
    "__x86_indirect_jump_thunk_array",
    "__x86_indirect_its_thunk_array",
)


def _distance(end: int, target: int) -> bytes:
    return ((target - end) & 0xFFFF_FFFF).to_bytes(4, "little")


def _register_branch(opcode: int, register: int) -> bytes:
    """`call *reg` or `jmp *reg` (SDM vol. 2, FF /2 and FF /4)."""
    prefix = b"\x41" if register >= 8 else b""
    return prefix + bytes([0xFF, (0xD0 if opcode == CALL else 0xE0) + register % 8])


def _indirect(linked: bytes, register: int, fence: bytes) -> bytes:
    """The indirect branch in place of `linked`, padded as patch_retpoline() does."""
    head = b""
    opcode = linked[-5]
    if linked[0] == 0x0F:  # a conditional jump: jump over the branch if the condition does not hold
        head, opcode = bytes([0x70 + (linked[1] & 0xF ^ 1), len(linked) - 2]), JUMP
    body = head + fence + _register_branch(opcode, register)
    if opcode == JUMP and len(body) < len(linked):
        body += bytes([INT3])
    left = len(linked) - len(body)
    return body + NOPS[left] if 0 <= left < len(NOPS) else body


def _prefixed(linked: bytes, register: int) -> bytes:
    """Since 6.17, padded with prefixes before a call and with INT3 after a jump (emit_indirect())."""
    if linked[0] == 0x0F:
        return b""
    body = _register_branch(linked[-5], register)
    left = len(linked) - len(body)
    return bytes([_CS]) * left + body if linked[-5] == CALL else body + bytes([INT3]) * left
