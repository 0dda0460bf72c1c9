"""The fact `bpf_programs`, as assertion scripts read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from affiant.kernel.bpf_programs.listed import ListedProgram
from affiant.kernel.bpf_programs.look import BpfLook, Unlisted, read_bpf_programs
from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest

__all__ = ["BPF_PROGRAMS_FIELDS", "BpfProgramsFact", "bpf_programs"]

_MOST_PROGRAMS: Final = 1024
_MOST_USES: Final = 32
_MOST_CALLS: Final = 64

BPF_PROGRAMS_FIELDS = {
    "count": "programs on the kernel's list",
    "links": "links on the kernel's list",
    "programs": "id, name, type, attach_type, attach_to (the function it was loaded for), tag, uid of who "
    "loaded it (null: unreadable), functions, bytes of code, calls (helpers and kernel functions, by its "
    "code; null: not decoded yet), calls_whole (whether all of its code could be read), settling (it could "
    "not, and not for long enough to be sure), calls_left_out, effects, uses (what, where, count), "
    "uses_left_out of each",
    "programs_left_out": "programs beyond the first 1024",
    "effects": "how many programs have each effect",
    "looked": "places that were looked through, by kind",
    "unlisted": "what (program or link), address, name, uses of each that has been used for a while and is "
    "on no list",
    "unlisted_left_out": "entries beyond the first 256",
    "settling": "the same, not seen for long enough to be sure",
    "settling_left_out": "entries beyond the first 256",
    "unread": "kinds of places, or calls, that could not be followed, and why",
}


@dataclass(frozen=True, slots=True)
class BpfProgramsFact:
    """BPF programs, and where each is entered."""

    look: BpfLook

    def to_json(self) -> dict[str, Json]:
        """Return the fact `bpf_programs`."""
        look = self.look
        effects: dict[str, int] = {}
        for program in look.programs:
            for effect in program.effects:
                effects[effect] = effects.get(effect, 0) + 1
        return {
            "count": len(look.programs),
            "links": look.links,
            **bounded("programs", look.programs, _program, most=_MOST_PROGRAMS),
            "effects": dict(sorted(effects.items())),
            "looked": dict(look.looked),
            **bounded("unlisted", look.unlisted, _unlisted),
            **bounded("settling", look.settling, _unlisted),
            "unread": dict(look.unread),
        }


def bpf_programs(guest: Guest, now: float) -> BpfProgramsFact:
    """Read the fact `bpf_programs`."""
    return BpfProgramsFact(read_bpf_programs(guest, guest.bpf_callees, now=now))


def _program(program: ListedProgram) -> dict[str, Json]:
    details, calls = program.details, program.calls
    names = None if calls is None else sorted(calls.names)
    uses = _counted((use.what, use.where) for use in program.uses)
    return {
        "id": details.id,
        "name": details.name,
        "type": details.kind,
        "attach_type": details.attach_type,
        "attach_to": details.attach_to,
        "tag": details.tag,
        "uid": details.uid,
        "functions": len(details.functions),
        "bytes": sum(function.size for function in details.functions),
        "calls": None if names is None else names[:_MOST_CALLS],
        "calls_whole": calls is not None and calls.whole,
        "settling": program.settling,
        "calls_left_out": max(0, len(names or ()) - _MOST_CALLS),
        "effects": list(program.effects),
        "uses": uses[:_MOST_USES],
        "uses_left_out": max(0, len(uses) - _MOST_USES),
    }


def _unlisted(each: Unlisted) -> dict[str, Json]:
    return {
        "what": each.what,
        "address": hex(each.address),
        "name": each.name,
        "uses": _counted(each.uses)[:_MOST_USES],
    }


def _counted(uses: Iterable[tuple[str, str]]) -> list[dict[str, Json]]:
    """Return what leads to a program, by kind: the first place of each, and how many there are."""
    found: dict[str, dict[str, Json]] = {}
    for what, where in uses:
        entry = found.setdefault(what, {"what": what, "where": where, "count": 0})
        entry["count"] += 1
    return list(found.values())
