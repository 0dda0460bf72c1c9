"""All BPF programs of one moment: those on the kernel's list, and those that are entered and not on it.

`PLACES` is the table of what is looked through; a row there adds one.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from affiant.kernel.bpf_programs.callees import Callees
from affiant.kernel.bpf_programs.cgroups import survey_cgroups
from affiant.kernel.bpf_programs.descriptors import survey_descriptors
from affiant.kernel.bpf_programs.links import listed_links, survey_links
from affiant.kernel.bpf_programs.listed import ListedProgram, lasting_gaps, listed_programs
from affiant.kernel.bpf_programs.networks import survey_networks
from affiant.kernel.bpf_programs.program_arrays import survey_program_arrays
from affiant.kernel.bpf_programs.programs import ProgramDetails, is_of_kernel, program_details
from affiant.kernel.bpf_programs.survey import LinkUse, Survey, TracedKernel, Use
from affiant.kernel.bpf_programs.symbols import survey_symbols
from affiant.kernel.bpf_programs.tracing import survey_perf_events, survey_trace_events, survey_tracepoints
from affiant.kernel.bpf_programs.trampolines import survey_trampoline_code, survey_trampolines
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.modules.loaded import still_unformed
from affiant.kernel.page_content.bpf_lists import (
    BpfLists,
    BpfProgram,
    BpfSymbol,
    program_functions,
    read_bpf_lists,
)
from affiant.kernel.page_content.view import View
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import AffiantError, MalformedError

__all__ = ["PLACES", "BpfLook", "ListedProgram", "Unlisted", "read_bpf_programs"]

PLACES: Final[Mapping[str, Callable[[Survey], None]]] = {
    "symbols": survey_symbols,
    "links": survey_links,
    "trampolines": survey_trampolines,
    "trampolines' code": survey_trampoline_code,
    "tracepoints": survey_tracepoints,
    "trace events": survey_trace_events,
    "perf events": survey_perf_events,
    "control groups": survey_cgroups,
    "network devices": survey_networks,
    "maps of programs": survey_program_arrays,
    "descriptors": survey_descriptors,
}
"""Where programs are entered or named, and what notes them."""

_Result = TypeVar("_Result")
_ATTEMPTS: Final = 3
_SECONDS: Final = 1.0  # of this thread's processor time, for lists and all places
_LONG: Final = 60.0
_MOST_NAMED: Final = 64  # unlisted programs that are looked at for their names and code


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A program or link that something leads to, and that is not on the kernel's list of them.

    `what` is program or link, `address` its structure or, of a program of which nothing else is known, its
    code. `uses` is what leads to it.
    """

    what: str
    address: int
    name: str
    uses: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BpfLook:
    """One look. `looked` counts places by kind; `unread` says of which kinds nothing is known, and why.

    `unlisted` have lasted; `settling` are told as the same and have not lasted yet.
    """

    programs: tuple[ListedProgram, ...]
    links: int
    looked: Mapping[str, int]
    unlisted: tuple[Unlisted, ...]
    settling: tuple[Unlisted, ...]
    unread: Mapping[str, str]


class _Functions:
    """Functions of programs, to be looked up by an address in them."""

    def __init__(self, functions: Iterable[BpfProgram]) -> None:
        self._sorted = sorted(functions, key=lambda each: (each.start, each.size))

    def owner_of(self, code: int) -> int:
        """Return the program whose function an address lies in, 0 for none; of several the longest counts."""
        place = bisect_right(self._sorted, code, key=lambda each: each.start)
        found = self._sorted[place - 1] if place else None
        return found.structure if found and code - found.start < found.size else 0


class _Symbols:
    """Symbols of generated code, to be looked up by an address in them."""

    def __init__(self, symbols: Iterable[BpfSymbol]) -> None:
        self._sorted = sorted(symbols, key=lambda each: each.start)

    def beginning(self, code: int) -> int:
        """Return where the code of a symbol begins that an address lies in, or the address itself."""
        place = bisect_right(self._sorted, code, key=lambda each: each.start)
        found = self._sorted[place - 1] if place else None
        return found.start if found and code < found.end else code


@dataclass(slots=True, eq=False)
class _Known:
    """What the lists name: programs and links by address, and the programs' functions."""

    programs: set[int]
    functions: _Functions
    links: set[int]


