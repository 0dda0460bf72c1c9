"""The elements of the kernel's structures, with bounds and without trust.

Forward only, as in `affiant.kernel.walks.lists`. A walk that meets a cycle, an element too many or a wild
pointer raises; what it has yielded until then is to be thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import drgn

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.places import AbsentError, Place, Start, follow, plain, size_of, start_of
from affiant.kernel.walks.readings import destination
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError, UnavailableError
from affiant.model.query import Path, Structure, WalkQuery

__all__ = ["Walk", "base_address", "make_walk", "needs_processor", "processors"]

Walk = Callable[[Snapshot], Iterator[tuple[int | None, int]]]
"""Yields (index, address) of each element, in the kernel's order; the index is None where there is none."""

_LINKS: Final = {
    Structure.LIST: "struct list_head",
    Structure.HLIST: "struct hlist_node",
    Structure.RBTREE: "struct rb_node",
}
_MOST_HEADS: Final = 1 << 16
_XA_SIBLINGS_AND_MARKS: Final = (
    4096  # include/linux/xarray.h, xa_is_node: internal entries below are no nodes
)


def make_walk(program: KernelProgram, query: WalkQuery, element: drgn.Type, *, vcpus: int) -> Walk:
    """Return what visits the elements of a structure on this kernel.

    Raises `AbsentError` if the structure is not of that kind here, and `UnavailableError` if nobody
    tells the type of its symbol. The walk visits each element once and at most `query.most` of them;
    it raises `UnavailableError` beyond that, `MalformedError` on a cycle, and what `Snapshot` raises.
    """
    start = start_of(program, query.start)
    if query.structure is Structure.PER_CPU:
        return _per_cpu(program, query, start, element, vcpus)
    if start.per_cpu and start.processor is None:
        raise AbsentError(needs_processor(query.start))
    kind = start.place.type
    if kind is None:
        raise UnavailableError(
            f"nobody tells the type of {query.start.root}", hint="state it in the query: 'type'"
        )
    maker = _MAKERS[query.structure]
    visit = maker(program, query, start.place, kind, element)

    def walk(memory: Snapshot) -> Iterator[tuple[int | None, int]]:
        base = base_address(program, memory, start, vcpus=vcpus)
        address = destination(memory, base, start.place)
        seen: set[int] = set()
        for index, found in visit(memory, address) if address is not None else ():
            key = found if index is None else index
            if key in seen:
                raise MalformedError(f"{query.start.root} comes to the element at {found:#x} twice")
            if len(seen) >= query.most:
                raise _too_many(query)
            seen.add(key)
            memory.budget.step()
            yield index, found

    return walk


def base_address(program: KernelProgram, memory: Snapshot, start: Start, *, vcpus: int) -> int:
    """Return the address that a start's place is relative to: the symbol's, or one processor's instance.

    Raises `UnavailableError` for a processor that this machine does not have.
    """
    if start.processor is None:
        return start.address
    if start.processor not in processors(program, memory, vcpus=vcpus):
        raise UnavailableError(f"this machine has no processor {start.processor}")
    return _instance(program, memory, start.address, start.processor)


def processors(program: KernelProgram, memory: Snapshot, *, vcpus: int) -> list[int]:
    """Return the numbers of the processors that have instances of per-CPU variables.

    The kernel's own mask says which; one that names fewer than the machine has vCPUs hides some, and
    raises `MalformedError`.
    """
    mask = memory.read(program.address("__cpu_possible_mask"), program.size("struct cpumask"))
    bits = int.from_bytes(mask, "little")
    found = [number for number in range(8 * len(mask)) if bits >> number & 1]
    if len(found) < vcpus:
        raise MalformedError(f"the kernel knows {len(found)} processors, the machine has {vcpus}")
    return found


Visit = Callable[[Snapshot, int], Iterator[tuple[int | None, int]]]


