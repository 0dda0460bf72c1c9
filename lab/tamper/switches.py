"""Words of data that switch something on or off for the whole kernel, and lists that nobody should be on.

Nothing of the kernel looks at them while a guest with a shell waits for input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from lab.live_guest import LiveGuest
from lab.tamper.modules import MODULE, module_named
from lab.tamper.technique import Technique

__all__ = ["SWITCH_TECHNIQUES"]


@contextmanager
def _set_word(live: LiveGuest, symbol: str, value: int, size: int = 4) -> Iterator[str]:
    """Have a variable of the kernel hold a value."""
    with live.changed(live.guest.program.address(symbol), value.to_bytes(size, "little")):
        yield symbol


@contextmanager
def _load_kernel(live: LiveGuest, symbol: str) -> Iterator[str]:
    """Have a pointer to a loaded kernel point to something."""
    place = live.guest.program.address("init_task").to_bytes(8, "little")
    with live.changed(live.guest.program.address(symbol), place):
        yield symbol


@contextmanager
def _patch_live(live: LiveGuest) -> Iterator[str]:
    """Put a live patch on the list, in the unused end of the kernel's log, that claims to be of a module."""
    program = live.guest.program
    log = program.reference.symbols.unique("__log_buf")
    assert log is not None
    patch = program.running(log.address) + log.size - 4096
    head = program.address("klp_patches")
    first = program.word(head)
    assert first == head, "the kernel has live patches"
    content = bytearray(program.size("struct klp_patch"))
    assert not any(program.read(patch, len(content))), "the kernel's log reaches its end"
    link = program.offset("struct klp_patch", "list")
    for place, value in (
        (program.offset("struct klp_patch", "mod"), module_named(live, MODULE).address),
        (link, head),
        (link + 8, head),
    ):
        content[place : place + 8] = value.to_bytes(8, "little")
    node = (patch + link).to_bytes(8, "little")
    with live.all_changed((patch, bytes(content)), (head, node + node)):
        yield f"live patch at {patch:#x}"


@contextmanager
def _forget_taint(live: LiveGuest, bit: int = 10) -> Iterator[str]:
    """Let a module have tainted the kernel (as of the staging tree) without the kernel knowing of it."""
    module = module_named(live, MODULE)
    place = module.address + live.guest.program.offset("struct module", "taints")
    with live.changed(place, (live.guest.program.word(place) | 1 << bit).to_bytes(8, "little")):
        yield f"module {MODULE}"


_switch = partial(Technique, "switches")

SWITCH_TECHNIQUES: Final = (
    _switch(
        "kernel_for_reboot",
        rule="no_kernel_waits",
        about="kexec_image points to something: a kernel is loaded for the next reboot.",
        tamper=partial(_load_kernel, symbol="kexec_image"),
        attack="T1542",
        recorded=True,
    ),
    _switch(
        "kernel_for_crash",
        rule="no_kernel_waits",
        about="kexec_crash_image points to something: a kernel is loaded for the next crash.",
        tamper=partial(_load_kernel, symbol="kexec_crash_image"),
        attack="T1542",
    ),
    _switch(
        "disarmed_probes",
        rule="tracing_armed",
        about="kprobes_all_disarmed was set.",
        tamper=partial(_set_word, symbol="kprobes_all_disarmed", value=1, size=1),
        attack="T1562.001",
        recorded=True,
    ),
    _switch(
        "disabled_tracing",
        rule="tracing_armed",
        about="ftrace_disabled was set.",
        tamper=partial(_set_word, symbol="ftrace_disabled", value=1),
        attack="T1562.001",
    ),
    _switch(
        "paused_tracing",
        rule="tracing_armed",
        about="ftrace_enabled was cleared.",
        tamper=partial(_set_word, symbol="ftrace_enabled", value=0),
        attack="T1562.001",
    ),
    _switch(
        "forgotten_taint",
        rule="module_taints_kept",
        about=f"The module {MODULE} taints the kernel, whose mask does not tell.",
        tamper=_forget_taint,
        attack="T1070",
        recorded=True,
    ),
    _switch(
        "live_patch",
        rule="kernel_unpatched",
        about=f"A live patch of the module {MODULE} was put on klp_patches.",
        tamper=_patch_live,
        recorded=True,
    ),
)
