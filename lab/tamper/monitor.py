"""Attacks on the monitor itself: lies about the kernel's layout, excuses that last, walks without an end.

Most are tried together with a hook that must be told all the same, under its right name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from affiant.kernel.modules.loaded import listed_modules
from affiant.model.outcome import Outcome
from lab.live_guest import LiveGuest
from lab.tamper.loaded import loaded
from lab.tamper.modules import MODULE, hide_module, hook_module
from lab.tamper.pages import entries_of, make_code_writable
from lab.tamper.technique import Technique
from lab.tamper.text import hook_function

__all__ = ["MONITOR_TECHNIQUES"]

_SPARE_PAGE = 0x5000  # of the first 64 KiB, which the kernel leaves alone
_UNUSED_NAME = "nls_utf8"  # a module that every package has and no test loads
_BOOTING = (0).to_bytes(4, "little")


@contextmanager
def _forge_vmcoreinfo(live: LiveGuest) -> Iterator[str]:
    """Offer another layout of the kernel where dump tools look for it: in its own note, and anywhere else."""
    program = live.guest.program
    notes = program.word(program.address("vmcoreinfo_data"))
    forged = b"VMCOREINFO\0\0OSRELEASE=6.6.6-forged\nKERNELOFFSET=6600000\nNUMBER(phys_base)=1711276032\n\0"
    with (
        live.changed(notes, forged),
        live.physically_changed(_SPARE_PAGE, forged),
        hook_function(live) as subject,
    ):
        yield subject


@contextmanager
def _forge_symbols(live: LiveGuest) -> Iterator[str]:
    """Move the first of the kernel's own symbols."""
    place = live.guest.program.address("kallsyms_offsets")
    with live.changed(place, b"\x11\x11"), hook_function(live):
        yield "kallsyms_offsets"


@contextmanager
def _forge_types(live: LiveGuest) -> Iterator[str]:
    """Spoil the kernel's own BTF: its magic number, so that no type can be read."""
    with live.changed(live.guest.program.address("__start_BTF"), b"\0\0"), hook_function(live):
        yield "__start_BTF"


@contextmanager
def _claim_to_boot(live: LiveGuest) -> Iterator[str]:
    """Claim that the kernel still boots, and so has reasons to patch its code."""
    with live.changed(live.guest.program.address("system_state"), _BOOTING), hook_function(live) as subject:
        yield subject


@contextmanager
def _claim_to_boot_with_writable_code(live: LiveGuest) -> Iterator[str]:
    """Claim that the kernel still boots, and has not protected its pages yet."""
    state = live.guest.program.address("system_state")
    with live.changed(state, _BOOTING), make_code_writable(live) as subject:
        yield subject


@contextmanager
def _claim_to_go(live: LiveGuest, state: int) -> Iterator[str]:
    """Claim that a module that was hooked is just being loaded, or unloaded."""
    program = live.guest.program
    (module,) = (module for module in listed_modules(program) if module.name == MODULE)
    place = module.address + program.offset("struct module", "state")
    with hook_module(live) as subject, live.changed(place, state.to_bytes(4, "little")):
        yield subject


@contextmanager
def _take_a_name(live: LiveGuest) -> Iterator[str]:
    """Let a module of no package call itself by the name of one that the package has."""
    program = live.guest.program
    with loaded(live, "stranger") as name:
        (module,) = (module for module in listed_modules(program) if module.name == name)
        place = module.address + program.offset("struct module", "name")
        with live.changed(place, _UNUSED_NAME.encode() + b"\0"):
            yield f"module {_UNUSED_NAME}"


@contextmanager
def _vanish(live: LiveGuest) -> Iterator[str]:
    """Take a module of no package off the list, and its back pointer out of the kset."""
    program = live.guest.program
    with loaded(live, "stranger") as name, ExitStack() as stack:
        (module,) = (module for module in listed_modules(program) if module.name == name)
        place = module.address + program.offset("struct module", "mkobj.mod")
        stack.enter_context(live.changed(place, bytes(8)))
        stack.enter_context(hide_module(live, name))
        yield f"{(module.text[0][1] - module.text[0][0] + 4095) // 4096} executable pages at {module.base:#x}"


