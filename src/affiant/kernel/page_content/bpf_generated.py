"""Trampolines and dispatchers of BPF: the pieces of code in their memory, and which of them is entered.

kernel/bpf/trampoline.c, kernel/bpf/dispatcher.c. A trampoline is one piece; a dispatcher has two halves, of
which one is entered while the other is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.bpf_code import DISPATCHER, TRAMPOLINE, CodeForm
from affiant.kernel.page_content.bpf_lists import BpfLists, BpfSymbol

__all__ = ["GeneratedCode", "entered_at", "generated_code", "is_dispatcher", "is_in_use"]

_FILLERS: Final = b"\xcc\x00"
_HALVES: Final = 2
_NONE: Final = -1
_DISPATCHER: Final = "struct bpf_dispatcher"
_TRAMPOLINE_NAME: Final = "bpf_trampoline_"


@dataclass(frozen=True, slots=True)
class GeneratedCode:
    """`size` bytes of code at `start`; `memory` is what stands there up to the end of its part."""

    start: int
    size: int
    form: CodeForm
    memory: bytes


def is_dispatcher(symbol: BpfSymbol) -> bool:
    """Tell whether a symbol is a dispatcher's."""
    return symbol.name.startswith("bpf_dispatcher_")


def is_in_use(lists: BpfLists, symbol: BpfSymbol, called: Collection[int]) -> bool:
    """Tell whether code is what its trampoline has now, or is among those that functions still call.

    What is no trampoline's, as far as its name tells, is in use; so is all where nobody tells.
    """
    if lists.trampolines is None or not symbol.name.startswith(_TRAMPOLINE_NAME):
        return True
    return symbol.start in lists.trampolines or symbol.start in called


def generated_code(symbol: BpfSymbol, memory: bytes) -> Iterator[GeneratedCode]:
    """Yield the pieces of code in the memory of a trampoline or dispatcher, without what fills the rest."""
    form = DISPATCHER if is_dispatcher(symbol) else TRAMPOLINE
    size = len(memory) // _HALVES if is_dispatcher(symbol) else len(memory)
    for offset in range(0, len(memory), max(size, 1)):
        part = memory[offset : offset + size]
        # Behind the code stand zeros up to what was asked for, and INT3 up to the next chunk.
        code = len(part.rstrip(_FILLERS))
        if code:
            yield GeneratedCode(symbol.start + offset, code, form, part)


def entered_at(program: KernelProgram, symbol: BpfSymbol) -> int:
    """Return where a trampoline is entered, or the half in use of a dispatcher; -1 for one without programs.

    Raises MemoryFault if there is no such dispatcher.
    """
    if not is_dispatcher(symbol):
        return symbol.start
    copy = program.copy(_DISPATCHER, symbol.structure - program.offset(_DISPATCHER, "ksym"))
    return symbol.start + copy.integer("image_off") if copy.integer("num_progs") else _NONE
