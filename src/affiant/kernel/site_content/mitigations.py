"""Sites that mitigations of CPU flaws patch at boot: retpolines, returns, call counting, landing pads.

arch/x86/kernel/alternative.c (apply_retpolines(), apply_returns(), apply_seal_endbr()) and callthunks.c.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import CALL, JUMP, branches, targets
from affiant.kernel.site_content.fixed_forms import FixedForms, FormTable
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.rule import SiteSet

__all__ = ["call_padding", "calls", "landing_pads", "returns", "smp_locks"]

_RETURN: Final = bytes.fromhex("c3cccccccc")
_LOCK, _DATA_SEGMENT = 0xF0, 0x3E
# gen_endbr_poison(): `osp nopl (%rax)`, since 6.15 `nopl -42(%rax)`.
_SEALS: Final = (bytes.fromhex("660f1f00"), bytes.fromhex("0f1f40d6"))


def returns(image: KernelImage, sites: SiteSet) -> FixedForms:
    """A jump to the return thunk, or to another of the kernel's return thunks, or a plain return.

    Indirect target selection makes it depend on the half of the cache line that a site lies in.
    """
    linked = image.linked(sites.offset, 5)
    thunks = image.named(r"\w+_return_thunk")
    forms = [linked, np.broadcast_to(np.frombuffer(_RETURN, dtype=np.uint8), linked.shape)]
    forms += [
        branches(JUMP, sites.address, np.full(len(sites), address, dtype=np.uint64))
        for address in thunks.values()
    ]
    names = ("the linked jump", "a return", *(f"a jump to {name}" for name in thunks))
    return _fixed(SiteClass.RETURN, sites, names, forms, _half_line(sites.address))


def smp_locks(image: KernelImage, sites: SiteSet) -> FixedForms:
    """A lock prefix, which kernels that know of one CPU only turn into one without effect."""
    linked = image.linked(sites.offset, 1)
    locks = linked[:, 0] == _LOCK
    forms = [linked, np.full_like(linked, _DATA_SEGMENT)]
    # A site may be at another prefix before the lock; the kernel leaves those alone.
    offered = np.stack([np.ones(len(sites), dtype=bool), locks], axis=1)
    group = np.where(locks, 0, -1)
    table = FormTable(("a lock prefix", "no lock prefix"), np.stack(forms, axis=1), offered, group)
    return FixedForms(SiteClass.SMP_LOCK, sites, table)


def landing_pads(image: KernelImage, sites: SiteSet) -> FixedForms:
    """`endbr64`, or the no-operation that seals a function that nobody calls by pointer."""
    linked = image.linked(sites.offset, 4)
    forms = [linked, *(np.broadcast_to(np.frombuffer(seal, dtype=np.uint8), linked.shape) for seal in _SEALS)]
    names = ("endbr64", "the seal", "the newer seal")
    return _fixed(SiteClass.ENDBR, sites, names, forms, np.zeros(len(sites), dtype=np.int64))


def calls(image: KernelImage, sites: SiteSet) -> FixedForms:
    """A direct call, to the function or (call depth tracking) to the counter before it."""
    linked = image.linked(sites.offset, 5)
    called = targets(sites.address, linked)
    counter, padding = _counter(image), _padding_places(image)
    places = called - np.uint64(len(counter))
    counted = np.isin(places, padding) & (linked[:, 0] == CALL) & bool(counter)
    forms = [linked, branches(CALL, sites.address, places)]
    offered = np.stack([np.ones(len(sites), dtype=bool), counted], axis=1)
    group = np.where(counted & ~_uncounted(image, called), 0, -1)
    table = FormTable(("a call", "a counted call"), np.stack(forms, axis=1), offered, group)
    return FixedForms(SiteClass.CALL, sites, table)


def call_padding(image: KernelImage, sites: SiteSet) -> FixedForms:
    """Padding before a function, or the instruction that counts calls."""
    width = int(sites.length.max(initial=1))
    linked = image.linked(sites.offset, width)
    counter = _counter(image)
    if len(counter) != width:
        table = FormTable(
            ("padding",), linked[:, None, :], np.ones((len(sites), 1), dtype=bool), _free(sites)
        )
        return FixedForms(SiteClass.CALL_PADDING, sites, table)
    counting = np.empty_like(linked)
    counting[:] = np.frombuffer(counter, dtype=np.uint8)
    _move_displacement(image, sites.address, counting)
    return _fixed(SiteClass.CALL_PADDING, sites, ("padding", "the counter"), [linked, counting], _free(sites))


def _fixed(
    kind: SiteClass,
    sites: SiteSet,
    names: tuple[str, ...],
    forms: list[NDArray[np.uint8]],
    group: NDArray[np.int64],
) -> FixedForms:
    content = np.stack(forms, axis=1)
    return FixedForms(kind, sites, FormTable(names, content, np.ones(content.shape[:2], dtype=bool), group))


def _half_line(addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (addresses >> np.uint64(5) & np.uint64(1)).astype(np.int64)


def _free(sites: SiteSet) -> NDArray[np.int64]:
    return np.full(len(sites), -1, dtype=np.int64)


def _counter(image: KernelImage) -> bytes:
    """Return the instruction that counts calls, as linked; empty if this kernel has none."""
    symbols = image.reference.symbols
    start, end = symbols.unique("skl_call_thunk_template"), symbols.unique("skl_call_thunk_tail")
    if start is None or end is None or not 0 < end.address - start.address <= 16:
        return b""
    try:
        return bytes(image.reference.read(start.address, end.address - start.address))
    except KeyError:
        return b""


def _move_displacement(image: KernelImage, addresses: NDArray[np.uint64], rows: NDArray[np.uint8]) -> None:
    """Let copies of the counter reach the same per-CPU variable from where they stand.

    It is `sarq $5, %gs:disp32(%rip)`: 65 48 c1 3d, displacement, immediate. Kernels before 6.10
    address the variable absolutely (65 48 c1 3c 25), which does not move.
    """
    if not len(rows) or rows[0, :4].tobytes() != bytes.fromhex("6548c13d"):
        return
    start = image.reference.symbols.unique("skl_call_thunk_template")
    linked = np.uint64(0 if start is None else start.address + image.slide)
    moved = np.ascontiguousarray(rows[:, 4:8]).view("<u4")[:, 0] + (linked - addresses).astype("<u4")
    rows[:, 4:8] = np.ascontiguousarray(moved.astype("<u4")).view(np.uint8).reshape(-1, 4)


def _padding_places(image: KernelImage) -> NDArray[np.uint64]:
    sites = image.region.sites
    return np.asarray(sites["address"][sites["kind"] == int(SiteClass.CALL_PADDING)])


_UNCOUNTED = re.compile(
    "error_entry|xen_error_entry|paranoid_entry|__switch_to_asm|ret_from_fork|ret_from_fork_asm|soft_restart_cpu"
    "|__fentry__|relocate_kernel"
)


def _uncounted(image: KernelImage, called: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Calls that the kernel leaves alone (skip_addr())."""
    exempt = np.array(sorted(image.named(_UNCOUNTED.pattern).values()), dtype=np.uint64)
    return np.isin(called, exempt)
