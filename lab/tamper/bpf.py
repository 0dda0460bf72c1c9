"""BPF programs and what tracing calls: hidden, foreign, or able to do more than watch.

The programs are loaded by the guest itself (`lab.bpf`) and do nothing. They are hidden from the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from affiant.kernel.bpf_programs.links import listed_links
from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.page_content.bpf_lists import read_bpf_lists
from affiant.kernel.tracing.perf_events import read_perf_events
from affiant.kernel.walks.snapshot import Budget, Snapshot
from lab.bpf import loaded_programs
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["BPF_TECHNIQUES"]

_SECONDS: Final = 10.0
_AUX: Final = "struct bpf_prog_aux"
_SILENT: Final = "module_load"
"""A tracepoint that nothing passes while the guest is looked at."""


@contextmanager
def _loaded(live: LiveGuest, *, writer: bool = False) -> Iterator[None]:
    with loaded_programs(live.lab, live.guest.reference, writer=writer) as answers:
        assert min(result for name, result in answers.items() if not name.endswith("?")) >= 0, answers
        yield


def _program(live: LiveGuest, name: str) -> tuple[int, int]:
    """Return the structure of a loaded program, and of what the kernel keeps beside it."""
    program = live.guest.program
    for address in read_bpf_lists(program).loaded:
        auxiliary = program.copy("struct bpf_prog", address).integer("aux")
        if program.copy(_AUX, auxiliary).text("name") == name:
            return address, auxiliary
    raise AssertionError(f"no program {name} is loaded")


def _slot(live: LiveGuest, idr: str, held: int) -> int:
    """Return where an IDR keeps an entry: its head, or a slot of one of its nodes."""
    program = live.guest.program
    place = program.offset("struct idr", "idr_rt") + program.offset("struct xarray", "xa_head")
    slots = program.member("struct xa_node", "slots")
    pending = [program.address(idr) + place]
    while pending:
        slot = pending.pop()
        entry = program.word(slot)
        if entry == held:
            return slot
        if entry & 3 == 2 and entry > PAGE_SIZE:
            first = entry - 2 + slots.offset
            pending += range(first, first + slots.size, 8)
    raise AssertionError(f"{idr} does not hold {held:#x}")


@contextmanager
def _hide_program(live: LiveGuest, name: str = "lab_xdp") -> Iterator[str]:
    """Take a program that runs for a network device off the list of programs."""
    with _loaded(live):
        address, _ = _program(live, name)
        with live.changed(_slot(live, "prog_idr", address), bytes(8)):
            yield f"BPF program {name} at {address:#x}"


@contextmanager
def _hide_program_and_symbol(live: LiveGuest, name: str = "lab_traced") -> Iterator[str]:
    """Take a program that a trampoline calls off the list of programs, and its symbol off that of symbols."""
    program = live.guest.program
    with _loaded(live):
        address, auxiliary = _program(live, name)
        node = auxiliary + program.offset(_AUX, "ksym") + program.offset("struct bpf_ksym", "lnode")
        following, before = program.word(node), program.word(node + 8)
        with live.all_changed(
            (_slot(live, "prog_idr", address), bytes(8)),
            (before, following.to_bytes(8, "little")),
            (following + 8, before.to_bytes(8, "little")),
        ):
            yield f"BPF program {name} at {address:#x}"


@contextmanager
def _hide_from_all_but_code(live: LiveGuest) -> Iterator[str]:
    """Take a program off the lists of programs, symbols and links, and out of the table of its trampoline.

    Only the code of the trampoline still leads to it.
    """
    program = live.guest.program
    with _hide_program_and_symbol(live):
        survey = _survey(live)
        link = next(
            link for link in listed_links(survey) if survey.integer("struct bpf_link", link, "type") == 2
        )
        held = survey.integer("struct bpf_link", link, "prog")
        code = program.copy("struct bpf_prog", held).integer("bpf_func")
        linked = (link + program.offset("struct bpf_link", "prog"), bytes(8))
        with live.all_changed((_slot(live, "link_idr", link), bytes(8)), linked):
            yield f"BPF program at {code:#x}"


@contextmanager
def _hide_link(live: LiveGuest) -> Iterator[str]:
    """Take the link by which a program runs for a network device off the list of links."""
    with _loaded(live):
        survey = _survey(live)
        address, _ = _program(live, "lab_xdp")
        link = next(
            link
            for link in listed_links(survey)
            if survey.integer("struct bpf_link", link, "prog") == address
        )
        with live.changed(_slot(live, "link_idr", link), bytes(8)):
            yield f"BPF link at {link:#x}"


@contextmanager
def _load_writer(live: LiveGuest) -> Iterator[str]:
    """Load a program that may write to the memory of processes."""
    with _loaded(live, writer=True):
        yield "BPF program lab_writer"


@contextmanager
def _call_data(live: LiveGuest) -> Iterator[str]:
    """Have a tracepoint call memory that holds no code; whoever passes it meanwhile crashes the guest."""
    program = live.guest.program
    tracepoint = program.address(f"__tracepoint_{_SILENT}")
    place = tracepoint + program.offset("struct tracepoint", "funcs")
    log = program.reference.symbols.unique("__log_buf")
    assert log is not None
    array = program.running(log.address) + log.size - PAGE_SIZE
    forged = bytearray(2 * program.size("struct tracepoint_func"))
    assert not any(program.read(array, len(forged))), "the kernel's log reaches its end"
    forged[:8] = program.address("init_task").to_bytes(8, "little")
    assert not program.word(place), f"something is called at {_SILENT} already"
    with live.all_changed((array, bytes(forged)), (place, array.to_bytes(8, "little"))):
        yield f"tracepoint {_SILENT}"


@contextmanager
def _redirect_raw_tracepoints(live: LiveGuest) -> Iterator[str]:
    """Let raw tracepoints of programs be registered with a function of nobody's."""
    program = live.guest.program
    place = program.address(f"__bpf_trace_tp_map_{_SILENT}") + program.offset(
        "struct bpf_raw_event_map", "bpf_func"
    )
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield f"bpf_func of __bpf_trace_tp_map_{_SILENT}"


