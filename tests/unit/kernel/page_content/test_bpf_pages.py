"""Packs of BPF: every chunk is free and empty, or an image that the kernel lists and may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from affiant.kernel.page_content import bpf_images, bpf_pages, remembered_code
from affiant.kernel.page_content.bpf_lists import CHUNK, BpfLists, BpfPack, BpfProgram, BpfSymbol
from affiant.kernel.page_content.bpf_pages import BpfPages
from affiant.kernel.page_content.claim import Claim
from affiant.kernel.page_content.view import View
from affiant.kernel.site_content.content import SiteContent
from affiant.model.errors import MalformedError, UnavailableError
from tests.unit.kernel.site_world import (
    BPF_HELPER,
    OTHER,
    PLACES,
    RETURN_THUNK,
    SOCKET_HELPER,
    THUNKS,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import MODULE_AREA, SLIDE

PACK, SIZE = MODULE_AREA + 0x20_0000, 0x1000
TRAMPOLINE_PAGE = MODULE_AREA + 0x60_0000
ENTRY = bytes.fromhex("0f1f440000554889e5")
EXIT = bytes.fromhex("c9c3")


@dataclass
class Pack:
    """A pack of one page, with the lists that a truthful kernel keeps of it."""

    world: SiteWorld = field(default_factory=SiteWorld)
    memory: bytearray = field(default_factory=lambda: bytearray(b"\xcc" * SIZE))
    used: set[int] = field(default_factory=set)
    symbols: dict[int, BpfSymbol] = field(default_factory=dict)
    programs: dict[int, BpfProgram] = field(default_factory=dict)
    trampolines: frozenset[int] | None = None
    freeing: frozenset[int] | None = frozenset()

    def put(self, chunk: int, content: bytes, *, header: bool = True) -> int:
        """Put an image at a chunk, and return where its code starts."""
        whole = (8 if header else 0) + len(content)
        size = -(-whole // CHUNK) * CHUNK
        start = chunk * CHUNK
        if header:
            self.memory[start : start + 4] = size.to_bytes(4, "little")
            start += 8
        self.memory[start : start + len(content)] = content
        self.used |= set(range(chunk, chunk + size // CHUNK))
        return PACK + start

    def call(self, chunk: int, offset: int, target: int) -> bytes:
        """Return a call at an offset into the image at a chunk."""
        return near(0xE8, PACK + chunk * CHUNK + 8 + offset, target)

    def program(self, chunk: int, body: bytes, name: str = "bpf_prog_one", *, tail: bytes = b"") -> int:
        """Put a program that the kernel lists; its body follows its entry."""
        code = ENTRY + body + EXIT
        start = self.put(chunk, code + tail)
        self.symbols[start] = BpfSymbol(start, start + len(code), name, program=True, structure=0)
        self.programs[start] = BpfProgram(start, len(code), name, 0, 0)
        return start

    def lists(self) -> BpfLists:
        bitmap = bytearray(SIZE // CHUNK // 8)
        for chunk in self.used:
            bitmap[chunk // 8] |= 1 << chunk % 8
        return BpfLists(
            (BpfPack(PACK, PACK + SIZE, bytes(bitmap)),),
            self.symbols,
            self.programs,
            trampolines=self.trampolines,
        )

    def look(self, pages: BpfPages | None = None) -> list[Claim]:
        self.world.heap(bytes(self.memory), executable_at=PACK)
        pages = pages or BpfPages(self.world.seen)
        return list(pages.claims(View(self.world.seen, self.lists(), _freeing=(self.freeing,))))

    def faults(self) -> list[tuple[int, str]]:
        return [(fault.address - PACK, fault.reason) for claim in self.look() for fault in claim.faults]


@pytest.fixture
def pack() -> Pack:
    pack = Pack()
    # A program that calls a helper and one of its own kind, and a filter that no list names.
    callee = pack.program(4, b"", "bpf_prog_two")
    body = pack.call(0, len(ENTRY), BPF_HELPER + SLIDE)
    pack.program(0, body + pack.call(0, len(ENTRY) + 5, callee))
    filters = ENTRY + bytes.fromhex("8945f8")
    pack.put(8, filters + pack.call(8, len(filters), SOCKET_HELPER + SLIDE) + EXIT)
    return pack


def test_a_truthful_pack_is_in_order_and_every_image_is_read(pack: Pack) -> None:
    (claim,) = pack.look()
    assert (claim.start, claim.end, claim.pieces, claim.faults) == (PACK, PACK + SIZE, 3, ())


def test_code_in_free_memory_is_found(pack: Pack) -> None:
    pack.memory[20 * CHUNK : 20 * CHUNK + 2] = b"\xeb\xfe"
    ((address, reason),) = pack.faults()
    assert (address, reason) == (20 * CHUNK, "lies in memory that no program uses")


def test_memory_in_use_that_is_no_image_is_found(pack: Pack) -> None:
    pack.used |= {19, 20}
    pack.memory[20 * CHUNK + 60] = 0x90
    ((address, reason),) = pack.faults()
    assert (address, reason) == (20 * CHUNK, "is in use and no program's")


def test_memory_that_a_program_has_before_it_is_compiled_holds_no_code(pack: Pack) -> None:
    pack.used |= {13, 20, 21}
    (claim,) = pack.look()
    assert (claim.pieces, claim.faults, claim.leaving) == (3, (), ())


def test_an_unlisted_program_must_be_harmless(pack: Pack) -> None:
    """It is read as a classic filter, which may write nothing but its frame."""
    pages = BpfPages(pack.world.seen)
    start = pack.put(20, ENTRY + bytes.fromhex("8945f8") + EXIT)
    assert (pack.look(pages)[0].faults, pack.look(pages)[0].leaving) == ((), ())
    pack.put(20, ENTRY + bytes.fromhex("488937") + EXIT)
    ((address, reason),) = [
        (fault.address - PACK, fault.reason) for claim in pack.look(pages) for fault in claim.faults
    ]
    assert address + PACK == start + len(ENTRY)
    assert "writes outside of its frame" in reason


def unlist(pack: Pack, start: int) -> None:
    del pack.symbols[start], pack.programs[start]


def test_a_program_that_was_in_order_may_leave(pack: Pack) -> None:
    """It is off all lists some time before its memory is free; nobody but a program may call that helper."""
    start = pack.program(20, pack.call(20, len(ENTRY), BPF_HELPER + SLIDE), "bpf_prog_three")
    pages = BpfPages(pack.world.seen)
    assert pack.look(pages)[0].leaving == ()
    unlist(pack, start)
    for _ in range(3):
        (claim,) = pack.look(pages)
        assert claim.faults == ()
        assert [fault.address for fault in claim.leaving] == [start]
        assert claim.waiting == set()
    # Nothing of it may change meanwhile.
    pack.memory[start - PACK + len(ENTRY) + 5] ^= 1
    (claim,) = pack.look(pages)
    assert (claim.leaving, len(claim.faults)) == ((), 1)


def test_a_program_that_lived_between_two_looks_may_leave(pack: Pack) -> None:
    start = pack.program(20, pack.call(20, len(ENTRY), BPF_HELPER + SLIDE), "bpf_prog_three")
    unlist(pack, start)
    pages = BpfPages(pack.world.seen)
    for _ in range(2):
        (claim,) = pack.look(pages)
        assert claim.faults == ()
        assert [fault.reason for fault in claim.leaving] == ["could be a program, and is on no list"]


@pytest.mark.parametrize("known", [True, False], ids=["listed before", "between two looks"])
def test_a_program_that_leaves_is_known_to_wait_by_what_the_kernel_will_free(pack: Pack, known: bool) -> None:
    start = pack.program(20, pack.call(20, len(ENTRY), BPF_HELPER + SLIDE), "bpf_prog_three")
    pages = BpfPages(pack.world.seen)
    if known:
        pack.look(pages)
    unlist(pack, start)
    for freeing, waiting in ((frozenset({start}), {start}), (None, {start}), (frozenset({PACK}), set())):
        pack.freeing = freeing
        (claim,) = pack.look(pages)
        assert ([fault.address for fault in claim.leaving], claim.waiting) == ([start], waiting)


def test_functions_of_a_program_that_lived_between_two_looks_may_call_each_other(pack: Pack) -> None:
    """As long as both wait to be freed: what is on no list is called by nobody else."""
    callee = pack.program(24, bytes.fromhex("488937"), "bpf_prog_four")
    caller = pack.program(20, pack.call(20, len(ENTRY), callee), "bpf_prog_three")
    for start in (callee, caller):
        unlist(pack, start)
    pages = BpfPages(pack.world.seen)
    pack.freeing = frozenset({callee, caller})
    (claim,) = pack.look(pages)
    assert (claim.faults, claim.waiting) == ((), {callee, caller})
    pack.freeing = frozenset({callee})
    (claim,) = pack.look(pages)
    assert [fault.address for fault in claim.faults] == [caller + len(ENTRY)]


def test_a_program_in_the_place_of_another_that_was_in_order_may_leave_as_well(pack: Pack) -> None:
    """One of a few places in a chunk is drawn for each program."""
    start = pack.program(20, pack.call(20, len(ENTRY), BPF_HELPER + SLIDE), "bpf_prog_three")
    pages = BpfPages(pack.world.seen)
    pack.look(pages)
    unlist(pack, start)
    pack.put(20, ENTRY + bytes.fromhex("488937") + EXIT)
    assert pack.look(pages)[0].faults
    pack.freeing = frozenset({start})
    (claim,) = pack.look(pages)
    assert (claim.faults, claim.waiting) == ((), {start})


@pytest.mark.parametrize("body", [bytes.fromhex("0f22c0"), bytes.fromhex("e8000000ff")])
def test_what_could_not_be_a_program_does_not_leave(pack: Pack, body: bytes) -> None:
    """A privileged instruction, a call of nobody: whatever the kernel says that it will free."""
    pack.freeing = frozenset({pack.put(20, ENTRY + body + EXIT)})
    (claim,) = pack.look()
    assert (claim.leaving, len(claim.faults)) == ((), 1)


def test_a_program_that_was_not_in_order_does_not_leave(pack: Pack) -> None:
    start = pack.program(20, pack.call(20, len(ENTRY), OTHER + SLIDE), "bpf_prog_three")
    pages = BpfPages(pack.world.seen)
    assert pack.look(pages)[0].faults
    unlist(pack, start)
    (claim,) = pack.look(pages)
    assert (claim.leaving, len(claim.faults)) == ((), 1)


def test_a_look_that_broke_off_forgets_no_program(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    start = pack.program(20, pack.call(20, len(ENTRY), BPF_HELPER + SLIDE), "bpf_prog_three")
    pages = BpfPages(pack.world.seen)
    pack.look(pages)
    with monkeypatch.context() as patch:
        for reading in ("read", "holds"):
            patch.setattr(View, reading, lambda *_: (_ for _ in ()).throw(MalformedError("moved")))
        with pytest.raises(MalformedError):
            pack.look(pages)
    unlist(pack, start)
    assert pack.look(pages)[0].faults == ()


def test_a_filter_may_not_call_what_only_programs_may(pack: Pack) -> None:
    pages = BpfPages(pack.world.seen)
    call = pack.call(20, len(ENTRY), BPF_HELPER + SLIDE)
    pack.put(20, ENTRY + bytes.fromhex("8945f8") + EXIT)
    pack.look(pages)
    pack.put(20, ENTRY + call + EXIT)
    ((_, reason),) = [(fault.address, fault.reason) for claim in pack.look(pages) for fault in claim.faults]
    assert reason == "a classic filter: leads to bpf_get_prandom_u32+0x0, where no such code may"


@pytest.mark.parametrize("opcode", [0xE8, 0xE9], ids=["call", "jump"])
def test_a_filter_branches_through_no_thunk_but_that_of_returns(pack: Pack, opcode: int) -> None:
    """A thunk goes wherever a register says: a filter that may use one runs anything of the kernel."""
    place = PACK + 20 * CHUNK + 8 + len(ENTRY)
    pack.put(20, ENTRY + near(opcode, place, THUNKS + SLIDE) + EXIT)
    (claim,) = pack.look()
    assert [fault.reason for fault in claim.leaving] == ["could be a program, and is on no list"]
    pack.put(20, ENTRY + b"\xc9" + near(0xE9, place + 1, RETURN_THUNK + SLIDE))
    (claim,) = pack.look()
    assert (claim.faults, claim.leaving) == ((), ())


def test_a_program_may_jump_through_a_thunk(pack: Pack) -> None:
    pack.program(20, near(0xE9, PACK + 20 * CHUNK + 8 + len(ENTRY), THUNKS + SLIDE))
    assert pack.faults() == []


@pytest.mark.parametrize("target", [OTHER + SLIDE, BPF_HELPER + SLIDE + 4, PACK + 0x208, MODULE_AREA])
def test_a_program_that_leads_elsewhere_is_found(pack: Pack, target: int) -> None:
    start = pack.program(20, pack.call(20, len(ENTRY), target))
    ((address, reason),) = pack.faults()
    assert address + PACK == start + len(ENTRY)
    assert "where no such code may" in reason


def test_a_program_is_on_both_lists_as_it_is(pack: Pack) -> None:
    start = next(iter(pack.programs))
    program = pack.programs.pop(start)
    assert "is no program that the kernel lists" in pack.faults()[0][1]
    pack.programs[start] = replace(program, size=program.size + 1)
    assert "is no symbol that the kernel lists as it is" in pack.faults()[0][1]
    pack.programs[start] = program
    del pack.symbols[start]
    assert any("is no symbol" in reason for _, reason in pack.faults())


def test_code_behind_the_end_of_a_program_is_found(pack: Pack) -> None:
    pack.program(20, b"", tail=bytes.fromhex("0f22c0"))
    ((_, reason),) = pack.faults()
    assert "lies behind the end of" in reason


def test_an_exception_table_is_told_apart_and_must_be_the_programs(pack: Pack) -> None:
    entry = (-4).to_bytes(4, "little", signed=True) + bytes(8)
    start = pack.program(20, b"", tail=b"\xcc" + entry)
    program = pack.programs[start]
    place = start + program.size + 1
    pack.programs[start] = replace(program, table=place, exceptions=1)
    (claim,) = pack.look()
    assert (claim.faults, claim.trusted, claim.trust) == ((), 1, "exception tables")
    pack.memory[place - PACK : place - PACK + 4] = (0x100).to_bytes(4, "little")
    ((_, reason),) = pack.faults()
    assert "is no exception of" in reason
    pack.programs[start] = replace(program, table=place, exceptions=1000)
    assert any("is no place for the exceptions" in reason for _, reason in pack.faults())


def operations(pack: Pack, bodies: Sequence[bytes]) -> int:
    """Put functions that replace operations of the kernel at a chunk, one behind the other; return where."""
    codes = [bytes.fromhex("554889e5") + body + EXIT + b"\xcc" * 7 for body in bodies]
    start = place = pack.put(20, b"".join(codes), header=False)
    pack.used |= set(range(20, 30))
    for number, code in enumerate(codes):
        pack.symbols[place] = BpfSymbol(place, place + len(code), f"bpf__operations_{number}", False, 0)
        place += len(code)
    return start


def test_functions_that_replace_operations_of_the_kernel_lie_one_behind_the_other(pack: Pack) -> None:
    start = PACK + 20 * CHUNK
    call = near(0xE8, start + 4, next(iter(pack.programs)))
    operations(pack, [call, b"\x90" * 60, b""])
    (claim,) = pack.look()
    assert (claim.pieces, claim.faults) == (6, ())


def test_each_of_them_is_judged(pack: Pack) -> None:
    start = operations(pack, [b"", bytes.fromhex("0f22c0"), b""])
    ((address, reason),) = pack.faults()
    assert (PACK + address, "does not use" in reason or "register" in reason) == (start + 4 + 2 + 7 + 4, True)


def test_code_behind_the_last_of_them_is_found(pack: Pack) -> None:
    operations(pack, [b"", b""])
    pack.memory[20 * CHUNK + 40 : 20 * CHUNK + 43] = bytes.fromhex("0f22c0")
    ((_, reason),) = pack.faults()
    assert "bpf__operations_1" in reason


def test_a_header_that_claims_more_than_is_in_use_is_found(pack: Pack) -> None:
    pack.memory[8 * CHUNK : 8 * CHUNK + 4] = (1 << 20).to_bytes(4, "little")
    ((_, reason),) = pack.faults()
    assert reason == "is in use and no program's"


def trampoline(
    pack: Pack, original: int, *, name: str = "bpf_trampoline_7", program: int | None = None
) -> bytes:
    program = program or next(iter(pack.programs))
    code = bytes.fromhex("554889e5")
    for target in (program, original):
        code += near(0xE8, TRAMPOLINE_PAGE + len(code), target)
    code += EXIT
    pack.symbols[TRAMPOLINE_PAGE] = BpfSymbol(TRAMPOLINE_PAGE, TRAMPOLINE_PAGE + 4096, name, False, 0)
    return code


def test_a_trampoline_calls_programs_and_goes_on_behind_the_call_that_led_to_it(pack: Pack) -> None:
    code = trampoline(pack, PLACES["traced"] + SLIDE + 5)
    pack.world.heap(code, executable_at=TRAMPOLINE_PAGE)
    claims = pack.look()
    assert [claim.owner for claim in claims] == ["bpf_prog_pack", "bpf_trampoline_7"]
    assert not any(claim.faults for claim in claims)


def test_zeros_and_traps_behind_a_trampoline_are_no_code(pack: Pack) -> None:
    code = trampoline(pack, PLACES["traced"] + SLIDE + 5)
    pack.world.heap(code + b"\xcc" + bytes(40) + b"\xcc" * 20, executable_at=TRAMPOLINE_PAGE)
    assert not any(claim.faults for claim in pack.look())


def test_a_trampoline_that_calls_anything_else_is_found(pack: Pack) -> None:
    code = trampoline(pack, OTHER + SLIDE)
    pack.world.heap(code, executable_at=TRAMPOLINE_PAGE)
    _, claim = pack.look()
    (fault,) = claim.faults
    assert fault.address == TRAMPOLINE_PAGE + 9
    assert fault.reason == "bpf_trampoline_7: leads to other+0x0, where no such code may"


def replaced(pack: Pack) -> None:
    """Have a trampoline outlive its program, whose memory has a filter by now."""
    start = pack.program(24, b"", "bpf_prog_three")
    code = trampoline(pack, PLACES["traced"] + SLIDE + 5, program=start)
    pack.world.heap(code, executable_at=TRAMPOLINE_PAGE)
    del pack.symbols[start], pack.programs[start]
    pack.put(24, ENTRY + bytes.fromhex("8945f8") + EXIT)


def test_code_that_a_trampoline_had_before_may_lead_to_programs_that_are_gone(pack: Pack) -> None:
    replaced(pack)
    pack.trampolines = frozenset()
    claims = pack.look()
    assert not any(claim.faults for claim in claims)
    assert claims[1].trust == "code that is not entered any more"


@pytest.mark.parametrize("trampolines", [None, frozenset({TRAMPOLINE_PAGE})])
def test_code_that_a_trampoline_has_now_may_not(pack: Pack, trampolines: frozenset[int] | None) -> None:
    replaced(pack)
    pack.trampolines = trampolines
    (fault,) = pack.look()[1].faults
    assert (fault.address, "where no such code may" in fault.reason) == (TRAMPOLINE_PAGE + 4, True)


def test_code_that_a_function_still_calls_may_not(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the table of trampolines says: a processor comes there."""
    replaced(pack)
    pack.trampolines = frozenset()
    monkeypatch.setattr(SiteContent, "wrapping", lambda _: frozenset({TRAMPOLINE_PAGE}))
    (fault,) = pack.look()[1].faults
    assert fault.address == TRAMPOLINE_PAGE + 4


