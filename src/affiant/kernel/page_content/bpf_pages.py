"""The owner `bpf`: packs of compiled programs, and pages of trampolines and dispatchers.

kernel/bpf/core.c (`bpf_prog_pack_alloc()`), kernel/bpf/trampoline.c, kernel/bpf/dispatcher.c. A pack is cut
into chunks of 64 bytes. A chunk that is free by the pack's bitmap must hold INT3 and nothing else. What is
in use must be, without a gap, images: a listed program with its header, a classic filter that no list
names (`bpf_code.CLASSIC`), a listed trampoline or dispatcher; or whole chunks of INT3. Each image is read
instruction by instruction and must lead only to itself, to another listed image, or where `BpfCalls` says.

Taken on trust: what a listed program computes; the target of an indirect jump; entries of its exception
table beyond that they are its own; where in packs code leads that is not entered any more.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.page_content.bpf_calls import BpfCalls
from affiant.kernel.page_content.bpf_code import (
    CLASSIC,
    DISPATCHER,
    PROGRAM,
    TRAMPOLINE,
    CodeForm,
    CodeReport,
    read_code,
)
from affiant.kernel.page_content.bpf_generated import entered_at, generated_code, is_dispatcher, is_in_use
from affiant.kernel.page_content.bpf_lists import (
    CHUNK,
    BpfLists,
    BpfPack,
    BpfProgram,
    BpfSymbol,
    read_bpf_symbols,
)
from affiant.kernel.page_content.claim import Claim, Fault, pages_around
from affiant.kernel.page_content.view import View
from affiant.kernel.site_content.image import KernelImage
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["BpfPages"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_TRAP: Final = b"\xcc"
_TRAPS: Final = np.uint64(0xCCCC_CCCC_CCCC_CCCC)
_HEADER: Final = 8  # struct bpf_binary_header up to its image
_ENTRY: Final = struct.Struct("<iii")  # struct exception_table_entry
_NEAR_ENTRY: Final = 64  # tail calls enter a program behind the beginning of its prologue
_MOST_FAULTS: Final = 64
_MOST_DECODED: Final = 1 << 20  # bytes of new code; a second of work
_MOST_APART: Final = 16 << 20
_OVERHEAD: Final = 512  # bytes that remembering a piece of code takes beside it
_MOST_KEPT: Final = 128 << 20  # bytes of packs: a guest may map one page of RAM as all of them


@dataclass(frozen=True, slots=True)
class _Image:
    """Code to be read: `size` bytes at `start`; not `exact` if only filler tells where it ends.

    What is not `entered` was code once: where it led may be gone.
    """

    start: int
    size: int
    form: CodeForm
    name: str
    exact: bool = False
    entered: bool = True


@dataclass(slots=True)
class _Found:
    """What a look at one claim has found so far."""

    owner: str
    faults: list[Fault] = field(default_factory=list)
    pieces: int = 0
    trusted: int = 0
    reasons: dict[str, None] = field(default_factory=dict)
    leaving: list[Fault] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)

    def blame(self, address: int, reason: str, code: bytes) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(Fault.at(address, self.owner, reason, code))

    def leave(self, address: int, reason: str, code: bytes, *, waits: bool) -> None:
        if len(self.leaving) < _MOST_FAULTS:
            self.leaving.append(Fault.at(address, self.owner, reason, code))
            self.waiting |= {address} if waits else set()

    def add(self, other: _Found) -> None:
        self.faults += other.faults[: _MOST_FAULTS - len(self.faults)]
        self.pieces += other.pieces
        self.trusted += other.trusted
        self.reasons |= other.reasons

    def trust(self, reason: str) -> None:
        self.trusted += 1
        self.reasons[reason] = None

    def claim(self, start: int, end: int) -> Claim:
        faults = tuple(self.faults)
        trust = "; ".join(self.reasons)
        return Claim(
            start,
            end,
            self.owner,
            faults,
            self.pieces,
            self.trusted,
            trust,
            leaving=tuple(self.leaving),
            waiting=frozenset(self.waiting),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _JudgedPack:
    """A pack in which nothing was wrong, with all that this followed from, and what was read in it.

    `called` are trampolines that functions call, `entered` the halves of dispatchers that are; all else
    that counts is in memory and lists.
    """

    memory: NDArray[np.uint8]
    lists: BpfLists
    called: frozenset[int]
    entered: tuple[int, ...]
    claim: Claim
    images: dict[_Image, tuple[bytes, CodeReport]]
    well: dict[int, bytes]


class BpfPages:
    """Judges BPF code; what did not change since it was read is not decoded again.

    A pack of which no byte has changed, nor what the kernel's lists say of any, is not judged again, unless
    it lies beyond the first 128 MiB of packs: those are not remembered.
    """

    kind = "bpf"

    def __init__(self, guest: RunningKernel) -> None:
        image = KernelImage(guest.memory, guest.kernel_space, guest.program, guest.text)
        self._calls = BpfCalls(image)
        self._image = image
        self._read: dict[_Image, tuple[bytes, CodeReport]] = {}
        self._kept: dict[_Image, tuple[bytes, CodeReport]] = {}
        self._packs: dict[int, _JudgedPack] = {}
        self._left, self._room = _MOST_DECODED, _MOST_KEPT
        self._called: frozenset[int] = frozenset()
        self._well: dict[int, bytes] = {}  # whole allocations in order, by where their code starts
        self._well_before: dict[int, bytes] = {}
        self._whole = True

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each pack, and for each image that lies in none."""
        # What is judged is kept with the lists that it was judged by.
        lists = replace(view.bpf, symbols=dict(view.bpf.symbols), programs=dict(view.bpf.programs))
        self._called = view.guest.text_content.wrapping()
        # What a look did not come to for too much new code is left to the next one, which finds this done.
        self._kept = self._read if self._left > 0 else _newest(self._kept, self._read, _size_of_read)
        self._read, self._left, self._room = {}, _MOST_DECODED, _MOST_KEPT
        self._well_before = self._well if self._whole else _newest(self._well_before, self._well, len)
        self._well, self._whole = {}, False
        apart = [symbol for symbol in lists.symbols.values() if lists.pack_at(symbol.start) is None]
        if sum(symbol.end - symbol.start for symbol in apart) > _MOST_APART:
            raise MalformedError("more code of BPF outside of packs than there may be")
        dispatchers = (each for each in lists.symbols.values() if is_dispatcher(each))
        entered = tuple(entered_at(view.program, each) for each in dispatchers)
        known, self._packs = self._packs, {}
        room = _MOST_KEPT
        for pack in lists.packs:
            judged = known.get(pack.start)
            if judged is not None and self._stands(view, lists, entered, judged):
                self._read |= judged.images
                self._well |= judged.well
            else:
                judged = self._judged_pack(view, lists, entered, pack)
            room -= pack.end - pack.start
            if not judged.claim.faults and not judged.claim.leaving and room >= 0:
                self._packs[pack.start] = judged
            yield judged.claim
        for symbol in apart:
            yield self._apart(view, lists, symbol)
        self._whole = True

    def forget(self) -> None:
        """Have all packs be judged anew. What their code does was read from its bytes, and is kept."""
        self._packs.clear()

    def vouched(self, view: View, addresses: Set[int]) -> frozenset[int]:
        """Return those addresses where a listed trampoline starts, or the half of a dispatcher in use.

        Their code is read now, and must be in order; what it calls is judged by `claims`. Raises
        UnavailableError if that is more code than one look reads.
        """
        lists = BpfLists((), read_bpf_symbols(view.program), {})
        symbols = sorted(
            (symbol for symbol in lists.symbols.values() if not symbol.program), key=lambda each: each.start
        )
        left = _MOST_APART
        vouched: set[int] = set()
        for address in addresses:
            place = bisect_right(symbols, address, key=lambda each: each.start)
            symbol = symbols[place - 1] if place else None
            if symbol is None or address >= symbol.end:
                continue
            left -= symbol.end - symbol.start
            if left < 0:
                raise UnavailableError("more code of BPF is called than one look reads")
            found = _Found(symbol.name)
            try:
                if address == entered_at(view.program, symbol):
                    self._generated(lists, symbol, view.read(symbol.start, symbol.end), found)
            except MemoryFault:
                continue  # this one is being freed
            if found.pieces and not found.faults:
                vouched.add(address)
        return frozenset(vouched)

    def _stands(self, view: View, lists: BpfLists, entered: tuple[int, ...], judged: _JudgedPack) -> bool:
        same = (judged.lists, judged.called, judged.entered) == (lists, self._called, entered)
        return same and view.holds(judged.claim.start, judged.memory)

    def _judged_pack(
        self, view: View, lists: BpfLists, entered: tuple[int, ...], pack: BpfPack
    ) -> _JudgedPack:
        memory = view.read(pack.start, pack.end)
        found = _Found("bpf_prog_pack")
        before, self._read, self._well = (self._read, self._well), {}, {}
        try:
            self._pack(view, lists, pack, memory, found)
        finally:
            images, well = self._read, self._well
            self._read, self._well = before[0] | images, before[1] | well
        claim = found.claim(pack.start, pack.end)
        content = np.frombuffer(memory, dtype=np.uint8)
        return _JudgedPack(content, lists, self._called, entered, claim, images, well)

    def _pack(self, view: View, lists: BpfLists, pack: BpfPack, memory: bytes, found: _Found) -> None:
        chunks = np.frombuffer(memory, dtype="<u8").reshape(-1, CHUNK // 8)
        used = np.unpackbits(np.frombuffer(pack.bitmap, dtype=np.uint8), bitorder="little").astype(bool)
        filled = (chunks != _TRAPS).any(axis=1)
        for start, end in _runs(filled & ~used):
            place = slice(start * CHUNK, end * CHUNK)
            found.blame(pack.start + place.start, "lies in memory that no program uses", memory[place])
        for start, end in _runs(used):
            self._used(view, lists, pack.start + start * CHUNK, memory[start * CHUNK : end * CHUNK], found)

    def _used(self, view: View, lists: BpfLists, start: int, memory: bytes, found: _Found) -> None:
        """Judge memory in use without a gap: allocation after allocation."""
        position = 0
        while position < len(memory):
            if memory[position : position + CHUNK] == _TRAP * CHUNK:
                position += CHUNK
                continue  # a program gets its memory first, and is written into it when all of it is compiled
            address = start + position
            symbol = lists.symbols.get(address)
            if symbol is not None and not symbol.program:
                size = symbol.end - symbol.start
                following = lists.symbols.get(symbol.end)
                # What replaces operations of the kernel has one function behind the other (struct_ops).
                if following is None or following.program:
                    size += -(position + size) % CHUNK
                self._generated(lists, symbol, memory[position : position + size], found)
            else:
                size = int.from_bytes(memory[position : position + 4], "little")
                if size == 0 or size % CHUNK or position + size > len(memory):
                    found.blame(address, "is in use and no program's", memory[position:])
                    return
                self._program(view, lists, address, memory[position : position + size], found)
            position += size

    def _program(self, view: View, lists: BpfLists, address: int, memory: bytes, found: _Found) -> None:
        """Judge one allocation that begins with a header: filler, code, perhaps a table, filler."""
        first = min(_HEADER + len(memory[_HEADER:]) - len(memory[_HEADER:].lstrip(_TRAP)), len(memory))
        if memory[4:_HEADER].strip(_TRAP + b"\0"):
            found.blame(address, "has code in its header", memory)
            return
        start = address + first
        program, symbol = lists.programs.get(start), lists.symbols.get(start)
        if program is None and symbol is None:
            self._unlisted(view, lists, start, memory, first, found)
            return
        if program is None or symbol is None or symbol.end - symbol.start != program.size:
            missing = "program" if program is None else "symbol"
            found.blame(start, f"is no {missing} that the kernel lists as it is", memory[first:])
            return
        faults = len(found.faults)
        image = _Image(start, min(program.size, len(memory) - first), PROGRAM, symbol.name, exact=True)
        self._judge(lists, image, memory[first:], found)
        rest = memory[first + image.size :]
        if program.exceptions:
            rest = self._exceptions(program, start + image.size, rest, found)
        if rest.strip(_TRAP):
            found.blame(start + image.size, f"lies behind the end of {symbol.name}", rest)
        if len(found.faults) == faults < _MOST_FAULTS:
            self._remember_well(start, memory)

    def _unlisted(
        self, view: View, lists: BpfLists, start: int, memory: bytes, first: int, found: _Found
    ) -> None:
        """Judge what no list names: a classic filter, or a program that is not freed yet.

        A program is freed by a worker, after RCU and after whoever else changes code (__bpf_prog_put()), and
        until then the kernel's queues lead to it. Where another thing was in order before, nothing else is
        waited for.
        """
        code, before = memory[first:], self._well_before.get(start)
        size = max(len(memory.rstrip(_TRAP)) - first, 0)
        as_filter, as_program = _Found(found.owner), _Found(found.owner)
        self._judge(lists, _Image(start, size, CLASSIC, "a classic filter"), code, as_filter)
        if not as_filter.faults or before == memory:
            self._remember_well(start, memory)
        if not as_filter.faults:
            found.add(as_filter)
            return
        freeing = view.freeing
        waits = freeing is not None and start in freeing
        may_be = before == memory
        if not may_be and (before is None or waits):
            # A function calls others of its program, which wait with it.
            also = freeing if waits and freeing else frozenset()
            self._judge(lists, _Image(start, size, PROGRAM, "a program"), code, as_program, also=also)
            may_be = not as_program.faults
        if may_be:
            was = "was a program that the kernel listed" if before == memory else "could be a program"
            found.leave(start, f"{was}, and is on no list", code, waits=waits or freeing is None)
        else:
            found.add(as_filter)

    def _exceptions(self, program: BpfProgram, end: int, rest: bytes, found: _Found) -> bytes:
        """Take a program's exception table out of what lies behind it, and return the rest."""
        offset, size = program.table - end, _ENTRY.size * program.exceptions
        if not (0 <= offset <= 64 and offset + size <= len(rest)):
            found.blame(program.table, f"is no place for the exceptions of {program.name}", rest)
            return b""
        for index in range(program.exceptions):
            place = program.table + _ENTRY.size * index
            instruction, _, _ = _ENTRY.unpack_from(rest, offset + _ENTRY.size * index)
            if not program.start <= place + instruction < end:
                found.blame(place, f"is no exception of {program.name}", rest[offset + _ENTRY.size * index :])
                break
        found.trust("exception tables")
        return rest[:offset] + rest[offset + size :]

    def _generated(self, lists: BpfLists, symbol: BpfSymbol, memory: bytes, found: _Found) -> None:
        """Judge the code of a trampoline or dispatcher: one piece, or two halves, and filler behind each."""
        entered = entered_at(self._image.program, symbol)
        for code in generated_code(symbol, memory):
            used = code.start == entered if is_dispatcher(symbol) else is_in_use(lists, symbol, self._called)
            image = _Image(code.start, code.size, code.form, symbol.name, entered=used)
            self._judge(lists, image, code.memory, found)

    def _apart(self, view: View, lists: BpfLists, symbol: BpfSymbol) -> Claim:
        """Judge an image in pages of its own: so trampolines lie before 6.9."""
        start, end = pages_around(symbol.start, symbol.end)
        found = _Found(symbol.name)
        memory = view.read(start, end)
        if start != symbol.start or symbol.program:
            found.blame(symbol.start, "is in no pack, and begins no page", memory)
        else:
            self._generated(lists, symbol, memory, found)
        return found.claim(start, end)

    def _judge(
        self,
        lists: BpfLists,
        image: _Image,
        code: bytes,
        found: _Found,
        *,
        also: frozenset[int] = frozenset(),
    ) -> None:
        """Judge one image, which may lead to `also` beside what the lists name."""
        found.pieces += 1
        known = self._read.get(image) or self._kept.get(image)
        if known is not None and known[0] == code:
            report = known[1]
        else:
            if self._left <= 0:
                raise UnavailableError("more new code of BPF than one look reads; the next goes on")
            self._left -= image.size
            report = read_code(code, image.size, image.start, image.form, exact=image.exact)
        # Memory is as much as the guest says: code that there is no room for is decoded again.
        if self._has_room(code):
            self._read[image] = (code, report)
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

    def _remember_well(self, start: int, memory: bytes) -> None:
        if self._has_room(memory):
            self._well[start] = memory

    def _has_room(self, memory: bytes) -> bool:
        self._room -= len(memory) + _OVERHEAD
        return self._room >= 0

    def _objection(self, lists: BpfLists, image: _Image, target: int) -> str:
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


def _size_of_read(read: tuple[bytes, CodeReport]) -> int:
    return len(read[0])


def _newest(
    before: dict[_Key, _Value], now: dict[_Key, _Value], size: Callable[[_Value], int]
) -> dict[_Key, _Value]:
    """Join what two looks remember; of more than may be kept, what the earlier one had first is dropped."""
    joined = {key: value for key, value in before.items() if key not in now} | now
    excess = sum(size(value) + _OVERHEAD for value in joined.values()) - _MOST_KEPT
    for key in list(joined):
        if excess <= 0:
            break
        excess -= size(joined.pop(key)) + _OVERHEAD
    return joined


def _runs(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each run of true elements."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
