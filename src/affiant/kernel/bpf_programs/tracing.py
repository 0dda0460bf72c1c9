"""Programs of raw tracepoints, and of perf events: counters, kprobes, uprobes and trace events.

kernel/trace/bpf_trace.c. A raw tracepoint calls a function of the kernel made for it, and passes the program,
or the link since Linux 6.10 (commit d4dfc5700e86). A trace event has an array of programs; kprobes and
uprobes that `perf_event_open` made are reached by their events alone.
"""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.program_lists import program_array
from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.tracing.perf_events import read_perf_events
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError

__all__ = ["survey_perf_events", "survey_trace_events", "survey_tracepoints"]

_RAW_LINK: Final = "struct bpf_raw_tp_link"
_CALL: Final = "struct trace_event_call"
_MOST_EVENTS: Final = 65536


def survey_tracepoints(survey: Survey) -> None:
    """Note each program that a tracepoint enters as a raw one."""
    program, tracepoints = survey.program, survey.kernel.tracepoints
    look = tracepoints.look(survey.memory, unformed=survey.unformed())
    survey.looked = look.tracepoints
    by_link = program.has_type(_RAW_LINK) and program.has(_RAW_LINK, "cookie")
    for callback in look.callbacks:
        if callback.function not in tracepoints.bpf_functions:
            continue
        if by_link:
            link = callback.data + program.offset(_RAW_LINK, "link")
            survey.note_link("raw tracepoint", callback.tracepoint, link)
        else:
            survey.note("raw tracepoint", callback.tracepoint, callback.data)


def survey_perf_events(survey: Survey) -> None:
    """Note the program of each perf event, and those of the trace event that it is for."""
    look = read_perf_events(survey.kernel, survey.memory)
    survey.looked = len(look.events)
    for event in look.events:
        survey.note("perf event", f"of {event.where}", event.program)
        if event.call and survey.program.has(_CALL, "prog_array"):
            _programs_of(survey, event.call, survey.integer(_CALL, event.call, "prog_array"))


def survey_trace_events(survey: Survey) -> None:
    """Note the programs of each trace event on the kernel's list.

    Raises MalformedError if there is none: the kernel image alone has hundreds, and none of them leaves.
    """
    program = survey.program
    head = program.find("ftrace_events")
    if head is None or not program.has(_CALL, "prog_array"):
        return
    survey.looked, used = looked_through(survey.memory, _used_events, head)
    for call, array in used:
        _programs_of(survey, call, array)
    if not survey.looked:
        raise MalformedError("the kernel's list of trace events is empty")


def _used_events(
    program: KernelProgram, memory: Snapshot, head: int
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return how many trace events are on the list, and those that have an array of programs, with it."""
    link, place = program.offset(_CALL, "list"), program.offset(_CALL, "prog_array")
    looked = 0
    used: list[tuple[int, int]] = []
    for call in list_entries(memory, head, offset=link, maximum=_MOST_EVENTS):
        looked += 1
        array = memory.word(call + place)
        if array:
            used.append((call, array))
    return looked, tuple(used)


def _programs_of(survey: Survey, call: int, array: int) -> None:
    for held in program_array(survey, array):
        name = survey.program.describe(call).removesuffix("+0x0").removeprefix("event_")
        survey.note("trace event", name or f"trace event at {call:#x}", held)
