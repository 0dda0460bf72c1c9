"""Find the places where a kernel patches its own code: the tables that it brings for the purpose.

Each class of patch site is one rule in `RULES`: where its table is, how an entry is laid out, and which
bytes of code an entry stands for. To teach Affiant another table, add a `SiteClass` and a rule.

A kernel may bring a table that no rule knows. Its sites are then no sites, so that live text differs
there without an excuse; `unknown_sections` tells people why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.linked import LinkedKernel
from affiant.kernel.reference.sites import LAYOUTS, SITE, PatchTable, SiteClass, Sites, check_executable
from affiant.model.errors import MalformedError

__all__ = ["find_sites", "unknown_sections"]

_MAX_ENTRIES = 1 << 21

_Entries = NDArray[np.void]
_Addresses = NDArray[np.uint64]
_Lengths = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Rule:
    """`place`: a pattern of section names, or the two symbols around the table.

    `lengths` returns for each entry how many bytes of code it may change; zero for an entry whose
    code does not look as the table promises. `padded`: entries of zero are padding, and skipped.
    """

    kind: SiteClass
    layouts: tuple[str, ...]
    place: str | tuple[str, str]
    lengths: Callable[[_Entries, NDArray[np.uint8]], _Lengths]
    padded: bool = False


def _fixed(length: int) -> Callable[[_Entries, NDArray[np.uint8]], _Lengths]:
    return lambda entries, code: np.full(len(entries), length, dtype=np.uint8)


def _field(entries: _Entries, code: NDArray[np.uint8]) -> _Lengths:
    lengths: _Lengths = entries["length"].astype(np.uint8)
    return lengths


def _branch(entries: _Entries, code: NDArray[np.uint8]) -> _Lengths:
    """A call or jump (5 bytes), one behind a CS prefix, or a conditional jump (6 bytes)."""
    near = _near(code[:, 0])
    prefixed = (code[:, 0] == 0x2E) & _near(code[:, 1])
    conditional = (code[:, 0] == 0x0F) & (code[:, 1] & 0xF0 == 0x80)
    return np.select([near, prefixed | conditional], [5, 6], 0).astype(np.uint8)


def _near(opcode: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.isin(opcode, (0xE8, 0xE9))


def _jump_label(entries: _Entries, code: NDArray[np.uint8]) -> _Lengths:
    """arch_jump_entry_size(): a short or a near jump, or the no-operation of the same length."""
    short = (code[:, 0] == 0xEB) | ((code[:, 0] == 0x66) & (code[:, 1] == 0x90))
    near = (code[:, 0] == 0xE9) | ((code[:, 0] == 0x0F) & (code[:, 1] == 0x1F))
    return np.select([short, near], [2, 5], 0).astype(np.uint8)


RULES: tuple[_Rule, ...] = (
    _Rule(SiteClass.ALTERNATIVE, ("alternative-14", "alternative-12"), r"\.altinstructions", _field),
    _Rule(SiteClass.RETPOLINE, ("relative",), r"\.retpoline_sites", _branch),
    _Rule(SiteClass.RETURN, ("relative",), r"\.return_sites", _fixed(5)),
    _Rule(SiteClass.CALL, ("relative",), r"\.call_sites", _fixed(5)),
    _Rule(SiteClass.ENDBR, ("relative",), r"\.ibt_endbr_seal", _fixed(4)),
    _Rule(SiteClass.PARAVIRT, ("paravirt-16",), r"\.parainstructions", _field),
    # The section ends at a page, in zeros (arch/x86/kernel/vmlinux.lds.S).
    _Rule(SiteClass.SMP_LOCK, ("relative",), r"\.smp_locks", _fixed(1), padded=True),
    _Rule(SiteClass.JUMP_LABEL, ("jump-16",), ("__start___jump_table", "__stop___jump_table"), _jump_label),
    _Rule(
        SiteClass.STATIC_CALL,
        ("static-call-8",),
        ("__start_static_call_sites", "__stop_static_call_sites"),
        _branch,
    ),
    # Functions that were dropped while linking leave a zero (commit ef378c3b8233, 6.15 and stable kernels).
    _Rule(
        SiteClass.FTRACE,
        ("address",),
        ("__start_mcount_loc", "__stop_mcount_loc"),
        _fixed(5),
        padded=True,
    ),
    _Rule(SiteClass.RUNTIME_SHIFT, ("relative",), r"runtime_shift_.+", _fixed(1)),
    _Rule(SiteClass.RUNTIME_POINTER, ("relative",), r"runtime_ptr_.+", _fixed(8)),
)

# Calls inside ftrace's own entry code: there is no table, the kernel takes their address by name.
_FTRACE_CALLERS = ("ftrace_call", "ftrace_regs_call")
_TRAMPOLINE_PREFIX = "__SCT__"
_PATCHED_CALL = 5
# Call depth tracking (retbleed=stuff) writes an instruction that counts calls before each function that
# is called, directly or by a static call: arch/x86/kernel/callthunks.c, SKL_TMPL_SIZE bytes of the padding.
_PADDING_PREFIX = "__pfx_"
_PADDING = 16
_COUNTER = 9
_NOP = 0x90

# Sections that are known not to list patch sites.
_PLAIN_SECTIONS = re.compile(
    r"\.(text|rodata|pci_fixup|notes|BTF|BTF_ids|data|orc_\w+|vvar|vvar_page|data\.\.percpu|init\.\w+|altinstr_aux|"
    r"altinstr_replacement|x86_cpu_dev\.init|apicdrivers|exit\.\w+|data_nosave|data\.\w+|bss|brk|tracedata|"
    r"iommu_table|x86_intel_mid_dev\.init|bss\.\.decrypted)"
    r"|__(ksymtab|ksymtab_gpl|kflagstab|kcrctab|kcrctab_gpl|ksymtab_strings|init_rodata|param|modver|ex_table"
    r"|bug_table)"
)


def find_sites(kernel: LinkedKernel, symbols: Mapping[str, Sequence[int]]) -> Sites:
    """Return every patch table that a rule knows, and the sites of its entries.

    `symbols` maps a name to the addresses of its symbols. Guaranteed: each site lies in an executable
    section, is 1 to 255 bytes long, and names its table and entry. Entries of zero make no
    site in the tables that are padded with them.

    Raises `MalformedError` when an entry points outside executable sections, or at code that is not
    what its class patches, and when a table's size is no multiple of its entries.
    """
    tables: list[PatchTable] = []
    found: list[NDArray[np.void]] = []
    for rule in RULES:
        for name, address, data in _places(rule, kernel, symbols):
            table, sites = _read(rule, name, address, data, kernel, len(tables))
            tables.append(table)
            found.append(sites)
    calls = [site["address"] for site in found if len(site) and site["kind"][0] == SiteClass.CALL]
    for kind, name, addresses, length in (
        (SiteClass.STATIC_CALL_TRAMPOLINE, _TRAMPOLINE_PREFIX, _trampolines(symbols), _PATCHED_CALL),
        (SiteClass.FTRACE_CALLER, "ftrace_call", _named(symbols, _FTRACE_CALLERS), _PATCHED_CALL),
        (SiteClass.CALL_PADDING, _PADDING_PREFIX, _paddings(kernel, symbols, calls), _COUNTER),
    ):
        entries = np.arange(len(addresses), dtype=np.uint32)
        lengths = np.full(len(addresses), length, dtype=np.uint8)
        found.append(_sites(kind, len(tables), addresses, entries, lengths))
        tables.append(PatchTable(name=name, kind=kind, layout="", address=0, count=len(addresses)))
    sites = np.concatenate(found)
    sites = sites[np.lexsort((sites["entry"], sites["table"], sites["address"]))]
    check_executable(sites, kernel)
    return Sites(tables=tuple(tables), sites=sites)


def unknown_sections(kernel: LinkedKernel) -> tuple[str, ...]:
    """Return the names of sections that are neither known tables nor known to be none."""
    patterns = [rule.place for rule in RULES if isinstance(rule.place, str)]
    return tuple(
        section.name
        for section in kernel.sections
        if not _PLAIN_SECTIONS.fullmatch(section.name)
        and not any(re.fullmatch(pattern, section.name) for pattern in patterns)
    )


def _places(
    rule: _Rule, kernel: LinkedKernel, symbols: Mapping[str, Sequence[int]]
) -> list[tuple[str, int, memoryview]]:
    """Return (name, load address, bytes) of each table of a class."""
    if isinstance(rule.place, str):
        matching = [section for section in kernel.sections if re.fullmatch(rule.place, section.name)]
        return [(section.name, section.load_address, section.data) for section in matching]
    starts, stops = (symbols.get(name, ()) for name in rule.place)
    if not starts and not stops:
        return []
    if len(starts) != 1 or len(stops) != 1:
        raise MalformedError(f"the kernel's table {rule.place[0]} has no single start and end")
    return [(rule.place[0], starts[0], kernel.read(starts[0], stops[0] - starts[0]))]


def _read(
    rule: _Rule, name: str, address: int, data: memoryview, kernel: LinkedKernel, number: int
) -> tuple[PatchTable, NDArray[np.void]]:
    reasons: list[str] = []
    for layout in rule.layouts:
        dtype = LAYOUTS[layout]
        if len(data) % dtype.itemsize or len(data) // dtype.itemsize > _MAX_ENTRIES:
            reasons.append(f"{len(data)} bytes are no table of {layout}")
            continue
        entries = np.frombuffer(data, dtype=dtype)
        try:
            sites = _decode(rule, entries, address, kernel, number)
        except MalformedError as error:
            reasons.append(f"{layout}: {error}")
            continue
        return PatchTable(
            name=name, kind=rule.kind, layout=layout, address=address, count=len(entries)
        ), sites
    raise MalformedError(f"patch table {name} is broken: {'; '.join(reasons)}")


def _decode(
    rule: _Rule, entries: _Entries, address: int, kernel: LinkedKernel, number: int
) -> NDArray[np.void]:
    field = entries["site"]
    index = np.arange(len(entries), dtype=np.uint32)
    if field.dtype.kind == "u":
        addresses = field.astype(np.uint64)
    else:
        places = np.uint64(address) + np.arange(len(entries), dtype=np.uint64) * np.uint64(entries.itemsize)
        addresses = places + field.astype(np.int64).view(np.uint64)
    if rule.padded:
        present = field != 0
        entries, index, addresses = entries[present], index[present], addresses[present]
    lengths = rule.lengths(entries, kernel.gather(addresses, 2))
    if rule.kind is SiteClass.ALTERNATIVE:
        _check_replacements(entries, index, address, kernel)
    if np.any(lengths == 0):
        raise MalformedError(f"{np.count_nonzero(lengths == 0)} entries point at code of another form")
    sites = _sites(rule.kind, number, addresses, index, lengths)
    check_executable(sites, kernel)
    return sites


def _check_replacements(
    entries: _Entries, index: NDArray[np.uint32], address: int, kernel: LinkedKernel
) -> None:
    """A replacement is no longer than its site and lies in the section made for replacements."""
    section = kernel.section(".altinstr_replacement")
    offset = entries.dtype.fields["replacement"][1] if entries.dtype.fields else 0
    places = np.uint64(address + offset) + index.astype(np.uint64) * np.uint64(entries.itemsize)
    targets = places + entries["replacement"].astype(np.int64).view(np.uint64)
    distances, size = targets - np.uint64(section.load_address), np.uint64(section.size)
    fits = (distances <= size) & (entries["replacement_length"] <= size - np.minimum(distances, size))
    if not np.all(fits & (entries["replacement_length"] <= entries["length"])):
        raise MalformedError("replacements lie outside .altinstr_replacement or exceed their site")


def _sites(
    kind: SiteClass,
    table: int,
    addresses: _Addresses,
    entries: NDArray[np.uint32],
    lengths: _Lengths,
) -> NDArray[np.void]:
    sites = np.zeros(len(addresses), dtype=SITE)
    sites["address"], sites["entry"], sites["length"] = addresses, entries, lengths
    sites["kind"], sites["table"] = int(kind), table
    return sites


def _trampolines(symbols: Mapping[str, Sequence[int]]) -> _Addresses:
    named = [a for name, found in symbols.items() if name.startswith(_TRAMPOLINE_PREFIX) for a in found]
    return np.array(sorted(named), dtype=np.uint64)


def _paddings(
    kernel: LinkedKernel, symbols: Mapping[str, Sequence[int]], calls: Sequence[_Addresses]
) -> _Addresses:
    """Return where the padding before each function can take the counter; none without call sites."""
    if not calls:
        return np.empty(0, dtype=np.uint64)
    sites = np.concatenate(calls)
    distances = np.ascontiguousarray(kernel.gather(sites, 5)[:, 1:]).view("<i4")[:, 0]
    called = sites + np.uint64(5) + distances.astype(np.int64).view(np.uint64)
    named = [a + _PADDING for name, at in symbols.items() if name.startswith(_PADDING_PREFIX) for a in at]
    places = np.union1d(called, np.array(named, dtype=np.uint64)) - np.uint64(_COUNTER)
    # Where something else than padding was linked, the kernel does not patch either (is_coretext()).
    empty = np.all(kernel.gather(places, _COUNTER) == _NOP, axis=1)
    return places[empty]


def _named(symbols: Mapping[str, Sequence[int]], names: Sequence[str]) -> _Addresses:
    return np.array(sorted(a for name in names for a in symbols.get(name, ())), dtype=np.uint64)
