"""The kernel's own data structures, walked with bounds and without trust.

Forward only: a reader under RCU may follow `next` of an element that is being removed, never `prev`
(`LIST_POISON2`). A walk that meets a cycle, exceeds its bound or leads nowhere raises; a partial
result never looks like a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import MalformedError

__all__ = ["Words", "list_entries", "tree_nodes", "xarray_entries"]

_INTERNAL: Final = 2  # include/linux/xarray.h: low bits of an entry that is no pointer of the user's
_LAST_RESERVED: Final = 4096  # entries below are siblings and marks, no nodes
_ABOVE_ALL: Final = 64


class Words(Protocol):
    """Kernel memory: a program, or a snapshot of what it reads."""

    def word(self, address: int) -> int:
        """Return the 64-bit word at a virtual address."""
        ...


def list_entries(program: Words, head: int, *, offset: int, maximum: int) -> Iterator[int]:
    """Yield the address of each structure on the `list_head` at `head`, in order.

    `offset` is where the structure holds its own `list_head`. Raises MalformedError on a cycle that
    does not pass the head or after `maximum` elements, MemoryFault on a wild pointer.
    """
    seen: set[int] = set()
    node = program.word(head)
    while node != head:
        if node in seen:
            raise MalformedError(f"the list at {head:#x} runs in a circle")
        if len(seen) >= maximum:
            raise MalformedError(f"the list at {head:#x} has more than {maximum} elements")
        seen.add(node)
        # Read on before the element is handed out: it may be freed while the caller looks at it.
        following = program.word(node)
        yield node - offset
        node = following


def tree_nodes(
    program: KernelProgram, root: int, *, maximum: int, words: Words | None = None
) -> Iterator[int]:
    """Yield the address of each `rb_node` below the node at `root`, in no particular order.

    The tree is read through `words`, if they are given. Raises MalformedError if a node is reached twice or
    there are more than `maximum`.
    """
    words = words or program
    right, left = program.offset("struct rb_node", "rb_right"), program.offset("struct rb_node", "rb_left")
    pending, seen = [root] if root else [], set[int]()
    while pending:
        node = pending.pop()
        if node in seen or len(seen) >= maximum:
            raise MalformedError(f"the tree below {root:#x} is no tree, or has more than {maximum} nodes")
        seen.add(node)
        children = [words.word(node + place) for place in (left, right)]
        yield node
        pending += [child for child in children if child]


def xarray_entries(program: KernelProgram, entry: int, *, maximum: int) -> Iterator[int]:
    """Yield what is stored below the head entry of an XArray or IDR (lib/xarray.c), in order of index.

    Values that are no pointers are left out. Raises MalformedError after `maximum` entries or nodes,
    or if a node is none; MemoryFault on a wild pointer.
    """
    node_type = "struct xa_node"
    width = program.member(node_type, "slots").size // 8
    pending, nodes, yielded = [(entry, _ABOVE_ALL)], 0, 0
    while pending:
        entry, above = pending.pop()
        if entry & 3 == _INTERNAL and entry > _LAST_RESERVED:
            copy = program.copy(node_type, entry - _INTERNAL)
            # Each level counts fewer bits than the one above it, so there are few of them.
            level = copy.integer("shift")
            nodes += 1
            if level >= above or nodes > maximum:
                raise MalformedError(f"the node at {entry:#x} is no node of an xarray, or one too many")
            pending += [(copy.integer(f"slots[{slot}]"), level) for slot in reversed(range(width))]
        elif entry and entry & 3 == 0:
            yielded += 1
            if yielded > maximum:
                raise MalformedError(f"an xarray has more than {maximum} entries")
            yield entry