def _per_cpu(program: KernelProgram, query: WalkQuery, start: Start, element: drgn.Type, vcpus: int) -> Walk:
    """Visit a per-CPU variable, or what a pointer to per-CPU memory in a structure points to."""
    place = start.place
    if start.processor is not None:
        raise AbsentError(f"{query.start.root} is walked over all processors, so without an index")
    if not start.per_cpu and (place.type is None or place.type.kind != drgn.TypeKind.POINTER):
        raise AbsentError(f"{query.start.root} leads neither to a per-CPU variable nor to a pointer to one")
    if start.per_cpu and place.type is not None and size_of(place.type) != size_of(element):
        raise AbsentError(f"{query.start.root} is no {query.element} in this kernel")

    def walk(memory: Snapshot) -> Iterator[tuple[int | None, int]]:
        numbers = processors(program, memory, vcpus=vcpus)
        if len(numbers) > query.most:
            raise _too_many(query)
        common = None
        if not start.per_cpu:
            pointer = destination(memory, start.address, place)
            common = 0 if pointer is None else memory.word(pointer)
            if common == 0:
                return
        for number in numbers:
            memory.budget.step()
            if common is not None:
                yield number, _instance(program, memory, common, number)
                continue
            address = destination(memory, _instance(program, memory, start.address, number), place)
            if address is not None:
                yield number, address

    return walk


def _instance(program: KernelProgram, memory: Snapshot, address: int, processor: int) -> int:
    distance = memory.word(program.address("__per_cpu_offset") + 8 * processor)
    return (address + distance) % (1 << 64)


def _list(
    program: KernelProgram, query: WalkQuery, _place: Place, kind: drgn.Type, element: drgn.Type
) -> Visit:
    heads = _heads(kind, ("struct list_head",), query)
    link, following = _link(query, element), program.offset("struct list_head", "next")

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        for head in range(address, address + 16 * heads, 16):
            node = memory.word(head + following)
            while node != head:
                yield None, _container(node, link)
                node = memory.word(node + following)

    return visit


def _hlist(
    program: KernelProgram, query: WalkQuery, _place: Place, kind: drgn.Type, element: drgn.Type
) -> Visit:
    heads = _heads(kind, ("struct hlist_head", "struct hlist_nulls_head"), query)
    link, following = _link(query, element), program.offset("struct hlist_node", "next")

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        for head in range(address, address + 8 * heads, 8):
            node = memory.word(head)
            # A list of the "nulls" kind ends with an odd value (include/linux/list_nulls.h).
            while node and not node & 1:
                yield None, _container(node, link)
                node = memory.word(node + following)

    return visit


def _chain(
    _program: KernelProgram, query: WalkQuery, _place: Place, kind: drgn.Type, element: drgn.Type
) -> Visit:
    _must_point(kind, query)
    link = _relative(query, element)
    if link.type is None or link.type.kind != drgn.TypeKind.POINTER:
        raise AbsentError(f"{query.element} does not point to the next by that member in this kernel")

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        found = memory.word(address)
        while found:
            yield None, found
            found = memory.word(found + link.offset)

    return visit


def _rbtree(
    program: KernelProgram, query: WalkQuery, _place: Place, kind: drgn.Type, element: drgn.Type
) -> Visit:
    root = program.offset("struct rb_root", "rb_node")
    if kind.type_name() == "struct rb_root_cached":
        root += program.offset("struct rb_root_cached", "rb_root")
    elif kind.type_name() != "struct rb_root":
        raise AbsentError(f"{query.start.root} leads to {kind.type_name()} in this kernel, to no tree")
    link = _link(query, element)
    left, right = (program.offset("struct rb_node", name) for name in ("rb_left", "rb_right"))

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        node, above = memory.word(address + root), list[int]()
        on_the_way: set[int] = set()
        while node or above:
            while node:
                # Going down must end although nothing has been yielded yet.
                if node in on_the_way:
                    raise MalformedError(f"the tree at {address:#x} is no tree")
                if len(on_the_way) >= query.most:
                    raise _too_many(query)
                on_the_way.add(node)
                above.append(node)
                node = memory.word(node + left)
            node = above.pop()
            yield None, _container(node, link)
            node = memory.word(node + right)

    return visit


def _xarray(
    program: KernelProgram, query: WalkQuery, _place: Place, kind: drgn.Type, _element: drgn.Type
) -> Visit:
    """struct xarray, or an IDR around one (lib/xarray.c, lib/idr.c)."""
    base = None
    head = program.offset("struct xarray", "xa_head")
    if kind.type_name() == "struct idr":
        head += program.offset("struct idr", "idr_rt")
        base = program.offset("struct idr", "idr_base")
    elif kind.type_name() != "struct xarray":
        raise AbsentError(f"{query.start.root} leads to {kind.type_name()} in this kernel, to no xarray")
    shift, slots = (program.offset("struct xa_node", name) for name in ("shift", "slots"))
    width = program.member("struct xa_node", "slots").size // 8
    bits = width.bit_length() - 1

    def entries(memory: Snapshot, entry: int, index: int, above: int) -> Iterator[tuple[int, int]]:
        memory.budget.step()
        if entry & 3 == 2 and entry > _XA_SIBLINGS_AND_MARKS:
            node = entry - 2
            level = memory.read(node + shift, 1)[0]
            # Each level counts fewer bits than the one above it, so there are few of them.
            if level >= above or level % bits:
                raise MalformedError(f"the node at {node:#x} is no node of an xarray")
            for slot in range(width):
                entry = memory.word(node + slots + 8 * slot)
                if entry:
                    yield from entries(memory, entry, index + (slot << level), level)
        elif entry and entry & 3 == 0:
            yield index, entry

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        first = int.from_bytes(memory.read(address + base, 4), "little") if base is not None else 0
        yield from entries(memory, memory.word(address + head), first, 64)

    return visit


