"""Programs on the kernel's list, each with what its code calls.

Code is changed while it runs: tail calls are patched when a map of programs changes, and what is freed
becomes INT3. So a program whose code is not read to its end is read again, and told as such when it has
lasted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from affiant.kernel.bpf_programs.callees import Callees, Calls
from affiant.kernel.bpf_programs.effects import effects_of
from affiant.kernel.bpf_programs.programs import ProgramDetails, program_details
from affiant.kernel.bpf_programs.survey import Use
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.page_content.bpf_lists import BpfLists, BpfProgram
from affiant.kernel.page_content.view import View
from affiant.kernel.transient.code_changes import is_changing_code
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["CALLS", "ListedProgram", "lasting_gaps", "listed_programs"]

CALLS: Final = "calls"
"""What is told as unread where it is not known what programs call."""

_READINGS: Final = 3
_LONG: Final = 60.0


@dataclass(frozen=True, slots=True)
class ListedProgram:
    """A program on `prog_idr`, with what its code calls (None: not decoded) and where it is entered from.

    `settling`: its code was not read to its end, and not for long enough to be sure that it cannot be.
    """

    details: ProgramDetails
    calls: Calls | None
    effects: tuple[str, ...]
    uses: tuple[Use, ...]
    settling: bool = False


@dataclass(slots=True)
class _Reading:
    """What was read of the programs of one moment; `gaps` tell by address why one was not read whole."""

    details: dict[int, ProgramDetails]
    calls: dict[int, Calls | None]
    gaps: dict[int, str]


def listed_programs(
    kernel: RunningKernel,
    view: View,
    callees: Callees,
    lists: BpfLists,
    *,
    again: Callable[[], BpfLists],
    uses: Mapping[int, Sequence[Use]],
    unread: dict[str, str],
    now: float,
) -> tuple[ListedProgram, ...]:
    """Return the programs on the list, by their numbers; `uses` are by program.

    `again` reads the lists: what is gone from them by then was freed while it was read. Adds to `unread`
    what could not be read for too long.
    """
    callees.begin()
    found = _read(kernel, view, callees, lists, lists.loaded)
    for _ in range(_READINGS - 1):
        if not found.gaps:
            break
        lists = again()
        odd = found.gaps.keys() & set(lists.loaded)
        later = _read(kernel, view, callees, lists, odd)
        for address in found.gaps:
            found.details.pop(address, None)
            found.calls.pop(address, None)
        found = _Reading(found.details | later.details, found.calls | later.calls, later.gaps)
    lasting = lasting_gaps(
        kernel,
        "programs",
        {(address, _number(found, address)): reason for address, reason in found.gaps.items()},
        now,
    )
    for (address, _), reason in lasting.items():
        if found.calls.get(address) is None:
            unread[CALLS] = f"the program at {address:#x}: {reason}"
    if any(calls is None and address not in found.gaps for address, calls in found.calls.items()):
        unread[CALLS] = "more code than one look reads, or decodes anew; the next goes on"
    settling = found.gaps.keys() - {address for address, _ in lasting}
    programs = (
        _program(details, found.calls.get(address), uses.get(address, ()), settling=address in settling)
        for address, details in found.details.items()
    )
    return tuple(sorted(programs, key=lambda each: each.details.id))


def lasting_gaps(
    kernel: RunningKernel, topic: str, gaps: Mapping[tuple[int, object], str], now: float
) -> dict[tuple[int, object], str]:
    """Return those of `gaps`, code that was not read to its end, that have lasted.

    One has if it was there in every look for some seconds; and so have all if there was one or the other in
    every look for a minute, so that nobody evades by taking turns.
    """
    excused = bool(gaps) and is_changing_code(kernel.program)
    old = kernel.patience.settled(f"bpf {topic} half read", set(gaps), now, excused=excused)
    any_gap = {topic} if gaps else set()
    always = kernel.patience.settled(f"bpf {topic} always half read", any_gap, now, seconds=_LONG)
    return {key: reason for key, reason in gaps.items() if always or key in old}


def _read(
    kernel: RunningKernel, view: View, callees: Callees, lists: BpfLists, addresses: Iterable[int]
) -> _Reading:
    functions: dict[int, list[BpfProgram]] = {}
    for function in lists.functions:
        functions.setdefault(function.structure, []).append(function)
    found = _Reading({}, {}, {})
    for address in addresses:
        try:
            details = program_details(kernel.program, address, functions.get(address, ()))
            found.details[address] = details
            calls = found.calls[address] = callees.of(view, lists, details.functions)
        except (MemoryFault, MalformedError) as error:
            found.gaps[address] = str(error)
            continue
        if calls is not None and not calls.whole:
            found.gaps[address] = "its code was not read to its end"
    return found


def _number(found: _Reading, address: int) -> int:
    details = found.details.get(address)
    return details.id if details else 0


def _program(
    details: ProgramDetails, calls: Calls | None, uses: Sequence[Use], *, settling: bool
) -> ListedProgram:
    names = calls.names if calls else ()
    effects = effects_of(names, kind=details.kind, attach_type=details.attach_type)
    return ListedProgram(details, calls, effects, tuple(uses), settling)
