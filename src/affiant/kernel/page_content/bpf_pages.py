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
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.page_content.bpf_code import (
    CLASSIC,
    PROGRAM,
)
from affiant.kernel.page_content.bpf_findings import MOST_FAULTS, BpfFindings
from affiant.kernel.page_content.bpf_generated import entered_at, generated_code, is_dispatcher, is_in_use
from affiant.kernel.page_content.bpf_images import BpfImage, BpfImages, ReadCode
from affiant.kernel.page_content.bpf_lists import (
    CHUNK,
    BpfLists,
    BpfPack,
    BpfProgram,
    BpfSymbol,
    read_bpf_symbols,
)
from affiant.kernel.page_content.claim import Claim, pages_around
from affiant.kernel.page_content.remembered_code import RememberedCode, Room
from affiant.kernel.page_content.view import View
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["BpfPages"]

_TRAP: Final = b"\xcc"
_TRAPS: Final = np.uint64(0xCCCC_CCCC_CCCC_CCCC)
_HEADER: Final = 8  # struct bpf_binary_header up to its image
_ENTRY: Final = struct.Struct("<iii")  # struct exception_table_entry
_MOST_APART: Final = 16 << 20
_MOST_IN_PACKS: Final = 128 << 20  # bytes of judged packs: a guest may map one page of RAM as all of them


@dataclass(frozen=True, slots=True, eq=False)
class _JudgedPack:
    """A pack in which nothing was wrong, with all that this followed from, and what was read in it.

    `called` are trampolines that functions call, `entered` the halves of dispatchers that are; all else
    that counts is in memory and lists.
    """

    memory: bytes
    lists: BpfLists
    called: frozenset[int]
    entered: tuple[int, ...]
    claim: Claim
    images: dict[BpfImage, ReadCode]
    well: dict[int, bytes]


