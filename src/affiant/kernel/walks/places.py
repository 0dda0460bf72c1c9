"""Where a path leads, by the reference's types alone: nothing here reads guest memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import drgn

from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import UnavailableError
from affiant.model.query import Path

__all__ = ["AbsentError", "Place", "Start", "follow", "named_type", "plain", "size_of", "start_of"]

_STRUCTURES: Final = (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION, drgn.TypeKind.CLASS)
_DEEPEST_TYPEDEF: Final = 64


class AbsentError(UnavailableError):
    """This kernel has no such symbol, type or member: the question means nothing here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies, relative to an address: `hops`, then `offset` bytes on.

    Each hop adds its number of bytes and goes on at the pointer that stands there. `type` is what is
    found in the end, without typedefs (None: the reference does not tell). A bit field has its lowest
    bit at `shift` of the byte at `offset`, and `width` bits; everything else has a width of 0.
    """

    hops: tuple[int, ...] = ()
    offset: int = 0
    type: drgn.Type | None = None
    shift: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """A symbol's running address; `per_cpu` if each processor has an instance, at its own distance.

    `place` is what the path leads to from there; `processor` the one that the path picks, or None.
    """

    address: int
    per_cpu: bool
    processor: int | None
    place: Place


def start_of(program: KernelProgram, path: Path) -> Start:
    """Return where a path from a symbol starts and leads.

    Raises `AbsentError` if this kernel lacks a part of it, or frees the symbol's memory after boot,
    and `UnavailableError` if nobody tells the symbol's type and the path needs it.
    """
    found = program.reference.symbols.unique(path.root)
    if found is None:
        raise AbsentError(f"this kernel has no single symbol {path.root}")
    per_cpu = _between(program, found.address, "__per_cpu_start", "__per_cpu_end")
    if not per_cpu and _between(program, found.address, "__init_begin", "__init_end"):
        raise AbsentError(f"this kernel frees {path.root} when it has booted")
    steps, processor = path.steps, None
    if per_cpu and steps and isinstance(steps[0], int):
        processor, steps = steps[0], steps[1:]
    kind = _variable_type(program, path)
    if kind is None and steps:
        raise UnavailableError(
            f"nobody tells the type of {path.root}", hint="state it in the query: 'type': 'struct ...'"
        )
    place = follow(Place(type=kind), replace(path, steps=steps))
    return Start(program.running(found.address), per_cpu, processor, place)


def follow(place: Place, path: Path) -> Place:
    """Return where the steps of a path lead from a place; raises `AbsentError`, naming the step."""
    done = path.root
    with _absent(f"{done or 'an element'}"):
        for step in path.steps:
            place = _indexed(place, step, done) if isinstance(step, int) else _member(place, step, done)
            done = f"{done}[{step}]" if isinstance(step, int) else f"{done}.{step}".lstrip(".")
    return place


def named_type(program: KernelProgram, name: str) -> drgn.Type:
    """Return the reference's type of that name, without typedefs; raises `AbsentError`."""
    with _absent(f"this kernel has no type {name}"):
        return plain(program.drgn.type(name))


def plain(kind: drgn.Type) -> drgn.Type:
    """Return what stands behind typedefs and qualifiers."""
    for _ in range(_DEEPEST_TYPEDEF):
        if kind.kind != drgn.TypeKind.TYPEDEF:
            return kind.unqualified()
        kind = kind.type
    raise AbsentError(f"the type {kind.name} leads nowhere")


def size_of(kind: drgn.Type) -> int:
    """Return the size of a type in bytes; raises `AbsentError` for one that has none here."""
    with _absent(f"this kernel does not tell the size of {kind.type_name()}"):
        size: int = drgn.sizeof(kind)
        return size


def _variable_type(program: KernelProgram, path: Path) -> drgn.Type | None:
    """Return the type that the script states, else the one that the reference or the program knows."""
    if path.type:
        return named_type(program, path.type)
    try:
        return plain(program.drgn.variable(path.root).type_)
    except LookupError:
        return None


def _between(program: KernelProgram, address: int, first: str, last: str) -> bool:
    # Link addresses: before Linux 6.15 (commit 9d7de2aa8b41) per-CPU variables were linked at zero.
    begin, end = (program.reference.symbols.unique(name) for name in (first, last))
    return begin is not None and end is not None and begin.address <= address < end.address


def _member(place: Place, name: str, done: str) -> Place:
    where = done or "an element"
    kind = _told(place, where)
    if kind.kind == drgn.TypeKind.POINTER:
        place = Place((*place.hops, place.offset), 0, plain(kind.type))
        kind = _told(place, where)
    if kind.kind not in _STRUCTURES:
        raise AbsentError(f"{where} is of type {kind.type_name()} in this kernel, which has no members")
    if kind.members is None:
        raise AbsentError(f"this kernel does not tell what {kind.type_name()} holds")
    try:
        member = kind.member(name)
    except LookupError:
        raise AbsentError(f"{kind.type_name()} has no member {name} in this kernel") from None
    width = member.bit_field_size or 0
    return Place(
        place.hops,
        place.offset + member.bit_offset // 8,
        plain(member.type),
        member.bit_offset % 8 if width else 0,
        width,
    )


def _indexed(place: Place, index: int, done: str) -> Place:
    where = done or "an element"
    kind = _told(place, where)
    if kind.kind == drgn.TypeKind.ARRAY:
        if kind.length is not None and index >= kind.length:
            raise AbsentError(f"{where} has {kind.length} elements in this kernel, none at {index}")
        hops, offset = place.hops, place.offset
    elif kind.kind == drgn.TypeKind.POINTER:
        hops, offset = (*place.hops, place.offset), 0
    else:
        raise AbsentError(f"{where} is of type {kind.type_name()} in this kernel, which has no elements")
    return Place(hops, offset + index * size_of(kind.type), plain(kind.type))


def _told(place: Place, where: str) -> drgn.Type:
    if place.type is None or place.width:
        raise AbsentError(f"{where} has no members or elements")
    return place.type


@contextmanager
def _absent(what: str) -> Iterator[None]:
    """Turn what drgn says of types into our own word for it."""
    try:
        yield
    except (LookupError, SyntaxError, TypeError, ValueError, OverflowError) as error:
        raise AbsentError(what if str(error) in what else f"{what}: {error}") from error
