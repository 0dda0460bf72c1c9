"""Single pieces of BPF code: what each is by its instructions, and whether it may lead where it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from affiant.kernel.page_content.bpf_calls import BpfCalls
from affiant.kernel.page_content.bpf_code import (
    CLASSIC,
    DISPATCHER,
    TRAMPOLINE,
    CodeForm,
    CodeReport,
    read_code,
)
from affiant.kernel.page_content.bpf_findings import BpfFindings
from affiant.kernel.page_content.bpf_lists import BpfLists
from affiant.kernel.page_content.remembered_code import RememberedCode, Room
from affiant.kernel.site_content.image import KernelImage
from affiant.model.errors import UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["BpfImage", "BpfImages", "ReadCode"]

ReadCode = tuple[bytes, CodeReport]
_NEAR_ENTRY: Final = 64  # tail calls enter a program behind the beginning of its prologue
_MOST_DECODED: Final = 1 << 20  # bytes of new code; a second of work


@dataclass(frozen=True, slots=True)
class BpfImage:
    """Code to be read: `size` bytes at `start`; not `exact` if only filler tells where it ends.

    What is not `entered` was code once: where it led may be gone.
    """

    start: int
    size: int
    form: CodeForm
    name: str
    exact: bool = False
    entered: bool = True


class BpfImages:
    """Judges images; what did not change since it was read is not decoded again."""

    def __init__(self, guest: RunningKernel, room: Room) -> None:
        image = KernelImage(guest.memory, guest.kernel_space, guest.program, guest.text)
        self._image = image
        self._calls = BpfCalls(image)
        self._left = _MOST_DECODED
        self.read: RememberedCode[BpfImage, ReadCode] = RememberedCode(room, lambda read: len(read[0]))

    def begin(self) -> None:
        """Begin a look.

        What a look did not come to for too much new code is left to the next one, which finds this done.
        """
        self.read.begin(whole=self._left > 0)
        self._left = _MOST_DECODED

    def judge(
        self,
        lists: BpfLists,
        image: BpfImage,
        code: bytes,
        found: BpfFindings,
        *,
        also: frozenset[int] = frozenset(),
    ) -> None:
        """Judge one image, which may lead to `also` beside what the lists name."""
        found.pieces += 1
        known = self.read.find(image)
        if known is not None and known[0] == code:
            report = known[1]
        else:
            if self._left <= 0:
                raise UnavailableError("more new code of BPF than one look reads; the next goes on")
            self._left -= image.size
            report = read_code(code, image.size, image.start, image.form, exact=image.exact)
        # Memory is as much as the guest says: code that there is no room for is decoded again.
        self.read.note(image, (code, report))
        if report.wrong is not None:
            offset, reason = report.wrong
            found.blame(image.start + offset, f"{image.name}: {reason}", code[offset:])
            return
        for target, offset in report.leaves:
            reason = "" if target in also else self._objection(lists, image, target)
            if (
                reason
                and not image.entered
                and (image.form is DISPATCHER or lists.pack_at(target) is not None)
            ):
                found.trust("code that is not entered any more")
                break
            if reason and lists.is_free(target):
                # A trampoline outlives its programs until nobody can be in it; there is INT3 by now.
                found.trust("calls of programs that are gone")
            elif reason:
                found.blame(image.start + offset, f"{image.name}: {reason}", code[offset:])
        if report.indirect:
            found.trust("indirect branches")

    def _objection(self, lists: BpfLists, image: BpfImage, target: int) -> str:
        """Return why an image must not lead to an address, "" if it may."""
        calls = self._calls
        if image.form is CLASSIC:
            return "" if target in calls.classic else self._elsewhere(target)
        if target in calls.programs or self._listed(lists, target):
            return ""
        if image.form is TRAMPOLINE and (target in calls.originals or target - 5 in calls.originals):
            return ""
        return self._elsewhere(target)

    def _listed(self, lists: BpfLists, target: int) -> bool:
        near = (start for start in range(target, target - _NEAR_ENTRY, -1) if start in lists.symbols)
        symbol = lists.symbols.get(next(near, 0))
        return symbol is not None and symbol.start <= target < symbol.end

    def _elsewhere(self, target: int) -> str:
        name = self._image.program.describe(target)
        return f"leads to {name or hex(target)}, where no such code may"