def test_code_that_a_trampoline_had_before_may_not_lead_into_the_kernel(pack: Pack) -> None:
    code = trampoline(pack, OTHER + SLIDE)
    pack.world.heap(code, executable_at=TRAMPOLINE_PAGE)
    pack.trampolines = frozenset()
    (fault,) = pack.look()[1].faults
    assert fault.reason == "bpf_trampoline_7: leads to other+0x0, where no such code may"


def test_other_generated_code_is_always_entered(pack: Pack) -> None:
    replaced(pack)
    pack.trampolines = frozenset()
    pack.symbols[TRAMPOLINE_PAGE] = replace(pack.symbols[TRAMPOLINE_PAGE], name="bpf__operations_init")
    assert pack.look()[1].faults


def test_a_forged_trampoline_owns_no_hostile_code(pack: Pack) -> None:
    trampoline(pack, OTHER + SLIDE)
    pack.world.heap(bytes.fromhex("0f20c00f22c0ffe7"), executable_at=TRAMPOLINE_PAGE)
    _, claim = pack.look()
    assert [fault.reason for fault in claim.faults] == [
        "bpf_trampoline_7: names a register that the BPF compiler does not use"
    ]


def test_what_did_not_change_is_judged_by_the_lists_of_now(pack: Pack) -> None:
    """Code is not decoded twice, but where it leads is asked in every look."""
    pages = BpfPages(pack.world.seen)
    assert not pack.look(pages)[0].faults
    start = next(start for start, symbol in pack.symbols.items() if symbol.name == "bpf_prog_two")
    pack.memory[4 * CHUNK : 5 * CHUNK] = b"\xcc" * CHUNK
    pack.used.discard(4)
    del pack.symbols[start], pack.programs[start]
    (claim,) = pack.look(pages)
    assert (claim.faults, claim.trust) == ((), "calls of programs that are gone")
    # Whatever is put there by somebody else is neither listed nor free.
    pack.put(4, ENTRY + EXIT)
    (fault,) = pack.look(pages)[0].faults
    assert "bpf_prog_one: leads to" in fault.reason


