"""All executable pages above the kernel image, each with an owner and with content that this owner may have.

`OWNERS` is the table of owners: a class with a `kind`, and `claims`, which yields what it owns and how it
found it. Pages of modules are owned by the module list, and compared with their files elsewhere
(`modules`). A page that nobody claims is a fault of its own, unless it holds nothing but INT3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.modules.loaded import Module, listed_modules
from affiant.kernel.page_content.bpf_pages import BpfPages
from affiant.kernel.page_content.claim import Claim, Fault
from affiant.kernel.page_content.firmware_pages import FirmwarePages
from affiant.kernel.page_content.ftrace_pages import FtracePages
from affiant.kernel.page_content.image_pages import RealModePages, VsyscallPage
from affiant.kernel.page_content.kprobe_pages import KprobePages
from affiant.kernel.page_content.thunk_pages import ThunkPages
from affiant.kernel.page_content.view import View
from affiant.kernel.page_tables.executable_pages import (
    ExecutablePages,
    OwnedRange,
    attribute,
    page_runs,
    read_executable_pages,
)
from affiant.kernel.transient.booting import is_booting
from affiant.kernel.transient.code_changes import is_changing_code
from affiant.kernel.transient.init_freeing import is_freeing_init
from affiant.model.errors import AffiantError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["OWNERS", "OwnerKind", "PageContent", "PageOwners", "read_page_content"]

_ATTEMPTS: Final = 3
_SHOWN: Final = 64
_LONG: Final = 60.0
# Looks of the last 64 in which no package explains some code; docs/detection.md has what healthy guests show.
_OFTEN: Final = 16
_OFTEN_AT_REST: Final = 8
_MOVING: Final = "moving code"
# Kinds that have no page above the kernel image: whether they are known says nothing about pages there.
_ELSEWHERE: Final = frozenset({RealModePages.kind, VsyscallPage.kind, FirmwarePages.kind})


class Owner(Protocol):
    """A kind of owner. Made once for a guest, which it does not keep; it may remember what it judged."""

    kind: str

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield what is owned, judged. Raises AffiantError if the kernel's lists cannot be followed."""
        ...


OWNERS: Final[tuple[Callable[[RunningKernel], Owner], ...]] = (
    BpfPages,
    FtracePages,
    KprobePages,
    lambda _guest: ThunkPages(),
    RealModePages,
    VsyscallPage,
    lambda _guest: FirmwarePages(),
)
"""Who may have executable pages beside the kernel image and modules."""


@dataclass(frozen=True, slots=True)
class OwnerKind:
    """What one kind of owner has: pages claimed, pieces judged in them, pieces trusted in part, and why."""

    pages: int
    pieces: int
    trusted: int
    trust: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PageContent:
    """One look. `pages` are executable pages above the image; `traps` of them hold no code at all.

    `modules` counts pages by the module that owns them. `faults` have lasted; `settling` are told as
    the same and have not lasted yet. `unread` says of which kind of owner nothing is known, and why.
    """

    pages: int
    traps: int
    owners: Mapping[str, OwnerKind]
    modules: Mapping[str, int]
    faults: tuple[Fault, ...]
    settling: tuple[Fault, ...]
    unread: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Sweep:
    """All executable pages with their owners, what each owner has, and the modules that were listed then."""

    owned: ExecutablePages
    spans: tuple[OwnedRange, ...]
    modules: tuple[Module, ...]


class PageOwners:
    """The owners of one guest, with what they remember."""

    def __init__(self, guest: RunningKernel) -> None:
        self._owners = tuple(make(guest) for make in OWNERS)
        self._bpf = next(owner for owner in self._owners if isinstance(owner, BpfPages))

    def vouched(self, guest: RunningKernel, addresses: Set[int]) -> frozenset[int]:
        """Return those addresses where a trampoline or dispatcher of BPF starts, and is one by its content.

        Raises AffiantError if the kernel's list of them cannot be followed, or there is too much of them.
        """
        return self._bpf.vouched(View(guest), addresses)

    def forget(self) -> None:
        """Have what was found legal be judged anew."""
        self._bpf.forget()

    def claims(
        self, guest: RunningKernel, modules: Sequence[Module], *, booting: bool = False
    ) -> tuple[dict[str, list[Claim]], dict[str, str]]:
        """Return the claims of each kind, and why those of other kinds are not known."""
        claims: dict[str, list[Claim]] = {}
        unread: dict[str, str] = {}
        for owner in self._owners:
            for attempt in range(_ATTEMPTS):
                try:
                    view = View(guest, _modules=None if attempt else modules, booting=booting)
                    claims[owner.kind] = list(owner.claims(view))
                    break
                except AffiantError as error:
                    # Lists change while they are read; one that does so thrice is not to be read.
                    if attempt + 1 == _ATTEMPTS:
                        unread[owner.kind] = str(error)
        return claims, unread


