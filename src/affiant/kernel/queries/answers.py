"""What the kernel answers to queries: never more than asked, never a part that looks like the whole."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.kernel.facts.fact import Fact, Unavailable
from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.queries.owners import Owners
from affiant.kernel.walks.elements import base_address, make_walk, needs_processor
from affiant.kernel.walks.places import AbsentError, Place, follow, named_type, start_of
from affiant.kernel.walks.readings import Json, Reader, make_reader
from affiant.kernel.walks.snapshot import Budget, NoTimeError, Snapshot
from affiant.model.errors import AffiantError, MalformedError
from affiant.model.query import Query, Reading, ValueQuery, WalkQuery

__all__ = ["Absent", "Elements", "Value", "answer_queries"]

_ATTEMPTS: Final = 3
_ROUNDS: Final = 2
_SECONDS: Final = 1.0
_AT_ONCE: Final = 256  # elements; the pages of so many are kept, also where each has some of its own


@dataclass(frozen=True, slots=True)
class Value:
    """The answer to a `ValueQuery`; None where the path came to a null pointer."""

    value: Json

    def to_json(self) -> dict[str, Any]:
        """Return `{"value": value}`."""
        return {"value": self.value}


@dataclass(frozen=True, slots=True)
class Elements:
    """The answer to a `WalkQuery`: every element there was, in the kernel's order."""

    elements: tuple[Mapping[str, Json], ...]

    def to_json(self) -> dict[str, Any]:
        """Return `{"elements": [...]}`: the `address` of each, its `index` if it has one, and its values."""
        return {"elements": [dict(element) for element in self.elements]}


@dataclass(frozen=True, slots=True)
class Absent:
    """This kernel has no such thing, by its reference; `reason` is one sentence."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return exactly `{"absent": reason}`."""
        return {"absent": self.reason}


def answer_queries(
    guest: Guest,
    queries: Mapping[str, Query],
    *,
    seconds: float = _SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Fact]:
    """Return the answer to each query: `Value`, `Elements`, `Absent` or `Unavailable`.

    What it guarantees, whatever guest memory holds:

    - it raises nothing, and is done about `seconds` after it began to read (each query has an equal share
      of what is left, so that one cannot use up the others' time; what nobody used goes to those that
      need more);
    - `Absent` is decided by the reference alone;
    - a walk that was not whole (a wild pointer, a cycle, an element too many) is `Unavailable`, after
      three attempts where another may do better;
    - an answer is at most 4 MiB, and texts in it are as long as the query allows.

    Queries that differ in their names alone are answered once.
    """
    distinct = {query: replace(query, name="") for query in queries.values()}
    pending = list(dict.fromkeys(distinct.values()))
    if not pending:
        return {}
    # Knowing the image's parts and types may take a while the first time, and no guest can make it longer.
    owners = Owners(guest)
    prepared = {query: _prepared(guest, owners, query) for query in pending}
    answers: dict[Query, Fact] = {}
    end = clock() + seconds
    for _ in range(_ROUNDS):
        late: list[Query] = []
        for done, query in enumerate(pending):
            work = prepared[query]
            if not callable(work):
                answers[query] = work
                continue
            share = max(0.0, end - clock()) / (len(pending) - done)
            try:
                answers[query] = _answer(guest, work, Budget(seconds=share, clock=clock))
            except NoTimeError as error:
                answers[query] = Unavailable(str(error))
                late.append(query)
        pending = late
    return {key: answers[distinct[query]] for key, query in queries.items()}


_Work = Callable[[Snapshot], Fact]


def _prepared(guest: Guest, owners: Owners, query: Query) -> _Work | Absent | Unavailable:
    """Return what reads the answer, or the answer where the reference alone decides it."""
    try:
        return _value(guest, owners, query) if isinstance(query, ValueQuery) else _walk(guest, owners, query)
    except AbsentError as error:
        return Absent(str(error))
    except AffiantError as error:
        return Unavailable(_told(error))


def _answer(guest: Guest, work: _Work, budget: Budget) -> Fact:
    """Return the answer; raises `NoTimeError` if it took longer than it may."""
    failure = ""
    for _ in range(_ATTEMPTS):
        budget.again()
        try:
            return work(Snapshot(guest.program, budget))
        except (MemoryFault, MalformedError) as error:
            failure = str(error)
        except NoTimeError:
            raise
        except AffiantError as error:
            return Unavailable(_told(error))
    return Unavailable(failure)


def _value(guest: Guest, owners: Owners, query: ValueQuery) -> _Work:
    start = start_of(guest.program, query.reading.path)
    if start.per_cpu and start.processor is None:
        raise AbsentError(needs_processor(query.reading.path))
    read = make_reader(start.place, query.reading, owner=owners.tell)

    def work(memory: Snapshot) -> Fact:
        base = base_address(guest.program, memory, start, vcpus=len(guest.cpus))
        return Value(read(memory, base))

    return work


def _walk(guest: Guest, owners: Owners, query: WalkQuery) -> _Work:
    element = named_type(guest.program, query.element)
    walk = make_walk(guest.program, query, element, vcpus=len(guest.cpus))
    readers = [(name, _field(Place(type=element), reading, owners)) for name, reading in query.fields]

    def work(memory: Snapshot) -> Fact:
        elements: list[dict[str, Json]] = []
        found = walk(memory)
        while together := list(itertools.islice(found, _AT_ONCE)):
            elements += _read_together(memory, together, readers)
            memory.forget()
        return Elements(tuple(elements))

    return work


def _read_together(
    memory: Snapshot, found: Sequence[tuple[int | None, int]], readers: Sequence[tuple[str, Reader]]
) -> list[dict[str, Json]]:
    """Return elements with their values, each value read of all elements before the next one of any.

    A running kernel makes things before it links them and, where it frees them by RCU, lets them stand for a
    while after it took them off. So what an element points to is read after the link to the element, and
    soon: never from a page that was copied before the element was there.
    """
    elements: list[dict[str, Json]] = []
    for index, address in found:
        element: dict[str, Json] = {"address": hex(address)}
        if index is not None:
            element["index"] = index
        elements.append(element)
    memory.budget.answer(sum(map(_weight, elements)))
    for name, read in readers:
        values: list[Json] = [read(memory, address) for _, address in found]
        memory.budget.answer(sum(len(name) + 6 + _weight_of(value) for value in values))
        for element, value in zip(elements, values, strict=True):
            element[name] = value
    return elements


def _field(element: Place, reading: Reading, owners: Owners) -> Reader:
    try:
        return make_reader(follow(element, reading.path), reading, owner=owners.tell)
    except AbsentError:
        if not reading.optional:
            raise
        return lambda _memory, _address: None


def _weight(told: Mapping[str, Json]) -> int:
    """Return about how many bytes of JSON an element is."""
    return 2 + sum(len(name) + _weight_of(value) + 6 for name, value in told.items())


def _weight_of(value: Json) -> int:
    if isinstance(value, str):
        return len(value)
    return _weight(value) if isinstance(value, dict) else 40


def _told(error: AffiantError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)
