"""Patch sites: what the kernel itself would never write there.

Sites are taken from functions that an idle guest does not run, so that it stays alive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from affiant.kernel.reference.sites import SiteClass
from lab.live_guest import LiveGuest
from lab.tamper.technique import Tamper, Technique

__all__ = ["SITE_TECHNIQUES"]

# Nothing of this runs while a guest with a shell waits for input.
_COLD = re.compile(
    r"(__ia32_sys|__x64_sys|swsusp|hibernat|acpi|pci|kexec|nfs|bpf|perf|tcp|ip6|ext4|crypto)_?\w*"
)
_COLD_TRAMPOLINES = re.compile(r"__SCT__tp_func_(ext4|module|acpi|pci|nfs|hugetlb|iommu|thermal)\w*")
_CALL, _JUMP, _INT3 = 0xE8, 0xE9, 0xCC
_ELSEWHERE = "__x64_sys_getpid"


@dataclass(frozen=True, slots=True)
class _Site:
    """A patch site of a running guest: where it is, how long, where its entry is."""

    address: int
    length: int
    entry: int
    table: int
    symbol: str


def _cold_site(
    live: LiveGuest,
    kind: SiteClass,
    *,
    length: int | None = None,
    cold: re.Pattern[str] = _COLD,
    where: Callable[[LiveGuest, _Site], bool] = lambda live, site: True,
) -> _Site:
    """Return a site in a function that an idle guest does not run; the kernel must have one."""
    guest = live.guest
    sites = guest.text.sites
    for site in sites[sites["kind"] == int(kind)]:
        found = _Site(
            int(site["address"]),
            int(site["length"]),
            int(site["entry"]),
            int(site["table"]),
            guest.program.describe(int(site["address"])),
        )
        if length not in (None, found.length) or not cold.fullmatch(found.symbol.partition("+")[0]):
            continue
        if where(live, found):
            return found
    raise AssertionError(f"this kernel has no {kind.name} site in a function that does not run")


@contextmanager
def _written(live: LiveGuest, site: _Site, content: bytes) -> Iterator[str]:
    with live.all_changed((site.address, content)):
        yield site.symbol


def _branch(live: LiveGuest, site: _Site, opcode: int, target: int | None = None) -> bytes:
    to = live.guest.program.address(_ELSEWHERE) if target is None else target
    return bytes([opcode]) + ((to - site.address - 5) & 0xFFFF_FFFF).to_bytes(4, "little")


def _in_one_page(live: LiveGuest, site: _Site) -> bool:
    return site.address // 4096 == (site.address + site.length - 1) // 4096


def _holds(opcode: int) -> Callable[[LiveGuest, _Site], bool]:
    def check(live: LiveGuest, site: _Site) -> bool:
        return _in_one_page(live, site) and live.guest.program.read(site.address, 1)[0] == opcode

    return check


def _redirected(
    kind: SiteClass, opcode: int, held: int | None = None, cold: re.Pattern[str] = _COLD
) -> Tamper:
    """Let a site (that holds an instruction with the opcode `held`) lead to none of its targets."""

    def redirect(live: LiveGuest) -> AbstractContextManager[str]:
        where = _in_one_page if held is None else _holds(held)
        length = None if kind is SiteClass.PARAVIRT else 5
        site = _cold_site(live, kind, length=length, cold=cold, where=where)
        return _written(live, site, _branch(live, site, opcode))

    return redirect


def _filled(kind: SiteClass, content: bytes) -> Tamper:
    """Put bytes into a site that are none of its forms."""

    def fits(live: LiveGuest, site: _Site) -> bool:
        return _in_one_page(live, site) and site.length >= len(content)

    return lambda live: _written(live, _cold_site(live, kind, where=fits), content)


def _jump_against_key(live: LiveGuest) -> AbstractContextManager[str]:
    """Take a branch that its key does not ask for: the site's own target, so that its form is legal."""
    site = _cold_site(live, SiteClass.JUMP_LABEL, length=5, where=_holds(0x0F))
    table, entries = live.guest.reference.tables[site.table], live.guest.reference.table_entries(site.table)
    place = table.address + site.entry * entries.itemsize + 4
    target = place + int(entries[site.entry]["target"]) + live.guest.location.slide
    return _written(live, site, _branch(live, site, _JUMP, target))


