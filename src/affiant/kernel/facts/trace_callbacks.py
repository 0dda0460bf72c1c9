"""The fact `trace_callbacks`: functions that tracepoints and perf events call, and whose they are."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.modules.loaded import listed_modules, still_unformed
from affiant.kernel.tracing.perf_events import PerfEvent, PerfLook, read_perf_events
from affiant.kernel.tracing.tracepoints import ChangedPointer, TracepointLook
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import MalformedError

__all__ = ["TRACE_CALLBACKS_FIELDS", "TraceCallbacksFact", "trace_callbacks"]

_ATTEMPTS: Final = 3
_SECONDS: Final = 1.0  # of this thread's processor time
_TOLD_LAST: Final = ("module text", "function")

TRACE_CALLBACKS_FIELDS = {
    "tracepoints": "tracepoints of the kernel image and of listed modules, but for those not linked yet",
    "pointers": "other pointers of tracepoints that were compared with what was linked",
    "contexts": "lists of perf events: of processors, and of tasks",
    "events": "perf events on them",
    "callbacks": "via (tracepoint, perf event), where, function, kind (function: of the kernel image; module "
    "text; inside: kernel text, and no function starts there; none), owner, symbol, count of each function "
    "that is called, the kernel's own last",
    "callbacks_left_out": "entries beyond the first 256",
    "changed": "place, address, expected, found of each pointer that is not as it was linked",
    "changed_left_out": "entries beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class TraceCallbacksFact:
    """What tracepoints and perf events call; `owners` tells of functions outside of the kernel image."""

    tracepoints: TracepointLook
    events: PerfLook
    kinds: dict[int, tuple[str, str, str]]

    def to_json(self) -> dict[str, Json]:
        """Return the fact `trace_callbacks`."""
        called: dict[tuple[str, str, int], int] = {}
        for callback in self.tracepoints.callbacks:
            _count(called, ("tracepoint", callback.tracepoint, callback.function))
        for event in self.events.events:
            if event.handler:
                _count(called, ("perf event", f"of {event.where}", event.handler))
        # What is strange must be among those that are told, however much modules have called.
        entries = sorted(called.items(), key=lambda each: (self._rank(each[0][2]), each[0]))
        return {
            "tracepoints": self.tracepoints.tracepoints,
            "pointers": self.tracepoints.compared,
            "contexts": self.events.contexts,
            "events": len(self.events.events),
            **bounded("callbacks", entries, self._callback),
            **bounded("changed", self.tracepoints.changed, _changed),
        }

    def _rank(self, function: int) -> int:
        kind = self.kinds[function][0]
        return 1 + _TOLD_LAST.index(kind) if kind in _TOLD_LAST else 0

    def _callback(self, counted: tuple[tuple[str, str, int], int]) -> dict[str, Json]:
        (via, where, function), count = counted
        kind, owner, symbol = self.kinds[function]
        return {
            "via": via,
            "where": where,
            "function": hex(function),
            "kind": kind,
            "owner": owner,
            "symbol": symbol,
            "count": count,
        }


def _changed(pointer: ChangedPointer) -> dict[str, Json]:
    return {
        "place": pointer.place,
        "address": hex(pointer.address),
        "expected": hex(pointer.expected),
        "found": hex(pointer.found),
    }


def trace_callbacks(guest: Guest, now: float) -> TraceCallbacksFact:
    """Read the fact `trace_callbacks`; raises MemoryFault or MalformedError if it is not to be had whole."""
    budget = Budget(seconds=_SECONDS, clock=time.thread_time)
    for attempt in range(_ATTEMPTS):
        try:
            memory = Snapshot(guest.program, budget)
            tracepoints = guest.tracepoints.look(memory, unformed=still_unformed(guest, now))
            events = read_perf_events(guest, memory)
            break
        except (MemoryFault, MalformedError):
            # They come and go while they are read.
            if attempt + 1 == _ATTEMPTS:
                raise
    functions = {callback.function for callback in tracepoints.callbacks} | _handlers(events.events)
    return TraceCallbacksFact(tracepoints, events, _kinds(guest, functions))


def _handlers(events: Iterable[PerfEvent]) -> set[int]:
    return {event.handler for event in events if event.handler}


def _kinds(guest: Guest, functions: set[int]) -> dict[int, tuple[str, str, str]]:
    """Return the kind, the owner and the symbol of each function."""
    image = guest.tracepoints.image
    ordered = sorted(functions)
    own = image.functions_at(np.array(ordered, dtype=np.uint64)).tolist()
    outside = [address for address in ordered if not image.contains(address)]
    spans = sorted(
        (start, end, module.name)
        for module in (listed_modules(guest.program) if outside else ())
        for start, end in module.text
    )
    found: dict[int, tuple[str, str, str]] = {}
    for address, is_function in zip(ordered, own, strict=True):
        symbol = guest.program.describe(address)
        place = bisect_right(spans, address, key=lambda span: span[0])
        if is_function:
            found[address] = "function", "", symbol.removesuffix("+0x0")
        elif image.contains(address):
            found[address] = "inside", "", symbol
        elif place and address < spans[place - 1][1]:
            found[address] = "module text", spans[place - 1][2], ""
        else:
            found[address] = "none", "", symbol
    return found


def _count(counts: dict[tuple[str, str, int], int], key: tuple[str, str, int]) -> None:
    counts[key] = counts.get(key, 0) + 1
