"""Function tracing: the call at a function's entry, and the calls inside ftrace's own entry code.

arch/x86/kernel/ftrace.c. A site holds a no-operation, or a call of ftrace's entry code, or of a
trampoline of a registered `struct ftrace_ops` whose function belongs to the kernel (`ftrace_hooks`).
Rootkits that use ftrace register an ops of their own: its function lies outside of the image, and the
objection names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import CALL, NOP5, five_bytes, targets
from affiant.kernel.site_content.ftrace_hooks import FtraceHooks
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.rule import ROW_BYTES, Objection, SiteSet, is_tail_of

__all__ = ["FtraceCallers", "FtraceSites"]

_SIZE: Final = 5
_ENTRIES: Final = ("ftrace_caller", "ftrace_regs_caller")
_NOTHING: Final = np.uint64(0)


class FtraceSites:
    """The rule for the entries of functions."""

    kind = SiteClass.FTRACE

    def __init__(self, image: KernelImage, sites: SiteSet, hooks: FtraceHooks) -> None:
        self.sites = sites
        self._image = image
        self._hooks = hooks
        self._linked = image.linked(sites.offset, _SIZE)
        self._as_linked = five_bytes(image.linked(sites.offset, ROW_BYTES))
        self._held = np.zeros(len(sites), dtype=np.uint64)
        self._generated: set[int] = set()
        self._entries = {address for name in _ENTRIES if (address := image.program.find(name)) is not None}

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`."""
        whole = cls.__new__(cls)
        whole.sites, whole._image, whole._hooks = sites, image, parts[0]._hooks
        whole._generated, whole._entries = set(), parts[0]._entries
        share(whole, parts, "_linked", "_as_linked", "_held")
        return whole

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: a no-operation, a call of anything, or what was linked."""
        held_now = five_bytes(found)
        nothing = (held_now == np.uint64(int.from_bytes(NOP5, "little"))) | (
            held_now == self._as_linked[indices]
        )
        calls = found[:, 0] == CALL
        held = np.where(nothing, _NOTHING, targets(self.sites.address[indices], found))
        legal: NDArray[np.bool_] = nothing | calls
        self._held[indices[legal]] = held[legal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`: what was linked calls nothing."""
        return np.asarray(self._held == _NOTHING)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`."""
        return tuple(dict.fromkeys((self._linked[index].tobytes(), NOP5)))

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the rest of a call of the entry code, or of a trampoline."""
        if is_tail_of(tail, self.allowed(index)):
            return True
        end = int(self.sites.address[index]) + _SIZE
        target = end + int.from_bytes(tail, "little", signed=True) & (1 << 64) - 1
        return target in self._entries or not self._image.contains(target)

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields each traced function whose tracer is not the kernel's."""
        self._generated = set()
        traced = self.calling()
        if not len(traced):
            return
        self._hooks.refresh()
        reasons = self._objections_to(np.unique(self._held[traced]).tolist())
        blamed = [target for target, (reason, _) in reasons.items() if reason]
        for index in traced[np.isin(self._held[traced], np.array(blamed, dtype=np.uint64))].tolist():
            reason, culprit = reasons[int(self._held[index])]
            yield Objection(index, reason, passing=culprit == 0, allowed=self.allowed(index), culprit=culprit)

    def calling(self) -> NDArray[np.int64]:
        """Return the sites that call anything."""
        return np.flatnonzero(self._held != _NOTHING)

    def traced(self) -> int:
        """Return how many functions call a tracer."""
        return int(np.count_nonzero(self._held)) - len(self.wrapped())

    def wrapped(self) -> list[tuple[int, int]]:
        """Return the functions that call a trampoline of BPF, each with it, by the last review."""
        if not self._generated:
            return []
        calls = np.flatnonzero(np.isin(self._held, np.array(sorted(self._generated), dtype=np.uint64)))
        return list(zip(self.sites.address[calls].tolist(), self._held[calls].tolist(), strict=True))

    def _objections_to(self, targets: Iterable[int]) -> dict[int, tuple[str, int]]:
        """Return why sites must not call these targets, and who is to blame; "" where they may."""
        reasons = {target: self._objection_to(target) for target in targets}
        odd = {target for target, (reason, _) in reasons.items() if reason and self._is_outside(target)}
        self._generated = set(self._image.outside.generated_among(odd))
        return reasons | dict.fromkeys(self._generated, ("", 0))

    def _objection_to(self, target: int) -> tuple[str, int]:
        if self._is_outside(target):
            return self._hooks.objection_to(target)
        if target not in self._entries:
            return "calls a function that is not ftrace's entry code", target
        strangers = self._hooks.strangers()
        if strangers:
            return "is traced, and a tracer lies outside of the kernel image", strangers[0].function
        return "", 0

    def _is_outside(self, target: int) -> bool:
        return target not in self._entries and not self._image.contains(target)


class FtraceCallers:
    """The rule for the calls inside ftrace_caller and ftrace_regs_caller."""

    kind = SiteClass.FTRACE_CALLER

    def __init__(self, image: KernelImage, sites: SiteSet, hooks: FtraceHooks) -> None:
        self.sites = sites
        self._image = image
        self._hooks = hooks
        self._linked = image.linked(sites.offset, _SIZE)
        self._held = targets(sites.address, self._linked)
        self._default = self._held.copy()

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: a call of anything."""
        legal: NDArray[np.bool_] = found[:, 0] == CALL
        self._held[indices[legal]] = targets(self.sites.address[indices], found)[legal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`: there are few of them, so that each is judged."""
        return np.zeros(len(self.sites), dtype=bool)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`."""
        return (self._linked[index].tobytes(),)

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the rest of a call of a function of the kernel."""
        if is_tail_of(tail, self.allowed(index)):
            return True
        end = int(self.sites.address[index]) + _SIZE
        target = end + int.from_bytes(tail, "little", signed=True) & (1 << 64) - 1
        return self._image.may_be_called(target)

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields the calls of what is no registered tracer of the kernel."""
        changed = np.flatnonzero(self._held != self._default)
        if not len(changed):
            return
        self._hooks.refresh()
        for index in changed.tolist():
            function = int(self._held[index])
            reason = self._hooks.entered_by(function)
            if reason:
                outside = not self._image.may_be_called(function)
                yield Objection(
                    index,
                    reason,
                    passing=not outside,
                    allowed=self.allowed(index),
                    culprit=function if outside else 0,
                )
