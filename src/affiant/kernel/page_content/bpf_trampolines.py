"""Which code the kernel's trampolines of BPF have now.

kernel/bpf/trampoline.c. A trampoline whose programs change gets new code; what it had before stays mapped,
and on the list of symbols, until nobody can be in it any more. That may be long after its programs are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import MalformedError

__all__ = ["trampolines", "trampolines_in_use"]

_TRAMPOLINE: Final = "struct bpf_trampoline"
_CODE: Final = "struct bpf_tramp_image"
# Two tables have each of them since Linux 7.0 (one by what is traced, one by where).
_TABLES: Final = (("trampoline_key_table", "hlist_key"), ("trampoline_table", "hlist"))
_MOST_BUCKETS: Final = 8192
_MOST: Final = 65536


def trampolines_in_use(program: KernelProgram) -> frozenset[int] | None:
    """Return where the code of each trampoline starts that it has now; None if this kernel does not tell.

    Raises MemoryFault or MalformedError if the kernel's table of them cannot be followed.
    """
    if not program.has_type(_CODE) or not program.has(_TRAMPOLINE, "cur_image"):
        return None
    every = trampolines(program)
    return None if every is None else frozenset(_codes(program, every))


def trampolines(program: KernelProgram) -> Iterator[int] | None:
    """Return what yields each `struct bpf_trampoline` of the kernel's table; None if this kernel has none.

    It raises MemoryFault or MalformedError if the table cannot be followed.
    """
    for name, member in _TABLES:
        table = program.reference.symbols.unique(name)
        if table is not None and program.has_type(_TRAMPOLINE) and program.has(_TRAMPOLINE, member):
            heads = program.read(program.running(table.address), 8 * min(table.size // 8, _MOST_BUCKETS))
            return _structures(program, heads, program.offset(_TRAMPOLINE, member))
    return None


def _codes(program: KernelProgram, every: Iterator[int]) -> Iterator[int]:
    start = program.offset(_CODE, "image")
    for trampoline in every:
        code = program.copy(_TRAMPOLINE, trampoline).integer("cur_image")
        if code:
            yield program.word(code + start)


def _structures(program: KernelProgram, heads: bytes, link: int) -> Iterator[int]:
    seen: set[int] = set()
    buckets = np.frombuffer(heads, dtype="<u8")
    for node in buckets[buckets != 0].tolist():  # of a thousand or more, few are in use
        while node:
            if node in seen or len(seen) >= _MOST:
                raise MalformedError("the table of BPF trampolines runs in a circle, or has no end")
            seen.add(node)
            yield node - link
            node = program.word(node)  # struct hlist_node begins with `next`