@contextmanager
def _close_module_list(live: LiveGuest) -> Iterator[str]:
    """Let the list of modules run in a circle."""
    program = live.guest.program
    first = program.word(program.address("modules"))
    with live.changed(first, first.to_bytes(8, "little")):
        yield "in a circle"


@contextmanager
def _close_task_list(live: LiveGuest) -> Iterator[str]:
    """Let the list of tasks run in a circle that leaves all but the first out."""
    program = live.guest.program
    first = program.word(program.address("init_task") + program.offset("struct task_struct", "tasks"))
    with live.changed(first, first.to_bytes(8, "little")):
        yield "in a circle"


@contextmanager
def _map_tables_into_themselves(live: LiveGuest) -> Iterator[str]:
    """Let a top-level table map itself: a walk without a bound goes on for 512 to the power of its levels."""
    space = live.guest.kernel_space
    (top, *_) = entries_of(live, space, live.guest.text.start)
    table = top // 4096 * 4096
    free = next(
        place
        for place in range(table + 8 * 300, table + 4096, 8)
        if not int.from_bytes(live.memory.read(place, 8), "little")
    )
    assert space.levels == 5  # a top-level entry maps 2^48 bytes
    with live.physically_changed(free, (table | 0x63).to_bytes(8, "little")):
        yield f"1 pages at 0xff{free % 4096 // 8 & 0xFF:02x}"


_monitor = partial(Technique, "the monitor")

MONITOR_TECHNIQUES: Final = (
    _monitor(
        "forged_vmcoreinfo", "kernel_text_intact", "A hook, and a forged vmcoreinfo.", _forge_vmcoreinfo
    ),
    _monitor(
        "forged_symbols",
        "kernel_rodata_intact",
        "A symbol was moved in the kernel's own list of them.",
        _forge_symbols,
        suites=("trixie", "sid"),
    ),
    _monitor(
        "forged_types", "kernel_rodata_intact", "The kernel's own list of types was spoilt.", _forge_types
    ),
    _monitor("booting_with_hook", "kernel_text_intact", "A hook, and the excuse of booting.", _claim_to_boot),
    _monitor(
        "booting_with_writable_code",
        "pages_protected",
        "Writable code, and the excuse of booting, which is used up.",
        _claim_to_boot_with_writable_code,
    ),
    _monitor(
        "coming_with_hook",
        "modules_as_packaged",
        "A hooked module, and the excuse of being loaded.",
        partial(_claim_to_go, state=1),
        attack="T1547.006",
    ),
    _monitor(
        "going_with_hook",
        "modules_as_packaged",
        "A hooked module, and the excuse of being unloaded.",
        partial(_claim_to_go, state=2),
        attack="T1547.006",
    ),
    _monitor(
        "borrowed_name",
        "modules_as_packaged",
        "A module of no package bears a packaged module's name.",
        _take_a_name,
        attack="T1036.005",
    ),
    _monitor(
        "vanished_stranger",
        "modules_listed",
        "A module of no package is in no list.",
        _vanish,
        attack="T1547.006",
    ),
    _monitor(
        "circle_of_modules",
        "modules_listed",
        "The list of modules runs in a circle.",
        _close_module_list,
        outcome=Outcome.INCONCLUSIVE,
    ),
    _monitor(
        "circle_of_tasks",
        "page_tables_shared",
        "The list of tasks runs in a circle.",
        _close_task_list,
        outcome=Outcome.INCONCLUSIVE,
    ),
    _monitor(
        "tables_in_themselves",
        "pages_protected",
        "A page table maps itself.",
        _map_tables_into_themselves,
    ),
)