@pytest.mark.parametrize("what", ["memory", "bitmap", "lists"])
def test_a_pack_that_was_in_order_is_judged_again_when_anything_of_it_changes(pack: Pack, what: str) -> None:
    pages = BpfPages(pack.world.seen)
    (first,), (again,) = pack.look(pages), pack.look(pages)
    assert first == again and not first.faults
    if what == "memory":
        pack.memory[20 * CHUNK : 20 * CHUNK + 2] = b"\xeb\xfe"
    elif what == "bitmap":
        pack.used.discard(8)
    else:
        pack.programs.popitem()
    assert pack.look(pages)[0].faults


def test_more_new_code_than_a_look_reads_is_left_to_the_next(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile guest cannot keep a monitor busy; an honest one is judged whole after a few looks."""
    monkeypatch.setattr(bpf_images, "_MOST_DECODED", 1)
    pages = BpfPages(pack.world.seen)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            pack.look(pages)
    (claim,) = pack.look(pages)
    assert (claim.pieces, claim.faults) == (3, ())


def test_code_that_is_another_in_each_look_is_not_all_remembered(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest whose new code is never read to its end would have all of it kept, look after look."""
    monkeypatch.setattr(bpf_images, "_MOST_DECODED", 1)
    monkeypatch.setattr(remembered_code, "MOST_KEPT", 8 << 10)
    pages = BpfPages(pack.world.seen)
    for number in range(64):
        body = b"\xb8" + number.to_bytes(4, "little")
        pack.program(0, body + pack.call(0, len(ENTRY) + 5, BPF_HELPER + SLIDE), f"bpf_prog_{number}")
        with pytest.raises(UnavailableError):
            pack.look(pages)
    assert 0 < len(pages._images.read.before) <= 16
    assert len(pages._well.before) <= 16


def test_of_code_that_there_is_no_room_for_none_is_remembered(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page of RAM that is mapped as all packs is as much code as there is room for packs."""
    monkeypatch.setattr(remembered_code, "MOST_KEPT", 600)
    pages = BpfPages(pack.world.seen)
    (claim,) = pack.look(pages)
    assert (claim.pieces, claim.faults) == (3, ())
    assert len(pages._images.read.now) + len(pages._well.now) <= 1


@pytest.mark.parametrize(("room", "kept"), [(SIZE, 1), (SIZE - 1, 0)])
def test_packs_are_remembered_within_a_bound_and_judged_beyond_it(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    monkeypatch.setattr(bpf_pages, "_MOST_IN_PACKS", room)
    pages = BpfPages(pack.world.seen)
    first = pack.look(pages)
    assert len(pages._packs) == kept
    assert pack.look(pages) == first


def test_more_code_outside_of_packs_than_there_may_be_is_refused(pack: Pack) -> None:
    name = "bpf_trampoline_1"
    for number in range(9):
        start = TRAMPOLINE_PAGE + (number << 21)
        pack.symbols[start] = BpfSymbol(start, start + (1 << 21), name, program=False, structure=0)
    with pytest.raises(MalformedError):
        pack.look()
