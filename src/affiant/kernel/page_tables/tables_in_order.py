"""Which page tables were in order just as the registers of vCPUs were read.

What a vCPU is on is known from its registers, and whose that is from lists that are read later in a look. A
process that ends in between is on no list any more, and its tables are freed: on a guest that makes
processes all the time, in every second look. So the lists are read just before the registers as well, and
just after where a vCPU is on tables that were not on them: a table that somebody had then, and that shared
the kernel's half then, is no strange one because it is gone by now. Of a table that is on none of these
lists, nothing excuses a vCPU.
"""

from __future__ import annotations

import random
from typing import Final

from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_tables.address_roots import own_user_half, sharing, user_half_of
from affiant.kernel.page_tables.table_owners import Root, borrowed_roots, known_roots
from affiant.model.errors import AffiantError

__all__ = ["tables_in_order"]

_MOST_COMPARED: Final = 2048
"""Of more, as many are drawn by lot: whoever is not among them is looked for on the lists after alone."""


def tables_in_order(program: KernelProgram, space: AddressSpace) -> frozenset[int]:
    """Return the physical addresses of tables that somebody has, and whose kernel half is the kernel's, now.

    With page table isolation, of both of each pair. None are, where the lists cannot be followed. Raises
    nothing that the guest could cause.
    """
    try:
        leaves = space.leaves()
        roots = [*known_roots(program, space, leaves)[0], *borrowed_roots(program, space, leaves)]
        user = own_user_half(program, space)
        if len(roots) > _MOST_COMPARED:
            # Not to be foreseen by the guest that has so many.
            roots = random.SystemRandom().sample(roots, _MOST_COMPARED)
        shared: list[Root] = sharing(space, roots)
        if user is not None:
            shared += sharing(space, [user_half_of(root) for root in shared], own=user)
    except AffiantError:
        return frozenset()
    return frozenset(root.physical for root in shared)