def read_page_content(guest: RunningKernel, owners: PageOwners, *, now: float) -> PageContent:
    """Judge every executable page above the kernel image, and the fixed ones outside of the module area.

    Raises what `read_executable_pages` and `listed_modules` raise.
    """
    before = listed_modules(guest.program)
    booting = is_booting(guest.program, guest.patience, now)
    claims, unread = owners.claims(guest, before, booting=booting)
    if any(claim.faults for kind in claims.values() for claim in kind):
        # Code is made, changed and freed in steps: what is wrong twice counts, or if it was read once.
        again, unread = owners.claims(guest, listed_modules(guest.program), booting=booting)
        claims = {
            kind: _still_wrong(claims[kind], now_claims) if kind in claims else now_claims
            for kind, now_claims in again.items()
        }
    sweep = _swept(guest, claims, before)
    owned = sweep.owned
    counts = owned.by_kind()

    lasting, settling = _settled(guest, claims, unread.keys(), now)
    leaving = {
        (kind, fault.address, fault.reason): fault
        for kind, each in claims.items()
        for claim in each
        for fault in claim.leaving
    }
    waiting = {address for kind in claims.values() for claim in kind for address in claim.waiting}
    changing = bool(leaving) and is_changing_code(guest.program)
    excused = {key for key in leaving if changing or key[1] in waiting}
    left = guest.patience.settled(
        "leaving code", set(leaving), now, excused=excused, unseen=lambda key: key[0] in unread
    )
    always = {kind for kind, *_ in leaving.keys() - excused}
    turns = guest.patience.settled(
        "always leaving code", always, now, seconds=_LONG, unseen=lambda kind: kind in unread
    )
    left |= {key for key in leaving.keys() - excused if key[0] in turns}
    lasting |= {leaving[key] for key in left}
    settling |= {fault for key, fault in leaving.items() if key not in left}
    if not unread.keys() - _ELSEWHERE:
        nobodys = owned.unowned()
        freeing = bool(nobodys) and is_freeing_init(guest.program, vcpus=len(guest.cpus))
        old = guest.patience.settled("pages of nobody", nobodys, now, excused=freeing)
        lasting |= set(_unowned(guest, old))
        settling |= set(_unowned(guest, nobodys - old))
        lasting |= set(_moving(guest, owners, sweep, now, booting=booting))
    return PageContent(
        pages=len(owned.addresses),
        traps=counts.get("traps", 0),
        owners={kind: _summary(claims[kind], counts.get(kind, 0)) for kind in claims},
        modules=_module_pages(sweep.spans, owned),
        faults=_ordered(lasting),
        settling=_ordered(settling),
        unread=unread,
    )


def _settled(
    guest: RunningKernel, claims: dict[str, list[Claim]], unread: Set[str], now: float
) -> tuple[set[Fault], set[Fault]]:
    """Return the faults that have lasted, and the others.

    A fault has lasted if it was in every look for some seconds; and so have all of an owner's in which there
    was one or the other in every look for a minute, so that nobody evades by changing what is wrong. Looks
    in which an owner is `unread` say nothing of it, for or against.
    """
    found = {
        (kind, fault.address, fault.reason): fault
        for kind, each in claims.items()
        for claim in each
        for fault in claim.faults
    }
    # Memory of code is freed under the lock of changes, too: a program that lived for a moment waits for it.
    excused = bool(found) and is_changing_code(guest.program)
    old = guest.patience.settled(
        "page content", set(found), now, excused=excused, unseen=lambda key: key[0] in unread
    )
    kinds = guest.patience.settled(
        "owners in fault",
        {kind for kind, *_ in found},
        now,
        seconds=_LONG,
        unseen=lambda kind: kind in unread,
    )
    lasting = {fault for key, fault in found.items() if key in old or key[0] in kinds}
    return lasting, set(found.values()) - lasting


def _still_wrong(before: list[Claim], after: list[Claim]) -> list[Claim]:
    """Return the later claims with those faults that stood there before, too."""
    known = {(fault.address, fault.reason) for claim in before for fault in claim.faults}
    return [
        replace(
            claim, faults=tuple(fault for fault in claim.faults if (fault.address, fault.reason) in known)
        )
        for claim in after
    ]