def _other_prefix(live: LiveGuest) -> AbstractContextManager[str]:
    """Take a lock away; or, of a kernel that runs on one processor and has none, put one back."""
    site = _cold_site(live, SiteClass.SMP_LOCK)
    held = live.guest.program.read(site.address, 1)[0]
    return _written(live, site, b"\x3e" if held == 0xF0 else b"\xf0")


def _endless_poke(live: LiveGuest) -> AbstractContextManager[str]:
    """Leave a breakpoint where the kernel puts one for moments while it changes a site."""
    site = _cold_site(live, SiteClass.JUMP_LABEL, length=5, where=_in_one_page)
    return _written(live, site, bytes([_INT3]))


@contextmanager
def _retarget_key(live: LiveGuest) -> Iterator[str]:
    """Let a static call's key hold a function of another type, and leave its code alone."""
    program = live.guest.program
    key = program.address("__SCK__tp_func_module_load")
    with live.changed(key, program.address(_ELSEWHERE).to_bytes(8, "little")):
        yield "__SCT__tp_func_module_load+0x0"


_site = partial(Technique, "patch sites", rule="kernel_text_intact")

SITE_TECHNIQUES: Final = (
    _site(
        "branch_to_elsewhere",
        site="jump_label",
        about="A jump label leads to another function.",
        tamper=_redirected(SiteClass.JUMP_LABEL, _JUMP),
    ),
    _site(
        "branch_against_its_key",
        site="jump_label",
        about="A branch is taken that its key does not ask for.",
        tamper=_jump_against_key,
    ),
    _site(
        "endless_poke",
        site="jump_label",
        about="A breakpoint stays where the kernel puts one for moments.",
        tamper=_endless_poke,
    ),
    _site(
        "foreign_alternative",
        site="alternative",
        about="Code that is none of its forms stands in an alternative.",
        tamper=_filled(SiteClass.ALTERNATIVE, b"\xf4\xf4"),
    ),
    _site(
        "redirected_thunk_call",
        site="retpoline",
        about="An indirect branch's thunk call leads elsewhere.",
        tamper=_redirected(SiteClass.RETPOLINE, _CALL, _CALL),
    ),
    _site(
        "redirected_kernel_return",
        site="return",
        about="A return leads to a function of the kernel.",
        tamper=_redirected(SiteClass.RETURN, _JUMP),
        recorded=True,
    ),
    _site(
        "redirected_static_call",
        site="static_call",
        about="A static call leads elsewhere.",
        tamper=_redirected(SiteClass.STATIC_CALL, _CALL, _CALL),
    ),
    _site(
        "redirected_trampoline",
        site="static_call_trampoline",
        about="A static call's trampoline leads elsewhere.",
        tamper=_redirected(SiteClass.STATIC_CALL_TRAMPOLINE, _JUMP, cold=_COLD_TRAMPOLINES),
    ),
    _site(
        "retargeted_key",
        site="static_call_trampoline",
        about="A static call's key holds a function of another type.",
        tamper=_retarget_key,
    ),
    _site(
        "redirected_tracing",
        site="ftrace",
        about="A traced entry calls a function that is no tracer.",
        tamper=_redirected(SiteClass.FTRACE, _CALL),
    ),
    _site(
        "redirected_paravirt_call",
        site="paravirt",
        about="A call through pv_ops leads elsewhere.",
        tamper=_redirected(SiteClass.PARAVIRT, _CALL, _CALL),
        suites=("bookworm",),
    ),
    _site(
        "redirected_call",
        site="call",
        about="A direct call leads elsewhere.",
        tamper=_redirected(SiteClass.CALL, _CALL, _CALL),
        suites=("trixie", "sid"),
    ),
    _site(
        "code_in_padding",
        site="call_padding",
        about="Code stands in the padding before a function.",
        tamper=_filled(SiteClass.CALL_PADDING, b"\xeb\xfe"),
        suites=("sid",),
    ),
    _site(
        "foreign_landing_pad",
        site="endbr",
        about="Code stands in a landing pad.",
        tamper=_filled(SiteClass.ENDBR, b"\xeb\xfe"),
        suites=("trixie", "sid"),
    ),
    _site(
        "other_lock",
        site="smp_lock",
        about="A lock prefix was taken away, or put where this kernel has none.",
        tamper=_other_prefix,
    ),
    _site(
        "changed_constant",
        site="runtime_pointer",
        about="A constant of the machine was changed.",
        tamper=_filled(SiteClass.RUNTIME_POINTER, b"\x11\x22\x33\x44"),
        suites=("trixie", "sid"),
    ),
)