def _array(
    _program: KernelProgram, query: WalkQuery, place: Place, kind: drgn.Type, element: drgn.Type
) -> Visit:
    size = size_of(element)
    behind, count = _elements(query, place, kind, size)

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        first = memory.word(address) if behind else address
        if first:
            for index in range(count):
                yield index, first + size * index

    return visit


def _pointers(
    _program: KernelProgram, query: WalkQuery, place: Place, kind: drgn.Type, _element: drgn.Type
) -> Visit:
    behind, count = _elements(query, place, kind, 8)

    def visit(memory: Snapshot, address: int) -> Iterator[tuple[int | None, int]]:
        first = memory.word(address) if behind else address
        for index in range(count) if first else ():
            memory.budget.step()
            found = memory.word(first + 8 * index)
            if found:
                yield index, found

    return visit


_MAKERS: Final = {
    Structure.LIST: _list,
    Structure.HLIST: _hlist,
    Structure.CHAIN: _chain,
    Structure.RBTREE: _rbtree,
    Structure.XARRAY: _xarray,
    Structure.ARRAY: _array,
    Structure.POINTERS: _pointers,
}


def _elements(query: WalkQuery, _place: Place, kind: drgn.Type, size: int) -> tuple[bool, int]:
    """Return whether the elements lie behind a pointer, and how many there are to visit."""
    if kind.kind == drgn.TypeKind.POINTER:
        return True, query.most  # nobody tells how many: the script's bound does
    if kind.kind != drgn.TypeKind.ARRAY or size_of(kind.type) != size:
        raise AbsentError(
            f"{query.start.root} leads to {kind.type_name()} in this kernel, to no array of {query.element}"
        )
    if kind.length is None:
        return False, query.most
    if kind.length > query.most:
        raise _too_many(query)
    return False, kind.length


def _heads(kind: drgn.Type, names: tuple[str, ...], query: WalkQuery) -> int:
    """Return how many heads stand at the start: one, or as many as its array has."""
    count = 1
    if kind.kind == drgn.TypeKind.ARRAY and kind.length is not None:
        count, kind = kind.length, plain(kind.type)
    if kind.type_name() not in names:
        raise AbsentError(f"{query.start.root} leads to {kind.type_name()} in this kernel, not to {names[0]}")
    if count > _MOST_HEADS:
        raise _too_many(query)
    return count


def _must_point(kind: drgn.Type, query: WalkQuery) -> None:
    if kind.kind != drgn.TypeKind.POINTER:
        raise AbsentError(f"{query.start.root} leads to {kind.type_name()} in this kernel, to no pointer")


def _link(query: WalkQuery, element: drgn.Type) -> int:
    link = _relative(query, element)
    wanted = _LINKS[query.structure]
    names = (wanted, "struct hlist_nulls_node") if query.structure is Structure.HLIST else (wanted,)
    if link.type is None or link.type.type_name() not in names:
        raise AbsentError(f"{query.element} hangs by no {wanted} of that name in this kernel")
    return link.offset


def _relative(query: WalkQuery, element: drgn.Type) -> Place:
    link = follow(Place(type=element), query.link or Path("", ()))
    if link.hops:
        raise AbsentError(f"the link of {query.element} lies behind a pointer in this kernel")
    return link


def _container(node: int, offset: int) -> int:
    # A node at a lower address than its own offset is wild; the read of its members will say so.
    return (node - offset) % (1 << 64)


def needs_processor(path: Path) -> str:
    """Return what to say of a per-CPU variable that is asked for without a processor."""
    return f"{path.root} is a per-CPU variable here: walk per_cpu, or pick one as in {path.root}[0]"


def _too_many(query: WalkQuery) -> UnavailableError:
    return UnavailableError(f"{query.start.root} has more than {query.most} elements")
