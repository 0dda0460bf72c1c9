"""Tracepoints: the functions that each calls, and the pointers that must be as they were linked.

include/linux/tracepoint.h, kernel/tracepoint.c. Where the kernel's tracepoints are and what they were linked
with comes from the reference; `funcs` of each, and the tracepoints of modules, from guest memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.site_content.fixed_integers import FixedIntegers
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["Callback", "ChangedPointer", "TracepointLook", "Tracepoints"]

_TRACEPOINT: Final = "struct tracepoint"
_FUNCTION: Final = "struct tracepoint_func"
_EXTENSION: Final = "struct tracepoint_ext"
_RAW: Final = "struct bpf_raw_event_map"
_MODULE: Final = "struct module"
_POINTER: Final = 8
_RAW_STRIDE: Final = 32  # __BPF_DECLARE_TRACE() aligns each entry so
_POINTERS: Final = (
    *("name", "static_call_key", "static_call_tramp", "iterator", "probestub"),
    *("regfunc", "unregfunc", "ext"),
)
_EXTENSION_POINTERS: Final = ("regfunc", "unregfunc")  # of their own since Linux 6.14
_RAW_POINTERS: Final = ("tp", "bpf_func")
_MOST_MODULES: Final = 8192
_MOST_IN_MODULE: Final = 4096
_MOST_FUNCTIONS: Final = 1024  # of one tracepoint
_LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Callback:
    """A tracepoint calls `function` with `data`."""

    tracepoint: str
    function: int
    data: int


@dataclass(frozen=True, slots=True)
class ChangedPointer:
    """A pointer at `address` that was linked as `expected` and is `found`; `place` says whose it is."""

    place: str
    address: int
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class TracepointLook:
    """All tracepoints of one moment; `compared` counts the pointers beside `funcs` that were compared."""

    tracepoints: int
    compared: int
    callbacks: tuple[Callback, ...]
    changed: tuple[ChangedPointer, ...]


class Tracepoints:
    """The tracepoints of one kernel, as its reference has them; `look` reads the guest.

    `image` tells what the addresses are that they call.
    """

    def __init__(self, guest: RunningKernel) -> None:
        self.image = KernelImage(guest.memory, guest.kernel_space, guest.program, guest.text)

    @cached_property
    def addresses(self) -> NDArray[np.uint64]:
        """Where the kernel image has tracepoints: 32-bit distances in its read-only data name them."""
        program = self.image.program
        start, end = program.find("__start___tracepoints_ptrs"), program.find("__stop___tracepoints_ptrs")
        if start is None or end is None or end <= start or not program.has_type(_TRACEPOINT):
            return np.empty(0, dtype=np.uint64)
        try:
            held = program.reference.read(start - self.image.slide, end - start)
        except KeyError:
            return np.empty(0, dtype=np.uint64)
        distances = np.frombuffer(held, dtype="<i4").astype(np.int64)
        places = np.uint64(start) + np.arange(len(distances), dtype=np.uint64) * np.uint64(4)
        return places + distances.view(np.uint64)

    @cached_property
    def bpf_functions(self) -> frozenset[int]:
        """The functions by which tracepoints enter programs: what raw tracepoints are registered with."""
        places = self._raw_places("bpf_func")
        return frozenset(self.image.linked_words(places).tolist()) - {0}

    def look(self, memory: Snapshot, *, unformed: frozenset[int] = frozenset()) -> TracepointLook:
        """Read every tracepoint. Raises MemoryFault or MalformedError where one cannot be followed.

        Those of modules that are still `unformed`, by their addresses, are passed over: until its relocations
        are applied, what a module has of tracepoints leads anywhere. A kernel without tracepoints has none.
        """
        program = self.image.program
        if not len(self.addresses):
            return TracepointLook(0, 0, (), ())
        funcs = self._funcs.read()
        callbacks = [
            callback
            for index in np.flatnonzero(funcs).tolist()
            for callback in _functions(program, memory, self._name(index), int(funcs[index]))
        ]
        count = len(self.addresses)
        for name, held in looked_through(memory, _in_modules, unformed):
            count += 1
            callbacks += _functions(program, memory, name, held) if held else ()
        expected, pointers_now = self._all_linked
        changed: list[ChangedPointer] = []
        if not np.array_equal(pointers_now.read(), expected):
            changed = [change for pointers in self._linked for change in self._compare(*pointers)]
        return TracepointLook(count, len(expected), tuple(callbacks), tuple(changed))

    @cached_property
    def _funcs(self) -> FixedIntegers:
        places = self.addresses + np.uint64(self.image.program.offset(_TRACEPOINT, "funcs"))
        return FixedIntegers(self.image, places, _POINTER)

    @cached_property
    def _all_linked(self) -> tuple[NDArray[np.uint64], FixedIntegers]:
        """What was linked at all of `_linked`, and what is there now."""
        places, linked = (np.concatenate(columns) for columns in list(zip(*self._linked, strict=True))[1:])
        return linked, FixedIntegers(self.image, places, _POINTER)

    @cached_property
    def _linked(self) -> tuple[tuple[str, NDArray[np.uint64], NDArray[np.uint64]], ...]:
        """Pointers that must be as they were linked: member, places, and what was linked there."""
        return tuple((name, places, self.image.linked_words(places)) for name, places in self._pointers())

    def _pointers(self) -> Iterator[tuple[str, NDArray[np.uint64]]]:
        program = self.image.program
        for member in _POINTERS:
            if program.has(_TRACEPOINT, member):
                yield member, self.addresses + np.uint64(program.offset(_TRACEPOINT, member))
        if program.has(_TRACEPOINT, "ext"):
            ext = self.image.linked_words(self.addresses + np.uint64(program.offset(_TRACEPOINT, "ext")))
            ext = np.unique(ext[ext != 0])
            for member in _EXTENSION_POINTERS:
                yield member, ext + np.uint64(program.offset(_EXTENSION, member))
        for member in _RAW_POINTERS:
            yield member, self._raw_places(member)

    def _compare(
        self, member: str, places: NDArray[np.uint64], expected: NDArray[np.uint64]
    ) -> Iterator[ChangedPointer]:
        found = self.image.words(places)
        for index in np.flatnonzero(expected != found).tolist():
            place = int(places[index])
            owner = self.image.program.describe(place).partition("+")[0]
            yield ChangedPointer(f"{member} of {owner}", place, int(expected[index]), int(found[index]))

    def _raw_places(self, member: str) -> NDArray[np.uint64]:
        program = self.image.program
        start, end = program.find("__start__bpf_raw_tp"), program.find("__stop__bpf_raw_tp")
        if start is None or end is None or not program.has_type(_RAW):
            return np.empty(0, dtype=np.uint64)
        entries = np.arange(start, end, _RAW_STRIDE, dtype=np.uint64)
        return entries + np.uint64(program.offset(_RAW, member))

    def _name(self, index: int) -> str:
        names = self.image.names_at(int(self.addresses[index]))
        return next(iter(names), hex(int(self.addresses[index]))).removeprefix("__tracepoint_")


def _functions(program: KernelProgram, memory: Snapshot, name: str, first: int) -> Iterator[Callback]:
    """Yield what a tracepoint calls: an array that ends with a null function."""
    size = program.size(_FUNCTION)
    places = program.offset(_FUNCTION, "func"), program.offset(_FUNCTION, "data")
    for index in range(_MOST_FUNCTIONS):
        memory.budget.step()
        function, data = (memory.word(first + size * index + place) for place in places)
        if not function:
            return
        yield Callback(name, function, data)
    raise MalformedError(f"the functions of tracepoint {name} have no end")


def _in_modules(
    program: KernelProgram, memory: Snapshot, unformed: frozenset[int]
) -> tuple[tuple[str, int], ...]:
    return tuple(_of_modules(program, memory, unformed))


def _of_modules(
    program: KernelProgram, memory: Snapshot, unformed: frozenset[int]
) -> Iterator[tuple[str, int]]:
    """Yield the name and `funcs` of each tracepoint of a listed module, unless it is still unformed."""
    if not program.has(_MODULE, "tracepoints_ptrs"):
        return
    head, link = program.address("modules"), program.offset(_MODULE, "list")
    name, funcs = program.offset(_TRACEPOINT, "name"), program.offset(_TRACEPOINT, "funcs")
    count = program.member(_MODULE, "num_tracepoints")
    for module in list_entries(memory, head, offset=link, maximum=_MOST_MODULES):
        memory.budget.step()
        if module in unformed:
            continue
        number = int.from_bytes(memory.read(module + count.offset, count.size), "little")
        if number > _MOST_IN_MODULE:
            raise MalformedError(f"the module at {module:#x} has {number} tracepoints")
        table = memory.word(module + program.offset(_MODULE, "tracepoints_ptrs"))
        for place in range(table, table + 4 * number, 4):
            distance = int.from_bytes(memory.read(place, 4), "little", signed=True)
            tracepoint = place + distance
            try:
                told = memory.text(memory.word(tracepoint + name), _LONGEST_NAME)
            except MemoryFault:
                told = b"?"
            yield told.decode("utf-8", "backslashreplace"), memory.word(tracepoint + funcs)
