"""The owner `kprobe`: pages of slots with copies of probed instructions.

kernel/kprobes.c (`kprobe_insn_slots`, `kprobe_optinsn_slots`), arch/x86/kernel/kprobes/. Slots keep what they
held when their probe is gone, so that every slot, in use or not, is judged by its form: nothing; or one
instruction of the kernel's text and a jump behind it, or INT3; or the template of an optimised probe, the
instructions that its jump replaced, and a jump behind these. A slot in use must be a registered probe's.

Taken on trust: what stands behind INT3 or behind the jump in a slot, left there by an earlier probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.page_content.claim import Claim, Fault, is_filler
from affiant.kernel.page_content.view import View
from affiant.kernel.site_content.probes import Probes
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["KprobePages"]

_PAGE: Final = "struct kprobe_insn_page"
_CACHE: Final = "struct kprobe_insn_cache"
_USED: Final = 2  # enum kprobe_slot_state: SLOT_CLEAN, SLOT_DIRTY, SLOT_USED
_MOST: Final = 1024  # pages: 279,552 probes


class KprobePages:
    """Judges slots."""

    kind = "kprobe"

    def __init__(self, guest: RunningKernel) -> None:
        self._probes = guest.text_content.probes

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each page of slots."""
        program = view.program
        probes = self._probes
        probes.refresh()
        for symbol, optimised in (("kprobe_insn_slots", False), ("kprobe_optinsn_slots", True)):
            cache = program.find(symbol)
            if cache is None or not program.has_type(_CACHE):
                continue
            size = program.copy(_CACHE, cache).integer("insn_size")
            head = cache + program.offset(_CACHE, "pages")
            for page in list_entries(program, head, offset=program.offset(_PAGE, "list"), maximum=_MOST):
                if not 0 < size <= PAGE_SIZE:
                    raise MalformedError(f"slots of {size} bytes")
                yield self._page(view, probes, page, size, symbol, optimised=optimised)

    def _page(
        self, view: View, probes: Probes, page: int, size: int, symbol: str, *, optimised: bool
    ) -> Claim:
        program = view.program
        start = program.copy(_PAGE, page).integer("insns")
        memory = view.read(start, start + PAGE_SIZE)
        count = PAGE_SIZE // size
        states = program.read(page + program.offset(_PAGE, "slot_used"), count)
        faults: list[Fault] = []
        pieces = trusted = 0
        for index in range(count):
            content, place = memory[index * size : (index + 1) * size], start + index * size
            if is_filler(content):
                continue
            pieces += 1
            judge = probes.detour_objection if optimised else probes.slot_objection
            reason, rest = judge(place, content, in_use=states[index] == _USED)
            if reason:
                faults.append(Fault.at(place, symbol, reason, content))
            trusted += not reason and not is_filler(rest)
        if not is_filler(memory[count * size :]):
            faults.append(
                Fault.at(start + count * size, symbol, "lies behind the slots", memory[count * size :])
            )
        trust = "left-overs of earlier probes" if trusted else ""
        return Claim(start, start + PAGE_SIZE, symbol, tuple(faults), pieces, trusted, trust)
