"""What is noted while one kind of places is looked through: programs that are entered from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.walks.snapshot import Snapshot

if TYPE_CHECKING:
    from affiant.kernel.page_content.bpf_lists import BpfLists
    from affiant.kernel.tracing.tracepoints import Tracepoints

__all__ = ["LinkUse", "Survey", "TracedKernel", "Use"]

_LINK: Final = "struct bpf_link"
_LONGEST_NAME: Final = 64


class TracedKernel(RunningKernel, Protocol):
    """A kernel that was found, with its tracepoints as its reference has them."""

    @property
    def tracepoints(self) -> Tracepoints: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Use:
    """A program is entered from, or named by, `where`, which is a `what`.

    `program` is its `struct bpf_prog`; where that is 0, only its code is known, which starts before or at
    `code`.
    """

    what: str
    where: str
    program: int = 0
    code: int = 0


@dataclass(frozen=True, slots=True)
class LinkUse:
    """A `struct bpf_link` by which `what` at `where` holds its program; `id` as it says itself."""

    what: str
    where: str
    link: int
    id: int
    program: int


@dataclass(slots=True, eq=False)
class Survey:
    """One kind of places of one guest, at one moment: guest memory is hostile, and what is noted is its word.

    `looked` counts the places that were there to be looked at, in use or not. `gaps` are pieces of code that
    were not read to their ends, by where they are and their names, with the reasons. `unformed` tells where
    modules are that are not linked yet.
    """

    kernel: TracedKernel
    memory: Snapshot
    lists: BpfLists
    unformed: Callable[[], frozenset[int]] = frozenset
    looked: int = 0
    uses: list[Use] = field(default_factory=list)
    links: list[LinkUse] = field(default_factory=list)
    gaps: dict[tuple[int, object], str] = field(default_factory=dict)

    @property
    def program(self) -> KernelProgram:
        """The kernel's symbols and types; its memory is read through `memory`."""
        return self.kernel.program

    def integer(self, kind: str, address: int, path: str) -> int:
        """Return a member of the structure at an address: a pointer, or a number without sign."""
        member = self.program.member(kind, path)
        return int.from_bytes(self.memory.read(address + member.offset, member.size), "little")

    def text(self, address: int) -> str:
        """Return the name at an address, its first 64 bytes; "" for a null pointer."""
        return self.memory.text(address, _LONGEST_NAME).decode("utf-8", "backslashreplace") if address else ""

    def note(self, what: str, where: str, program: int) -> None:
        """Note that `where` leads to the `struct bpf_prog` at an address; nothing for a null pointer."""
        if program:
            self.memory.budget.step()
            self.uses.append(Use(what, where, program))

    def note_link(self, what: str, where: str, link: int) -> None:
        """Note the program that `where` leads to through the `struct bpf_link` at an address, if any."""
        if not link:
            return
        program = self.integer(_LINK, link, "prog")
        self.note(what, where, program)
        self.links.append(LinkUse(what, where, link, self.integer(_LINK, link, "id"), program))