class BpfPages:
    """Judges BPF code; what did not change since it was read is not decoded again.

    A pack of which no byte has changed, nor what the kernel's lists say of any, is not judged again, unless
    it lies beyond the first 128 MiB of packs: those are not remembered.
    """

    kind = "bpf"

    def __init__(self, guest: RunningKernel) -> None:
        self._room = Room()
        self._images = BpfImages(guest, self._room)
        self._packs: dict[int, _JudgedPack] = {}
        self._called: frozenset[int] = frozenset()
        # Whole allocations in order, by where their code starts.
        self._well: RememberedCode[int, bytes] = RememberedCode(self._room, len)
        self._whole = True

    def claims(self, view: View) -> Iterator[Claim]:
        """Yield a claim for each pack, and for each image that lies in none."""
        # What is judged is kept with the lists that it was judged by.
        lists = replace(view.bpf, symbols=dict(view.bpf.symbols), programs=dict(view.bpf.programs))
        self._called = view.guest.text_content.wrapping()
        self._room.begin()
        self._images.begin()
        self._well.begin(whole=self._whole)
        self._whole = False
        apart = [symbol for symbol in lists.symbols.values() if lists.pack_at(symbol.start) is None]
        if sum(symbol.end - symbol.start for symbol in apart) > _MOST_APART:
            raise MalformedError("more code of BPF outside of packs than there may be")
        dispatchers = (each for each in lists.symbols.values() if is_dispatcher(each))
        entered = tuple(entered_at(view.program, each) for each in dispatchers)
        known, self._packs = self._packs, {}
        room = _MOST_IN_PACKS
        for pack in lists.packs:
            judged = known.get(pack.start)
            if judged is not None and self._stands(view, lists, entered, judged):
                self._images.read.now |= judged.images
                self._well.now |= judged.well
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
            found = BpfFindings(symbol.name)
            try:
                if address == entered_at(view.program, symbol):
                    self._generated(view, lists, symbol, view.read(symbol.start, symbol.end), found)
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
        found = BpfFindings("bpf_prog_pack")
        with self._images.read.apart() as images, self._well.apart() as well:
            self._pack(view, lists, pack, memory, found)
        claim = found.claim(pack.start, pack.end)
        return _JudgedPack(memory, lists, self._called, entered, claim, images, well)

    def _pack(self, view: View, lists: BpfLists, pack: BpfPack, memory: bytes, found: BpfFindings) -> None:
        chunks = np.frombuffer(memory, dtype="<u8").reshape(-1, CHUNK // 8)
        used = np.unpackbits(np.frombuffer(pack.bitmap, dtype=np.uint8), bitorder="little").astype(bool)
        filled = (chunks != _TRAPS).any(axis=1)
        for start, end in _runs(filled & ~used):
            place = slice(start * CHUNK, end * CHUNK)
            found.blame(pack.start + place.start, "lies in memory that no program uses", memory[place])
        for start, end in _runs(used):
            self._used(view, lists, pack.start + start * CHUNK, memory[start * CHUNK : end * CHUNK], found)

    def _used(self, view: View, lists: BpfLists, start: int, memory: bytes, found: BpfFindings) -> None:
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
                self._generated(view, lists, symbol, memory[position : position + size], found)
            else:
                size = int.from_bytes(memory[position : position + 4], "little")
                if size == 0 or size % CHUNK or position + size > len(memory):
                    found.blame(address, "is in use and no program's", memory[position:])
                    return
                self._program(view, lists, address, memory[position : position + size], found)
            position += size

    def _program(self, view: View, lists: BpfLists, address: int, memory: bytes, found: BpfFindings) -> None:
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
        image = BpfImage(start, min(program.size, len(memory) - first), PROGRAM, symbol.name, exact=True)
        self._images.judge(lists, image, memory[first:], found)
        rest = memory[first + image.size :]
        if program.exceptions:
            rest = self._exceptions(program, start + image.size, rest, found)
        if rest.strip(_TRAP):
            found.blame(start + image.size, f"lies behind the end of {symbol.name}", rest)
        if len(found.faults) == faults < MOST_FAULTS:
            self._well.note(start, memory)

    def _unlisted(
        self, view: View, lists: BpfLists, start: int, memory: bytes, first: int, found: BpfFindings
    ) -> None:
        """Judge what no list names: a classic filter, or a program that is not freed yet.

        A program is freed by a worker, after RCU and after whoever else changes code (__bpf_prog_put()), and
        until then the kernel's queues lead to it. Where another thing was in order before, nothing else is
        waited for.
        """
        code, before = memory[first:], self._well.before.get(start)
        size = max(len(memory.rstrip(_TRAP)) - first, 0)
        as_filter, as_program = BpfFindings(found.owner), BpfFindings(found.owner)
        self._images.judge(lists, BpfImage(start, size, CLASSIC, "a classic filter"), code, as_filter)
        if not as_filter.faults or before == memory:
            self._well.note(start, memory)
        if not as_filter.faults:
            found.add(as_filter)
            return
        freeing = view.freeing
        waits = freeing is not None and start in freeing
        may_be = before == memory
        if not may_be and (before is None or waits):
            # A function calls others of its program, which wait with it.
            also = freeing if waits and freeing else frozenset()
            self._images.judge(
                lists, BpfImage(start, size, PROGRAM, "a program"), code, as_program, also=also
            )
            may_be = not as_program.faults
        if may_be:
            was = "was a program that the kernel listed" if before == memory else "could be a program"
            found.leave(start, f"{was}, and is on no list", code, waits=waits or freeing is None)
        else:
            found.add(as_filter)

    def _exceptions(self, program: BpfProgram, end: int, rest: bytes, found: BpfFindings) -> bytes:
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

    def _generated(
        self, view: View, lists: BpfLists, symbol: BpfSymbol, memory: bytes, found: BpfFindings
    ) -> None:
        """Judge the code of a trampoline or dispatcher: one piece, or two halves, and filler behind each."""
        entered = entered_at(view.program, symbol)
        for code in generated_code(symbol, memory):
            used = code.start == entered if is_dispatcher(symbol) else is_in_use(lists, symbol, self._called)
            image = BpfImage(code.start, code.size, code.form, symbol.name, entered=used)
            self._images.judge(lists, image, code.memory, found)

    def _apart(self, view: View, lists: BpfLists, symbol: BpfSymbol) -> Claim:
        """Judge an image in pages of its own: so trampolines lie before 6.9."""
        start, end = pages_around(symbol.start, symbol.end)
        found = BpfFindings(symbol.name)
        memory = view.read(start, end)
        if start != symbol.start or symbol.program:
            found.blame(symbol.start, "is in no pack, and begins no page", memory)
        else:
            self._generated(view, lists, symbol, memory, found)
        return found.claim(start, end)


def _runs(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each run of true elements."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