def read_bpf_programs(kernel: TracedKernel, callees: Callees, *, now: float) -> BpfLook:
    """Look at the lists, at every place, and at the lists again: what came or went meanwhile is no stranger.

    Raises MemoryFault or MalformedError when the list of programs cannot be followed in three attempts, and
    UnavailableError when there is no time for it.
    """
    view = View(kernel)
    # The forms of all patch sites are made once, which takes longer than a look may: that is not its time.
    with suppress(AffiantError):
        kernel.text_content  # noqa: B018 - whoever needs it is told why there is none
    budget = Budget(seconds=_SECONDS, clock=time.thread_time)
    before = _attempt(partial(_lists, kernel, budget))
    surveys: dict[str, Survey] = {}
    unread: dict[str, str] = {}
    for name, look in PLACES.items():
        lists = iter([before[0]])
        try:
            surveys[name] = _attempt(partial(_surveyed, kernel, budget, lists, look, now))
        except AffiantError as error:
            unread[name] = str(error)
    after = _attempt(partial(_lists, kernel, budget))
    known = _Known(
        {*before[0].loaded, *after[0].loaded},
        _Functions((*before[0].functions, *after[0].functions)),
        {*before[1], *after[1]},
    )
    uses = [use for survey in surveys.values() for use in survey.uses]
    links = [link for survey in surveys.values() for link in survey.links]
    by_program: dict[int, list[Use]] = {}
    for use in uses:
        by_program.setdefault(use.program or known.functions.owner_of(use.code), []).append(use)
    programs = listed_programs(
        kernel,
        view,
        callees,
        after[0],
        again=partial(_attempt, partial(read_bpf_lists, kernel.program, budget.step)),
        uses=by_program,
        unread=unread,
        now=now,
    )
    torn = {key: (name, why) for name, survey in surveys.items() for key, why in survey.gaps.items()}
    for key in lasting_gaps(kernel, "places", {key: why for key, (_, why) in torn.items()}, now):
        unread[torn[key][0]] = torn[key][1]
    strangers = _unlisted(kernel, known, uses, after[0]) | _unlisted_links(kernel, known, links)
    lasting = kernel.patience.settled("bpf programs", set(strangers), now)
    # Who puts another in the place of one before it has lasted is told when there was one in every look.
    if kernel.patience.settled("ever bpf programs", {"any"} if strangers else set(), now, seconds=_LONG):
        lasting = set(strangers)
    return BpfLook(
        programs=programs,
        links=len(after[1]),
        looked={name: survey.looked for name, survey in surveys.items()},
        unlisted=tuple(strangers[key] for key in sorted(lasting)),
        settling=tuple(strangers[key] for key in sorted(strangers.keys() - lasting)),
        unread=unread,
    )


def _lists(kernel: TracedKernel, budget: Budget) -> tuple[BpfLists, dict[int, int]]:
    lists = read_bpf_lists(kernel.program, budget.step)
    return lists, listed_links(Survey(kernel, Snapshot(kernel.program, budget), lists))


def _surveyed(
    kernel: TracedKernel,
    budget: Budget,
    lists: Iterator[BpfLists],
    look: Callable[[Survey], None],
    now: float,
) -> Survey:
    """Look with the first of `lists`; where that did not go well, with the lists as they are by then."""
    read = next(lists, None) or read_bpf_lists(kernel.program, budget.step)
    survey = Survey(kernel, Snapshot(kernel.program, budget), read, partial(still_unformed, kernel, now))
    look(survey)
    return survey


def _attempt(work: Callable[[], _Result]) -> _Result:
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except (MemoryFault, MalformedError):
            # Lists change while they are read; one that does so thrice is not to be read.
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")  # pragma: no cover


def _unlisted(
    kernel: TracedKernel, known: _Known, uses: Iterable[Use], lists: BpfLists
) -> dict[tuple[str, int], Unlisted]:
    """Return programs that are used and not listed; code is one with the program whose function it is."""
    program = kernel.program
    stray = [use for use in uses if use.program and use.program not in known.programs]
    functions: list[BpfProgram] = []
    found: dict[int, list[Use]] = {}
    names: dict[int, str] = {}
    for use in stray:
        if use.program not in found:
            try:
                if is_of_kernel(program, use.program):
                    continue
                if len(names) < _MOST_NAMED:
                    names[use.program] = _name(program_details(program, use.program))
                    functions += program_functions(program, use.program)
            except AffiantError:
                pass  # no program, then: told by its address
        found.setdefault(use.program, []).append(use)
    strangers = _Functions(functions)
    symbols = _Symbols(lists.symbols.values())
    for use in uses:
        if use.code and not known.functions.owner_of(use.code):
            owner = strangers.owner_of(use.code) or symbols.beginning(use.code)
            symbol = lists.symbols.get(owner)
            names.setdefault(owner, symbol.name if symbol else "")
            found.setdefault(owner, []).append(use)
    return {
        ("program", address): Unlisted("program", address, names.get(address, ""), _told(each))
        for address, each in found.items()
    }


def _unlisted_links(
    kernel: TracedKernel, known: _Known, links: Iterable[LinkUse]
) -> dict[tuple[str, int], Unlisted]:
    found: dict[int, list[LinkUse]] = {}
    for link in links:
        if link.link not in known.links and not _without_id(kernel, link):
            found.setdefault(link.link, []).append(link)
    return {
        ("link", address): Unlisted("link", address, each[0].where, _told(each))
        for address, each in found.items()
    }


def _without_id(kernel: TracedKernel, link: LinkUse) -> bool:
    """Tell whether a link has no id by right: that of a program of the kernel's own."""
    try:
        return not link.id and bool(link.program) and is_of_kernel(kernel.program, link.program)
    except AffiantError:
        return False


def _told(uses: Iterable[Use | LinkUse]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((use.what, use.where) for use in uses))


def _name(details: ProgramDetails) -> str:
    return details.name or f"{details.kind} {details.tag}"
