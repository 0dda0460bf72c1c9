"""The owner `thunk`: indirect branches in the safe half of a cache line, for processors that need it.

arch/x86/kernel/alternative.c, its_alloc() (6.15 and stable kernels): pages of INT3, with `jmp *%reg` in the
upper half of lines. The kernel and each module keep an array of their pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.page_content.claim import Claim, Fault
from affiant.kernel.page_content.view import View
from affiant.model.errors import MalformedError

__all__ = ["ThunkPages"]

_ARRAY: Final = "struct its_array"
_MOST_PAGES: Final = 1024
_HALF_LINE: Final = 32
_LOWER: Final = b"\xcc" * _HALF_LINE
# A prefix that pads (emit_indirect()), then jmp *%rax ... *%r15.
_THUNK: Final = re.compile(rb"(\x2e|\xcc)*(\x41)?\xff[\xe0-\xe7]\xcc*", re.DOTALL)


class ThunkPages:
    """Judges pages of thunks."""

    kind = "thunk"

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each page of the kernel's own array and of each module's."""
        pages = 0
        for owner, array, count in _arrays(view):
            pages += max(count, 0)
            if not 0 <= count <= pages <= _MOST_PAGES:
                raise MalformedError(f"{owner} has {count} pages of thunks, and all have {pages}")
            for index in range(count):
                start = view.program.word(array + 8 * index)
                memory = view.read(start, start + PAGE_SIZE)
                wrong = next((line for line in range(0, PAGE_SIZE, 64) if not _is_line(memory, line)), None)
                faults = (
                    ()
                    if wrong is None
                    else (Fault.at(start + wrong, owner, "is no thunk", memory[wrong : wrong + 64]),)
                )
                yield Claim(start, start + PAGE_SIZE, owner, faults)


def _is_line(memory: bytes, line: int) -> bool:
    """Tell whether a cache line holds INT3, and in its upper half perhaps a thunk."""
    lower, upper = memory[line : line + _HALF_LINE], memory[line + _HALF_LINE : line + 2 * _HALF_LINE]
    return lower == _LOWER and (upper == _LOWER or _THUNK.fullmatch(upper) is not None)


def _arrays(view: View) -> Iterator[tuple[str, int, int]]:
    program = view.program
    own = program.find("its_pages")
    if own is not None and program.has_type(_ARRAY):
        copy = program.copy(_ARRAY, own)
        yield "kernel", copy.integer("pages"), copy.integer("num")
    for module in view.modules:
        yield f"module {module.name}", *module.thunks
