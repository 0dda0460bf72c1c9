"""What a program calls, by its machine code: helpers and kernel functions, by their names in the reference.

The kernel puts a helper's address into the call instruction, so that the compiled code tells which one runs,
whatever the instructions say that the code was made of. What the verifier or compiler puts in place of a
call (map lookups, the processor's number) is no call any more.

How long a function is, two words of the guest say. So its code is read up to the end of the memory that it
was given in its pack, where nothing but INT3 may stand behind it, and perhaps its table of exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from affiant.kernel.page_content.bpf_code import PROGRAM, read_code
from affiant.kernel.page_content.bpf_lists import CHUNK, BpfLists, BpfProgram
from affiant.kernel.page_content.view import View
from affiant.kernel.site_content.image import KernelImage
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["Callees", "Calls"]

_MOST_DECODED: Final = 1 << 20  # bytes of new code in one look; a second of work
_MOST_READ: Final = 64 << 20  # bytes of code in one look
_MOST_KEPT: Final = 65536
_MOST_BYTES_KEPT: Final = 64 << 20
_INNER: Final = "____"  # the body of a helper, as its compiler names it
_TRAP: Final = b"\xcc"
_EXCEPTION: Final = 12  # bytes: struct exception_table_entry


@dataclass(frozen=True, slots=True)
class Calls:
    """The functions of the kernel that code calls, by name. Not `whole`: the rest of it is no BPF code."""

    names: frozenset[str]
    whole: bool


class Callees:
    """Remembers what was decoded; code that did not change is not decoded again."""

    def __init__(self, guest: RunningKernel) -> None:
        self._image = KernelImage(guest.memory, guest.kernel_space, guest.program, guest.text)
        self._known: dict[tuple[int, int], tuple[bytes, Calls]] = {}
        self._kept = 0
        self._left, self._unread = _MOST_DECODED, _MOST_READ

    def begin(self) -> None:
        """Begin a look: so much code may be read in it, and so much new code decoded."""
        self._left, self._unread = _MOST_DECODED, _MOST_READ

    def of(self, view: View, lists: BpfLists, functions: Iterable[BpfProgram]) -> Calls | None:
        """Return what the functions of a program call; None if this look has read or decoded enough.

        Raises MemoryFault where there is no code, MalformedError where a pack holds no such function.
        """
        names: set[str] = set()
        whole = True
        for function in functions:
            end = _end_of_memory(view, lists, function)
            self._unread -= end - function.start
            if self._unread < 0:
                return None
            code = view.read(function.start, end)
            known = self._known.get((function.start, function.size))
            if known is None or known[0] != code:
                if self._left <= 0:
                    return None
                self._left -= len(code)
                if len(self._known) >= _MOST_KEPT or self._kept >= _MOST_BYTES_KEPT:
                    self._known.clear()
                    self._kept = 0
                self._kept += len(code)
                known = self._known[function.start, function.size] = code, self._decoded(code, function)
            names |= known[1].names
            whole = whole and known[1].whole
        return Calls(frozenset(names), whole)

    def _decoded(self, code: bytes, function: BpfProgram) -> Calls:
        """Read the code of a function, and what else it turns out to have behind its end."""
        own, table = function.size, function.table - function.start
        if function.exceptions and own <= table <= len(code) - _EXCEPTION * function.exceptions:
            rest = code[own:table] + code[table + _EXCEPTION * function.exceptions :]
        else:
            rest = code[own:]
        short = bool(rest.strip(_TRAP))
        size = len(code.rstrip(_TRAP)) if short else own
        report = read_code(code, size, function.start, PROGRAM, exact=not short)
        names = {self._name(target) for target, _ in report.leaves}
        return Calls(frozenset(names - {""}), report.wrong is None and not short)

    def _name(self, target: int) -> str:
        """Return the name of a function of the kernel image; "" for thunks and what lies elsewhere."""
        names = [name for name in self._image.names_at(target) if not name.startswith(_INNER)]
        told = next((name for name in names if name.startswith("bpf_")), next(iter(names), ""))
        return "" if told.startswith("__x86_") or told.endswith("_return_thunk") else told


def _end_of_memory(view: View, lists: BpfLists, function: BpfProgram) -> int:
    """Return where the memory ends that a function has in its pack: its header tells, in front of the code.

    The code begins in the same chunk as the header does (bpf_jit_binary_pack_alloc()). Where there is no
    pack, the function's own end.
    """
    end, pack = function.start + function.size, lists.pack_at(function.start)
    if pack is None:
        return end
    header = function.start - (function.start - pack.start) % CHUNK
    size = int.from_bytes(view.read(header, header + 4), "little")
    if size % CHUNK or not end <= header + size <= pack.end:
        raise MalformedError(f"memory of {size} bytes at {header:#x} for {function.size} bytes of code")
    return header + size
