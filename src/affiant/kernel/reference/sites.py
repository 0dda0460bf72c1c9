"""Where a kernel patches its own code, and the tables that say so.

A site names nothing but a place; what may legally stand there is decided by whoever compares live text,
with the raw entry of the table at hand. Finding sites in a kernel is the task of `patch_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.model.errors import MalformedError

__all__ = ["LAYOUTS", "SITE", "PatchTable", "SiteClass", "Sites", "check_executable"]


class SiteClass(IntEnum):
    """Why code may differ from what was linked. Numbers are part of the reference file: never reuse."""

    ALTERNATIVE = 1  # CPU features choose an instruction sequence (apply_alternatives())
    RETPOLINE = 2  # indirect branches through thunks (apply_retpolines())
    RETURN = 3  # jumps to the return thunk (apply_returns())
    CALL = 4  # direct calls that call depth tracking redirects (callthunks_patch_builtin_calls())
    ENDBR = 5  # landing pads that indirect branch tracking seals (apply_seal_endbr())
    PARAVIRT = 6  # calls through pv_ops, until 6.8 (apply_paravirt())
    SMP_LOCK = 7  # lock prefixes (alternatives_smp_module_add())
    JUMP_LABEL = 8  # static keys (jump_label_init())
    STATIC_CALL = 9  # call sites of static calls (__static_call_update())
    STATIC_CALL_TRAMPOLINE = 10  # their trampolines
    FTRACE = 11  # calls at function entry (ftrace_init())
    FTRACE_CALLER = 12  # calls inside ftrace's own entry code (ftrace_update_ftrace_func())
    RUNTIME_SHIFT = 13  # immediate bytes set once at boot (runtime_const_fixup())
    RUNTIME_POINTER = 14  # immediate 8-byte values set once at boot
    CALL_PADDING = 15  # before functions, where call depth tracking counts (patch_dest())


SITE = np.dtype(
    [("address", "<u8"), ("entry", "<u4"), ("table", "<u2"), ("length", "u1"), ("kind", "u1")], align=True
)
"""One site: link address, index of its entry in its table, number of the table, bytes, `SiteClass`."""

LAYOUTS: Mapping[str, np.dtype[np.void]] = {
    "relative": np.dtype([("site", "<i4")]),
    "address": np.dtype([("site", "<u8")]),
    "alternative-12": np.dtype(
        [
            ("site", "<i4"),
            ("replacement", "<i4"),
            ("feature", "<u2"),
            ("length", "u1"),
            ("replacement_length", "u1"),
        ]
    ),
    # Since 6.3 (commit 5d1dd961e743) the feature and flags take 32 bits.
    "alternative-14": np.dtype(
        [
            ("site", "<i4"),
            ("replacement", "<i4"),
            ("feature", "<u2"),
            ("flags", "<u2"),
            ("length", "u1"),
            ("replacement_length", "u1"),
        ]
    ),
    "paravirt-16": np.dtype([("site", "<u8"), ("type", "u1"), ("length", "u1"), ("padding", "u1", 6)]),
    "jump-16": np.dtype([("site", "<i4"), ("target", "<i4"), ("key", "<i8")]),
    "static-call-8": np.dtype([("site", "<i4"), ("key", "<i4")]),
}
"""How the entries of tables are laid out. Signed fields count from their own address."""


@dataclass(frozen=True, slots=True)
class PatchTable:
    """One table as linked: `address` is its load address, `layout` a key of `LAYOUTS`.

    A table of layout `""` has no bytes of its own: its sites come from symbols or from code.
    """

    name: str
    kind: SiteClass
    layout: str
    address: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """All tables, and all sites in ascending order of address (dtype `SITE`)."""

    tables: tuple[PatchTable, ...]
    sites: NDArray[np.void]


def check_executable(sites: NDArray[np.void], kernel: LinkedKernel) -> None:
    """Raise `MalformedError` unless each site lies in stored bytes of an executable section."""
    inside = np.zeros(len(sites), dtype=bool)
    for section in kernel.sections:
        inside |= _within(sites, section) if section.executable else False
    if not np.all(inside):
        first = int(sites["address"][~inside][0])
        raise MalformedError(f"{np.count_nonzero(~inside)} sites are not in code, the first at {first:#x}")


def _within(sites: NDArray[np.void], section: Section) -> NDArray[np.bool_]:
    distances, size = sites["address"] - np.uint64(section.load_address), np.uint64(len(section.data))
    # Each difference by itself: their sum would wrap for a site just below the section.
    inside: NDArray[np.bool_] = (distances < size) & (sites["length"] <= size - np.minimum(distances, size))
    return inside
