"""The owner `ftrace`: trampolines that function tracing made for one of its users.

arch/x86/kernel/ftrace.c, create_trampoline(). Each must be the kernel's own entry code with the changes
that belong there (`FtraceHooks`), call what its ops names, and be alone on its pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from affiant.kernel.page_content.claim import Claim, Fault, is_filler, pages_around
from affiant.kernel.page_content.view import View
from affiant.kernel.site_content.ftrace_hooks import FtraceOps
from affiant.kernel.walks.lists import list_entries

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["FtracePages"]

_OPS: Final = "struct ftrace_ops"
_MOST: Final = 1024


class FtracePages:
    """Judges trampolines."""

    kind = "ftrace"

    def __init__(self, guest: RunningKernel) -> None:
        self._hooks = guest.text_content.hooks

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each trampoline on the kernel's list."""
        program = view.program
        head = program.find("ftrace_ops_trampoline_list")
        if head is None:
            return
        self._hooks.refresh()
        for address in list_entries(program, head, offset=program.offset(_OPS, "list"), maximum=_MOST):
            copy = program.copy(_OPS, address)
            trampoline = copy.integer("trampoline")
            ops = FtraceOps(address, copy.integer("func"), trampoline)
            owner = program.describe(ops.function) or hex(ops.function)
            # The length is the kernel's own; what the ops say of it is of no interest.
            size, reason = self._hooks.judge(ops)
            start, end = pages_around(trampoline, trampoline + size)
            memory = view.read(start, end)
            inner = slice(trampoline - start, trampoline - start + size)
            faults = []
            if reason:
                faults.append(Fault.at(trampoline, owner, reason, memory[inner]))
            for place, rest in ((start, memory[: inner.start]), (start + inner.stop, memory[inner.stop :])):
                if not is_filler(rest):
                    faults.append(Fault.at(place, owner, "lies beside a trampoline", rest))
            yield Claim(start, end, owner, tuple(faults))
