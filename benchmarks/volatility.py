"""Listings of a live guest beside Volatility 3 on the same RAM file, and changes that its plugins miss.

Least CPU time of repeats in one process on both sides. Volatility's repeats reuse what its first run found
and read, and so do not see what changes meanwhile; Affiant's read the guest each time. For what is missed,
Volatility starts anew.
The guest runs with four levels of page tables, which are those that Volatility walks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from affiant.kernel.facts.registry import collect
from affiant.kernel.modules.loaded import listed_modules
from affiant.kernel.processes.tasks import read_tasks
from benchmarks.table import Row, least_in_turn
from benchmarks.volatility_process import VERSION, Volatility, running_volatility
from benchmarks.volatility_symbols import volatility_symbols
from lab.crowded import crowded_guest
from lab.guests import GuestPlan
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of
from lab.tamper.modules import hide_module

_RUNS, _PEER_RUNS = 20, 3
_HOOK = bytes.fromhex("48b88877665544332211ffe0")
_GATE = 200  # a vector that nothing uses
_HIDDEN = "nls_ascii"


@cache
def _findings() -> tuple[list[Row], list[tuple[str, str, str]]]:
    with ExitStack() as stack:
        plan = GuestPlan(firmware=False, tpm=False, append="no5lvl")
        guest = stack.enter_context(crowded_guest(plan))
        reference = reference_of(guest.kernel)
        live = stack.enter_context(open_live_guest(guest, reference))
        symbols = volatility_symbols(reference)
        volatility = stack.enter_context(running_volatility(guest.machine.ram, symbols))
        return _compared(live, volatility), list(_missed(live, volatility))


def rows() -> list[Row]:
    """One row for each listing."""
    return _findings()[0]


def notes() -> Iterator[str]:
    """What each side shows of changes to the guest, as a table."""
    yield "| changed | Affiant | Volatility 3 |"
    yield "|---|---|---|"
    for change, ours, theirs in _findings()[1]:
        yield f"| {change} | {ours} | {theirs} |"


def _compared(live: LiveGuest, volatility: Volatility) -> list[Row]:
    program = live.guest.program

    def fact(name: str) -> Callable[[], object]:
        return lambda: collect(live.guest, [name])

    found: list[Row] = []
    for name, what, ours in (
        ("modules", "modules on the list", lambda: listed_modules(program)),
        ("tasks", "tasks on the list", lambda: read_tasks(program)),
        ("system calls", "system call table", fact("syscall_table")),
        ("interrupts", "interrupt gates, with segments and registers", fact("cpu_state")),
        ("hidden code", "code that no module owns", fact("modules")),
    ):
        volatility.list(name)
        theirs = [volatility.list(name) for _ in range(_PEER_RUNS)]
        if not theirs[0].rows and name != "hidden code":
            raise AssertionError(f"Volatility lists no {name}")
        took = least_in_turn(ours, lambda: None, runs=_RUNS)[0]
        found.append(
            Row(what, took, f"Volatility {VERSION}, repeat", min(listing.took_ms for listing in theirs))
        )
    return found


def _missed(live: LiveGuest, volatility: Volatility) -> Iterator[tuple[str, str, str]]:
    program = live.guest.program
    table, idt = program.address("sys_call_table"), program.address("idt_table")
    other = program.address("__x64_sys_getpid").to_bytes(8, "little")
    for change, made, fact, shown, listing in (
        (
            "a hook in `tcp4_seq_show`",
            live.changed(program.address("tcp4_seq_show") + 5, _HOOK),
            "kernel_text",
            "unexplained",
            "hidden code",
        ),
        (
            "system call 62 (kill) redirected",
            live.changed(table + 8 * 62, other),
            "syscall_table",
            "wrong",
            "system calls",
        ),
        (
            "system call 435 (clone3) redirected",
            live.changed(table + 8 * 435, other),
            "syscall_table",
            "wrong",
            "system calls",
        ),
        (
            f"interrupt gate {_GATE} redirected",
            live.changed(idt + 16 * _GATE, b"\x00"),
            "cpu_state",
            "deviations",
            "interrupts",
        ),
        (
            "a module taken off the list",
            hide_module(live, _HIDDEN),
            "modules",
            "hidden",
            "hidden code",
        ),
        (
            "the same, and its `mkobj.mod` cleared",
            _hidden_deeper(live),
            "modules",
            "hidden",
            "hidden code",
        ),
    ):
        before = volatility.list(listing, anew=True).rows
        with made:
            after = volatility.list(listing, anew=True).rows
            told = collect(live.refreshed(), [fact])[fact].to_json()
        ours = _told(told, shown)
        if not ours:
            raise AssertionError(f"{change} was not found")
        if before == after:
            theirs = f"nothing ({listing})"
        else:
            theirs = f"another row ({listing})" if len(before) == len(after) else f"one row more ({listing})"
        yield change, ours, theirs


def _told(fact: dict[str, Any], shown: str) -> str:
    """Return what a fact says of a change, "" for nothing."""
    if shown == "hidden":
        pages = sum(run["pages"] for run in (*fact["unowned"], *fact["settling"]))
        names = sorted({one["name"] for one in (*fact["unlisted"], *fact["settling_modules"])} - {""})
        return (
            f"{pages} executable pages without owner" + (f"; module {names[0]}" if names else "")
            if pages
            else ""
        )
    if not fact[shown]:
        return ""
    told = ", ".join(f"`{one.get('symbol') or one.get('subject')}`" for one in fact[shown])
    return f"{told}, expected and found"


@contextmanager
def _hidden_deeper(live: LiveGuest) -> Iterator[None]:
    program = live.guest.program
    (module,) = (one for one in listed_modules(program) if one.name == _HIDDEN)
    place = module.address + program.offset("struct module", "mkobj.mod")
    with hide_module(live, _HIDDEN), live.changed(place, bytes(8)):
        yield