def _swept(guest: RunningKernel, claims: Mapping[str, list[Claim]], before: Sequence[Module]) -> _Sweep:
    """Read all executable pages, and attribute them: to what is claimed, and to modules of before or now."""
    pages = read_executable_pages(guest.memory, guest.kernel_space, guest.program)
    after = listed_modules(guest.program)
    modules: Sequence[Module] = before if before == after else (*before, *after)
    spans = [OwnedRange(*span, "module", module.name) for module in modules for span in module.text]
    spans += [OwnedRange(each.start, each.end, kind, each.owner) for kind in claims for each in claims[kind]]
    return _Sweep(attribute(pages, spans), tuple(spans), tuple(after))


def _moving(
    guest: RunningKernel, owners: PageOwners, sweep: _Sweep, now: float, *, booting: bool
) -> Iterator[Fault]:
    """Yield the pages now of code that nobody has for good, if there were such pages in many looks.

    So nobody evades by moving his code, or by being away in some looks. A guest that loads and unloads
    modules has such pages all the time: those that hold what a package does there do not count. While it
    runs, they may be gone before they are compared, so that looks at one moment are counted by themselves.
    """
    odd = _unexplained(guest, sweep)
    if odd and not guest.paused:
        # Pages change hands while they are read; in a second reading they have found their owners.
        before = listed_modules(guest.program)
        claims, unread = owners.claims(guest, before, booting=booting)
        if unread.keys() - _ELSEWHERE:
            return
        odd = _unexplained(guest, _swept(guest, claims, before))
    if odd is None:
        return
    if guest.paused:
        # Several tries to have all pages of one moment are one look: the last of them has succeeded.
        topic, looks, after = "moving code at one moment", _OFTEN_AT_REST, _MOVING
    else:
        topic, looks, after = _MOVING, _OFTEN, ""
    often = guest.patience.often(topic, bool(odd), now, looks=looks, after=after)
    if often:
        reason = "is of no package and of nobody who stays, as other code was in {} of {} looks"
        yield from _told(guest, {(address, 0) for address in odd}, reason.format(*often))


def _unexplained(guest: RunningKernel, sweep: _Sweep) -> frozenset[int] | None:
    """Return the pages of nobody, and of modules that come or go, whose content is of no package.

    None where nobody knows what packages hold.
    """
    pages = {address for address, _ in sweep.owned.unowned()}
    passing = [module for module in sweep.modules if module.state != "live"]
    if passing:
        spans = [OwnedRange(*span, "module", "") for module in passing for span in module.text]
        pages |= sweep.owned.inside(spans)
    if not pages:
        return frozenset()
    try:
        return frozenset(pages) - guest.outside.left_among(pages)
    except UnavailableError:
        return None


def _unowned(guest: RunningKernel, pages: set[tuple[int, int]]) -> Iterator[Fault]:
    return _told(guest, pages, "belongs to nobody")


def _told(guest: RunningKernel, pages: set[tuple[int, int]], reason: str) -> Iterator[Fault]:
    for run in page_runs(pages):
        try:
            code = guest.kernel_space.read(run.address, PAGE_SIZE)
        except MemoryFault:
            code = b""
        first = next((index for index, byte in enumerate(code) if byte not in (0, 0xCC)), 0)
        yield Fault(run.address, "", f"{reason} ({run.pages} pages)", code[first : first + _SHOWN])


def _summary(claims: list[Claim], inside: int) -> OwnerKind:
    """Sum up the claims of one kind, which has pages `inside` of the module area, or fixed ones outside."""
    outside = sum((claim.end - claim.start) // PAGE_SIZE for claim in claims)
    return OwnerKind(
        pages=inside or outside,
        pieces=sum(claim.pieces for claim in claims),
        trusted=sum(claim.trusted for claim in claims),
        trust=tuple(sorted({claim.trust for claim in claims if claim.trust})),
    )


def _module_pages(spans: Sequence[OwnedRange], pages: ExecutablePages) -> dict[str, int]:
    counts: dict[str, int] = {}
    own = list(dict.fromkeys(span for span in spans if span.kind == "module"))
    first, last = (
        np.searchsorted(pages.addresses, np.array(edges, dtype=np.uint64)).tolist()
        for edges in ([span.start for span in own], [span.end for span in own])
    )
    for span, begin, end in zip(own, first, last, strict=True):
        counts[span.owner] = counts.get(span.owner, 0) + end - begin
    return counts


def _ordered(faults: set[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.address, fault.reason)))
