"""Arrays of programs that end with a null pointer (include/linux/bpf.h, `struct bpf_prog_array`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from affiant.kernel.bpf_programs.survey import Survey
from affiant.model.errors import MalformedError

__all__ = ["program_array"]

_ARRAY: Final = "struct bpf_prog_array"
_ITEM: Final = "struct bpf_prog_array_item"
_MOST: Final = 1024


def program_array(survey: Survey, address: int) -> Iterator[int]:
    """Yield the programs of the array at an address; none for a null pointer.

    What the kernel puts in the place of one that was taken away is left out. Raises MalformedError for an
    array without an end, MemoryFault for a wild pointer.
    """
    if not address:
        return
    program = survey.program
    stand_in = program.find("dummy_bpf_prog")
    place = program.offset(_ITEM, "prog")
    item = address + program.offset(_ARRAY, "items")
    for _ in range(_MOST):
        held = survey.memory.word(item + place)
        if not held:
            return
        # struct { struct bpf_prog prog; } of the kernel image: its program is its first member.
        if held != stand_in:
            yield held
        item += program.size(_ITEM)
    raise MalformedError(f"the array of programs at {address:#x} has no end")
