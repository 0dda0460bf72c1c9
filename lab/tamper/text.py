"""Code and read-only data of the kernel image, outside of the places that the kernel patches itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import numpy as np

from affiant.kernel.reference.sites import SiteClass
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["TEXT_TECHNIQUES", "hook_function", "redirect_operation"]

# movabs rax, 0x1122334455667788; jmp rax: what most inline hooks write over a function's start.
_HOOK = bytes.fromhex("48b88877665544332211ffe0")
_CALL, _JUMP = 0xE8, 0xE9


@contextmanager
def hook_function(live: LiveGuest, symbol: str = "tcp4_seq_show") -> Iterator[str]:
    """Write a jump over a function, behind its entry, where the kernel may put calls of its own."""
    sites, address = live.guest.text.sites, live.guest.program.address(symbol)
    entry = sites[(sites["address"] >= address) & (sites["address"] < address + 16)]
    offset = max((int(site["address"]) + int(site["length"]) - address for site in entry), default=0)
    while live.guest.program.read(address + offset, 1)[0] == _HOOK[0]:
        offset += 1  # the byte that is named is the first that differs
    with live.changed(address + offset, _HOOK):
        yield f"{symbol}+{offset:#x}"


@contextmanager
def _change_syscall_entry(
    live: LiveGuest, index: int = 59, target: str = "__x64_sys_getpid"
) -> Iterator[str]:
    """Point an entry of the system call table elsewhere; yields the subject to be found."""
    program = live.guest.program
    entry = program.address("sys_call_table") + 8 * index
    with live.changed(entry, program.address(target).to_bytes(8, "little")):
        yield f"sys_call_table[{index}]"


@contextmanager
def redirect_operation(live: LiveGuest, symbol: str = "tcp4_seq_ops", offset: int = 24) -> Iterator[str]:
    """Point a member of a read-only table of operations elsewhere; yields the table's name."""
    program = live.guest.program
    target = program.address("__x64_sys_getpid").to_bytes(8, "little")
    with live.changed(program.address(symbol) + offset, target):
        yield symbol


@contextmanager
def _change_banner(live: LiveGuest) -> Iterator[str]:
    """Let the kernel claim another version; yields the subject to be found."""
    with live.changed(live.guest.program.address("linux_banner") + len("Linux version "), b"9"):
        yield "linux_banner"


@contextmanager
def _redirect_dispatch(live: LiveGuest, symbol: str = "__x64_sys_acct") -> Iterator[str]:
    """Let the switch that dispatches system calls lead to another one: what redirects them since 6.9."""
    program = live.guest.program
    dispatch, target = program.address("x64_sys_call"), program.address(symbol)
    code = program.read(dispatch, 0x8000)
    place = next(
        offset
        for offset in range(len(code) - 5)
        if code[offset] in (_CALL, _JUMP) and _target(code, dispatch, offset) == target
    )
    elsewhere = program.address("__x64_sys_getpid") - (dispatch + place + 5)
    wanted = (elsewhere & 0xFFFF_FFFF).to_bytes(4, "little")
    first = next(index for index in range(4) if wanted[index] != code[place + 1 + index])
    with live.all_changed((dispatch + place + 1, wanted)):
        # Where calls are patch sites the site is named, elsewhere the first byte that differs.
        sites = live.guest.text.sites
        known = np.any((sites["address"] == dispatch + place) & (sites["kind"] == int(SiteClass.CALL)))
        yield f"x64_sys_call+{place if known else place + 1 + first:#x}"


def _target(code: bytes, start: int, offset: int) -> int:
    distance = int.from_bytes(code[offset + 1 : offset + 5], "little", signed=True)
    return start + offset + 5 + distance


@contextmanager
def _redirect_exception(live: LiveGuest) -> Iterator[str]:
    """Let a fault that the kernel expects continue elsewhere: one byte of the exception table."""
    place = live.guest.program.address("__start___ex_table") + 4
    with live.changed(place, bytes([live.guest.program.read(place, 1)[0] ^ 0x10])):
        yield "__start___ex_table+"


@contextmanager
def _hook_vdso(live: LiveGuest) -> Iterator[str]:
    """Write a jump to itself into the vDSO of 32-bit programs, behind its first alternative.

    Guests have no such program; one that ran into it would stand still.
    """
    image = next(image for image in live.guest.vdso if "32" in image.region.name)
    sites = image.content.rule.sites
    place = int(sites.offset[0] + sites.length[0])
    with live.changed(image.region.start + place, b"\xeb\xfe"):
        yield f"{image.region.name}+{place:#x}"


@contextmanager
def _replace_vdso_alternative(live: LiveGuest) -> Iterator[str]:
    """Have getcpu() of the 64-bit vDSO always answer 0: its last alternative, which reads the number."""
    image = next(image for image in live.guest.vdso if "64" in image.region.name)
    sites = image.content.rule.sites
    place = int(sites.offset[-1])
    xor_and_padding = bytes.fromhex("31c06690")
    assert int(sites.length[-1]) == len(xor_and_padding)
    with live.changed(image.region.start + place, xor_and_padding):
        yield f"{image.region.name}+{place:#x}"


_text = partial(Technique, "text")

TEXT_TECHNIQUES: Final = (
    _text(
        "inline_hook",
        "kernel_text_intact",
        "A jump was written over tcp4_seq_show.",
        hook_function,
        recorded=True,
    ),
    _text(
        "changed_entry",
        "syscall_table_intact",
        "The entry of execve was pointed to getpid.",
        _change_syscall_entry,
        recorded=True,
    ),
    _text(
        "redirected_operation",
        "kernel_rodata_intact",
        "tcp4_seq_ops.show was pointed to another function.",
        redirect_operation,
        recorded=True,
    ),
    _text(
        "other_version",
        "kernel_known",
        "One digit of linux_banner was changed.",
        _change_banner,
        recorded=True,
        attack="",
    ),
    _text(
        "redirected_dispatch",
        "kernel_text_intact",
        "The dispatch of acct leads to getpid.",
        _redirect_dispatch,
    ),
    _text(
        "redirected_exception",
        "kernel_rodata_intact",
        "An entry of the exception table was changed.",
        _redirect_exception,
    ),
    _text(
        "vdso_hook",
        "kernel_rodata_intact",
        "A jump was written into the code that the kernel lends to 32-bit programs.",
        _hook_vdso,
        recorded=True,
    ),
    _text(
        "vdso_alternative",
        "kernel_rodata_intact",
        "An alternative of the vDSO was replaced by foreign code.",
        _replace_vdso_alternative,
    ),
)
