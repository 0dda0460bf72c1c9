"""One measurement of a live guest, beside SHA-256 of the same bytes of its memory and beside its goals.

Least CPU time of many runs, ours and what it is compared with in turn. "Steady" is a look at a kernel
that was looked at before; "anew" is one after everything that was found legal has been forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.paging import AddressSpace
from benchmarks.guest import shared_guest
from benchmarks.table import Row, least_in_turn
from lab.crowded import crowded_guest
from lab.guests import GuestPlan
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of

_RUNS, _RUNS_ANEW = 30, 12
_NEWER = ("trixie", "sid")
_TEXT_ANEW, _MODULES_ANEW = "kernel text, each patch site judged anew", "60 modules, judged anew"
_CODE_AND_PAGES = (
    *("kernel_text", "kernel_rodata", "modules", "module_code", "page_rights", "cpu_state"),
    "executable_pages",
)


def rows() -> list[Row]:
    """Measure each part of a look, all of them, and all of them anew; of newer kernels what has grown."""
    found = _rows_of_parts()
    for suite in _NEWER:
        plan = GuestPlan(suite=suite, firmware=False, tpm=False)
        with crowded_guest(plan) as guest, open_live_guest(guest, reference_of(guest.kernel)) as live:
            release = ".".join(live.guest.reference.release.split(".")[:2])
            text, modules = _text_of(live), _modules_of(live)
            found.append(_beside(f"{release}: {_TEXT_ANEW}", _anew(live, "kernel_text"), text, _RUNS_ANEW))
            found.append(
                _beside(f"{release}: {_MODULES_ANEW}", _anew(live, "module_code"), modules, _RUNS_ANEW)
            )
    return found


def _rows_of_parts() -> list[Row]:
    live = shared_guest()
    guest, text, modules = live.guest, _text_of(live), _modules_of(live)
    _look(guest, *_CODE_AND_PAGES)

    def anew(*names: str) -> Callable[[], None]:
        return _anew(live, *names)

    def steady(*names: str) -> Callable[[], None]:
        return lambda: _look(guest, *names)

    def goal(what: str, ours: Callable[[], None], most_ms: float, runs: int = _RUNS) -> Row:
        return Row(what, least_in_turn(ours, lambda: None, runs=runs)[0], f"goal {most_ms:.0f} ms", most_ms)

    return [
        _beside(_TEXT_ANEW, anew("kernel_text"), text, _RUNS_ANEW),
        _beside("kernel text, steady", steady("kernel_text"), text),
        Row("kernel text, steady", *_against_memory(steady("kernel_text"), text)),
        _beside(_MODULES_ANEW, anew("module_code"), modules, _RUNS_ANEW),
        _beside("60 modules, steady", steady("module_code"), modules),
        goal("page tables of the kernel half, walked", lambda: _walk(guest), 10),
        goal("their rights, and the tables of 150 tasks", steady("page_rights"), 10),
        goal("executable pages, each with its owner", steady("modules"), 30),
        goal("their content, judged by their owners", steady("executable_pages"), 30),
        goal("text, read-only data, modules, pages, processors: anew", anew(*_CODE_AND_PAGES), 200, 6),
        goal("the same, steady", steady(*_CODE_AND_PAGES), 15),
    ]


def _anew(live: LiveGuest, *names: str) -> Callable[[], None]:
    def run() -> None:
        live.guest.forget_verified()
        _look(live.guest, *names)

    return run


def _beside(what: str, ours: Callable[[], None], data: bytes | memoryview, runs: int = _RUNS) -> Row:
    found = least_in_turn(ours, lambda: hashlib.sha256(data).digest(), runs=runs)
    return Row(what, found[0], f"SHA-256 of its {len(data) / 1e6:.1f} MB", found[1])


def _look(guest: Guest, *names: str) -> None:
    if "page_rights" in names:  # as a monitor does: lists of who has which tables, before anything else
        guest = guest.with_tables(guest.tables_in_order())
    facts = collect(guest, names)
    if missing := [name for name, fact in facts.items() if "unavailable" in fact.to_json()]:
        raise AssertionError(f"could not be read: {missing}")


def _walk(guest: Guest) -> None:
    # A space of its own remembers no walk.
    space = AddressSpace(guest.memory, guest.location.root, guest.location.levels)
    if not len(space.leaves()):
        raise AssertionError("the kernel half maps nothing")


def _text_of(live: LiveGuest) -> memoryview:
    text = live.guest.text
    return live.memory.view(live.guest.location.physical(text.start), text.end - text.start)


def _modules_of(live: LiveGuest) -> bytes:
    """As many bytes of memory as are compared of modules; which ones makes no difference to SHA-256."""
    (fact,) = collect(live.guest, ["module_code"]).values()
    return bytes(_text_of(live)[: int(fact.to_json()["compared_bytes"])])


def _against_memory(ours: Callable[[], None], text: memoryview) -> tuple[float, str, float]:
    live = np.frombuffer(text, dtype=np.uint8)
    copy = live.copy()
    size = len(copy) // 8 * 8
    words = live[:size].view(np.uint64), copy[:size].view(np.uint64)
    found = least_in_turn(ours, lambda: np.array_equal(*words), runs=_RUNS)
    return found[0], "the bare comparison of its bytes", found[1]
