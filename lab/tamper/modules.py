"""Loaded modules: their code, their data, their names, their place on the list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from affiant.kernel.modules.loaded import Module, listed_modules
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["MODULE", "MODULE_TECHNIQUES", "hide_module", "hook_module", "module_named"]

MODULE: Final = "dummy"
"""The module that is tampered with: one that guests have loaded (`lab.guests.load_modules`)."""

_HOOK = bytes.fromhex("48b88877665544332211ffe0")
_FTRACE_CALL, _CALL_SIZE = 0xE8, 5


def module_named(live: LiveGuest, name: str = MODULE) -> Module:
    """Return a module on the guest's list."""
    return next(module for module in listed_modules(live.guest.program) if module.name == name)


def _text(live: LiveGuest, name: str = MODULE) -> tuple[int, bytes]:
    start, end = module_named(live, name).text[0]
    return start, live.guest.kernel_space.read(start, end - start)


@contextmanager
def hook_module(live: LiveGuest, name: str = MODULE) -> Iterator[str]:
    """Write a jump over code of a module, behind the start of its first function."""
    start, _ = _text(live, name)
    with live.changed(start + 0x18, _HOOK):
        yield f"module {name} at "


@contextmanager
def _hook_module_entry(live: LiveGuest, name: str = MODULE) -> Iterator[str]:
    """Let the traced entry of a module's function call a function of the kernel that is no tracer."""
    start, text = _text(live, name)
    offset = text.index(bytes.fromhex("0f1f440000"))
    target = live.guest.program.address("tcp4_seq_show")
    distance = (target - (start + offset + _CALL_SIZE)) & 0xFFFF_FFFF
    with live.changed(start + offset, bytes([_FTRACE_CALL]) + distance.to_bytes(4, "little")):
        yield f"module {name} at {start + offset:#x}"


@contextmanager
def _redirect_module_return(live: LiveGuest, name: str = MODULE) -> Iterator[str]:
    """Let a return site of a module jump to a function of the kernel that is no return thunk."""
    start, text = _text(live, name)
    offset = text.index(bytes.fromhex("c3cccccccc"))
    target = live.guest.program.address("tcp4_seq_show")
    distance = (target - (start + offset + 5)) & 0xFFFF_FFFF
    with live.changed(start + offset, b"\xe9" + distance.to_bytes(4, "little")):
        yield f"module {name} at {start + offset:#x}"


@contextmanager
def _change_module_table(live: LiveGuest, name: str = MODULE) -> Iterator[str]:
    """Change a byte of a module's read-only data, in its note for Linux."""
    copy = live.guest.program.copy("struct module", module_named(live, name).address)
    if "mem" in copy:
        start = copy.integer(f"mem[{live.guest.program.constant('MOD_RODATA')}].base")
    else:
        start = copy.integer("core_layout.base") + copy.integer("core_layout.text_size")
    place = start + live.guest.kernel_space.read(start, 4096).index(b"Linux\0")
    with live.changed(place, b"M"):
        yield f"module {name} at {place:#x}"


@contextmanager
def _name_module(live: LiveGuest, name: str = MODULE, other: str = "hidden_one") -> Iterator[str]:
    """Give a module the name of one that no package has."""
    address = module_named(live, name).address + live.guest.program.offset("struct module", "name")
    with live.changed(address, other.encode() + b"\0"):
        yield f"module {other}"


@contextmanager
def hide_module(live: LiveGuest, name: str = MODULE) -> Iterator[str]:
    """Take a loaded module off the list, as rootkits do; yields the name."""
    program = live.guest.program
    link = program.offset("struct module", "list")
    head = entry = program.address("modules")
    for _ in range(1024):
        entry = program.word(entry)
        assert entry != head, f"{name} is not loaded"
        if program.copy("struct module", entry - link).text("name") == name:
            break
    following, previous = program.word(entry), program.word(entry + 8)
    with live.paused():
        live.write(previous, following.to_bytes(8, "little"))
        live.write(following + 8, previous.to_bytes(8, "little"))
    try:
        yield f"module {name}"
    finally:
        with live.paused():
            live.write(previous, entry.to_bytes(8, "little"))
            live.write(following + 8, entry.to_bytes(8, "little"))


_module_technique = partial(Technique, "modules", attack="T1547.006")

MODULE_TECHNIQUES: Final = (
    _module_technique(
        "hidden_module",
        "modules_listed",
        f"The module {MODULE} was taken off the list of modules.",
        hide_module,
        recorded=True,
    ),
    _module_technique(
        "hooked_module",
        "modules_as_packaged",
        f"A jump was written over code of the module {MODULE}.",
        hook_module,
        recorded=True,
    ),
    _module_technique(
        "traced_module",
        "modules_as_packaged",
        f"The entry of a function of {MODULE} calls tcp4_seq_show.",
        _hook_module_entry,
        recorded=True,
    ),
    _module_technique(
        "redirected_return",
        "modules_as_packaged",
        f"A return in {MODULE} leads to tcp4_seq_show.",
        _redirect_module_return,
        recorded=True,
    ),
    _module_technique(
        "changed_table",
        "modules_as_packaged",
        f"A byte of the read-only data of {MODULE} was changed.",
        _change_module_table,
        recorded=True,
    ),
    _module_technique(
        "foreign_module",
        "modules_as_packaged",
        f"The module {MODULE} calls itself by a name that no package has.",
        _name_module,
        recorded=True,
    ),
)
