"""Members of many structures of one type, all of them read at once.

To copy one structure and take a member out of it costs as much as to read that member of a hundred together.
What is read is read at about the same time, and not of one moment, as ever in a guest that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.paging import KERNEL_HALF
from affiant.kernel.objects.program import KernelProgram

__all__ = ["StructColumns"]

_WORD: Final = 8
_AROUND: Final = 1 << 30  # walked around the structures, so that the same is walked when some of them change


class StructColumns:
    """The members `paths` of the structures at `addresses`, as they were when this was made.

    `readable` tells of which structures all of these members could be read; those of the others are zero, in
    part or all. A structure that is not aligned to words is not readable here, wherever it lies. Raises
    UnavailableError if this kernel has no such type or member, MalformedError if its page tables have no end.
    """

    def __init__(
        self, program: KernelProgram, type_name: str, addresses: NDArray[np.uint64], paths: Sequence[str]
    ) -> None:
        self._members = {path: program.member(type_name, path) for path in paths}
        words = sorted(
            {
                word
                for member in self._members.values()
                for word in range(member.offset // _WORD, -(-(member.offset + member.size) // _WORD))
            }
        )
        self._column = {word: number for number, word in enumerate(words)}
        places = addresses[:, None] + np.array(words, dtype=np.uint64) * np.uint64(_WORD)
        found, there = _read(program, places.reshape(-1))
        self._words = found.reshape(places.shape)
        self.readable = np.asarray(there.reshape(places.shape).all(axis=1), dtype=np.bool_)

    def integers(self, path: str) -> list[int]:
        """Return an integer, enumeration or pointer member of each structure; not a bit field."""
        member = self._members[path]
        if member.bit_width or member.size > _WORD:
            raise ValueError(f"{path} is no integer of whole bytes")
        padded = np.zeros((len(self._words), _WORD), dtype=np.uint8)
        padded[:, : member.size] = self._bytes(path)
        values = padded.view("<u8")[:, 0]
        if member.signed:
            unused = np.int64(8 * (_WORD - member.size))
            return [int(value) for value in (values.view(np.int64) << unused >> unused).tolist()]
        return [int(value) for value in values.tolist()]

    def texts(self, path: str) -> list[str]:
        """Return a character array of each structure up to its first zero (or whole)."""
        # To numpy a string of bytes ends where nothing but zeros follows; one in C at the first of them.
        size = self._members[path].size
        whole = np.ascontiguousarray(self._bytes(path)).view(f"S{size}")[:, 0].tolist()
        return [text.partition(b"\0")[0].decode("utf-8", "backslashreplace") for text in whole]

    def _bytes(self, path: str) -> NDArray[np.uint8]:
        member = self._members[path]
        first = _WORD * self._column[member.offset // _WORD] + member.offset % _WORD
        return self._words.astype("<u8", copy=False).view(np.uint8)[:, first : first + member.size]


def _read(
    program: KernelProgram, addresses: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the word at each address, and which of them the kernel's own tables map to RAM."""
    kernel = addresses[addresses >= np.uint64(KERNEL_HALF[0])]
    if not len(kernel):
        return np.zeros(len(addresses), dtype=np.uint64), np.zeros(len(addresses), dtype=bool)
    first, last = int(kernel.min()) & -_AROUND, int(kernel.max()) | _AROUND - 1
    physical, mapped = program.space.leaves(first, last).locate(addresses)
    words, there = program.space.memory.integers(physical, _WORD)
    return words, there & mapped