@contextmanager
def _handle_overflow(live: LiveGuest) -> Iterator[str]:
    """Point the handler of a counter that never overflows to memory that holds no code."""
    program = live.guest.program
    with _loaded(live):
        _, auxiliary = _program(live, "lab_perf")
        held = program.copy(_AUX, auxiliary).integer("prog")
        memory = Snapshot(program, Budget(seconds=_SECONDS))
        event = next(each for each in read_perf_events(live.guest, memory).events if each.program == held)
        place = event.address + program.offset("struct perf_event", "overflow_handler")
        with live.changed(place, program.address("init_task").to_bytes(8, "little")):
            yield f"perf event of {event.where}"


def _survey(live: LiveGuest) -> Survey:
    program = live.guest.program
    return Survey(live.guest, Snapshot(program, Budget(seconds=_SECONDS)), read_bpf_lists(program))


_listed = partial(Technique, "BPF and tracing", rule="bpf_programs_listed")
_called = partial(Technique, "BPF and tracing", rule="trace_callbacks_owned")

BPF_TECHNIQUES: Final = (
    _listed(
        "hidden_program",
        about="A BPF program of a network device was taken off the list of programs.",
        tamper=_hide_program,
        recorded=True,
    ),
    _listed(
        "hidden_traced_program",
        about="A BPF program that a trampoline calls was taken off the lists of programs and of symbols.",
        tamper=_hide_program_and_symbol,
    ),
    _listed(
        "program_known_to_code_alone",
        about="A BPF program was taken off every list; the code of a trampoline still calls it.",
        tamper=_hide_from_all_but_code,
        recorded=True,
    ),
    _listed(
        "hidden_link",
        about="The link of a BPF program was taken off the list of links.",
        tamper=_hide_link,
        recorded=True,
    ),
    Technique(
        "BPF and tracing",
        "writing_program",
        rule="bpf_programs_only_watch",
        about="A BPF program was loaded that may write to the memory of processes.",
        tamper=_load_writer,
        attack="T1565.003",
        recorded=True,
    ),
    _called(
        "foreign_tracepoint_function",
        about="A tracepoint was given a function that is data.",
        tamper=_call_data,
        recorded=True,
    ),
    _called(
        "redirected_raw_tracepoint",
        about="The function that raw tracepoints are registered with was pointed to data.",
        tamper=_redirect_raw_tracepoints,
        recorded=True,
    ),
    _called(
        "foreign_overflow_handler",
        about="The overflow handler of a perf event was pointed to data.",
        tamper=_handle_overflow,
    ),
)
