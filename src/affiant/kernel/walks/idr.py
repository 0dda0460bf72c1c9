"""What the kernel gave ids to: the elements of its IDRs (lib/idr.c), by their ids."""

from __future__ import annotations

from collections.abc import Iterator

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.elements import make_walk
from affiant.kernel.walks.places import named_type
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.query import Path, Structure, WalkQuery

__all__ = ["idr_elements"]


def idr_elements(
    program: KernelProgram, memory: Snapshot, idr: Path, element: str, *, most: int
) -> Iterator[tuple[int, int]]:
    """Return the id and address of each structure of the type `element` in the IDR that a path leads to.

    Raises what `make_walk` raises. What comes raises what its walks raise: until then it is not the whole.
    """
    query = WalkQuery(
        name=idr.root,
        structure=Structure.XARRAY,
        start=idr,
        element=element,
        link=None,
        fields=(),
        most=most,
    )
    walk = make_walk(program, query, named_type(program, element), vcpus=1)
    return ((number or 0, address) for number, address in walk(memory))
