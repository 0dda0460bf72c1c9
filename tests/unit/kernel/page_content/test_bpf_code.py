"""Code of BPF: what the compiler makes is legal, and what somebody writes by hand is not."""

from __future__ import annotations

import struct

import pytest

from affiant.kernel.page_content.bpf_code import CLASSIC, PROGRAM, TRAMPOLINE, CodeForm, CodeReport, read_code

AT = 0xFFFF_FFFF_C020_0014
HELPER = 0xFFFF_FFFF_8112_3450

# What Linux 6.12 makes of a classic filter: landing pad, place for tracing, frame, registers saved.
ENTRY = bytes.fromhex("f30f1efa0f1f440000554889e5f30f1efa534156415731c0")
BODY = bytes.fromhex("4889fb4c8bb3d0000000448b7b704489f74189c389c68945f84885c07400")
EXIT = bytes.fromhex("31c0415f415e5bc9c3cc")


def call(offset: int, target: int) -> bytes:
    return b"\xe8" + struct.pack("<i", target - (AT + offset + 5))


def image(*, entry: bytes = ENTRY, body: bytes = BODY, end: bytes = EXIT) -> bytes:
    helper = call(len(entry + body), HELPER)
    return entry + body + helper + end


def read(code: bytes, form: CodeForm = CLASSIC) -> CodeReport:
    return read_code(code, len(code), AT, form)


def reason(code: bytes, form: CodeForm = CLASSIC) -> str:
    wrong = read(code, form).wrong
    return "" if wrong is None else wrong[1]


@pytest.mark.parametrize("form", [CLASSIC, PROGRAM])
def test_what_the_compiler_makes_is_legal_and_tells_where_it_leads(form: CodeForm) -> None:
    report = read(image(), form)
    assert report.wrong is None
    assert [target for target, _ in report.leaves] == [HELPER]
    assert report.indirect == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("wrmsr", "0f30"),
        ("mov cr0", "0f22c0"),
        ("in", "ec"),
        ("sysret", "480f07"),
        ("swapgs", "0f01f8"),
        ("iret", "48cf"),
        ("far return", "48cb"),
        ("syscall", "0f05"),
        ("rdmsr", "0f32"),
        ("rep movs", "f348a5"),
        ("a breakpoint in the middle", "cc90"),
        ("memory by a constant address", "8b042500000080"),
        ("memory beside the code", "8b0500000000"),
        ("thread storage", "648b00"),
    ],
)
@pytest.mark.parametrize("form", [CLASSIC, PROGRAM, TRAMPOLINE])
def test_instructions_that_the_compiler_does_not_use_are_found(form: CodeForm, name: str, code: str) -> None:
    assert reason(image(body=BODY + bytes.fromhex(code)), form), name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a store through a pointer", "488937"),
        ("a store above the frame pointer", "48894508"),
        ("a store below the frame", "488985f8efffff"),
        ("a store with an index", "48894c05f8"),
        ("a store to the stack pointer", "48890424"),
        ("an atomic store", "f0480107"),
        ("an exchange with memory", "488707"),
        ("a pop into memory", "8f07"),
        ("another frame pointer", "4889c5"),
        ("a popped frame pointer", "5d"),
        ("another stack pointer", "4889c4"),
        ("a bigger stack", "4883c410"),
        ("an exchanged stack pointer", "4894"),
        ("a loaded stack pointer", "488b27"),
        ("a frame given up in the middle", "c990"),
        ("a jump through a register", "ffe0"),
        ("a call through a register", "ffd0"),
    ],
)
def test_a_filter_that_nobody_lists_reaches_nothing_but_its_frame(name: str, code: str) -> None:
    """Whoever puts code there and says it were a filter can do no harm with it."""
    tampered = image(body=BODY + bytes.fromhex(code))
    assert reason(tampered), name
    compiled = image(body=BODY + bytes.fromhex("4885c07400"))
    assert not reason(compiled)


def test_registers_are_saved_at_the_entry_alone() -> None:
    """After a branch that skips it, a push would lie where the return address is."""
    assert reason(image(body=BODY + bytes.fromhex("50")))
    assert reason(image(body=BODY + bytes.fromhex("59")))


def test_the_branch_history_may_be_cleared() -> None:
    clearing = bytes.fromhex("5051") + call(len(ENTRY + BODY) + 2, HELPER) + bytes.fromhex("5958")
    assert not reason(image(body=BODY + clearing))


@pytest.mark.parametrize("distance", [1, 2, 7])
def test_nobody_jumps_to_where_the_stack_is_not_as_it_must_be(distance: int) -> None:
    clearing = bytes.fromhex("5051") + call(len(ENTRY + BODY) + 4, HELPER) + bytes.fromhex("5958")
    assert reason(image(body=BODY + bytes([0xEB, distance]) + clearing))
    assert not reason(image(body=BODY + bytes([0xEB, len(clearing)]) + clearing))


def test_nobody_jumps_back_to_where_registers_are_saved() -> None:
    back = -(len(BODY) + 2 + 7) & 0xFF  # to the first push
    assert reason(image(body=BODY + bytes([0xEB, back])))


@pytest.mark.parametrize("form", [CLASSIC, PROGRAM])
def test_code_without_the_compilers_entry_is_found(form: CodeForm) -> None:
    assert "begin" in reason(image(entry=bytes.fromhex("9090")), form)


def test_a_jump_into_an_instruction_is_found() -> None:
    hidden = bytes.fromhex("eb01b80f22c0c3")  # jumps over the first byte of mov eax, imm32
    assert reason(image(body=BODY + hidden), PROGRAM) == "jumps into the middle of an instruction"


def test_code_cut_in_the_middle_of_an_instruction_is_found() -> None:
    code = image(end=b"")
    assert reason(code[:-2], PROGRAM)


def test_an_operand_like_filler_belongs_to_the_code() -> None:
    """Only filler tells where a filter ends: INT3, which an operand may look like."""
    code = image(end=bytes.fromhex("31c0415f415e5bc9e9cccccccc"))
    report = read_code(code + b"\xcc" * 8, len(code.rstrip(b"\xcc")), AT, CLASSIC, exact=False)
    assert report.wrong is None
    assert len(report.leaves) == 2


def test_a_program_writes_and_jumps_but_calls_no_register() -> None:
    assert not reason(image(body=BODY + bytes.fromhex("488937f0480107")), PROGRAM)
    report = read(image(body=BODY + bytes.fromhex("0faee8ffe1")), PROGRAM)
    assert (report.wrong, report.indirect) == (None, 1)
    assert "indirect call" in reason(image(body=BODY + bytes.fromhex("ffd3")), PROGRAM)


def test_a_trampoline_calls_what_it_wraps_and_no_other_register() -> None:
    assert not reason(bytes.fromhex("554889e5488b5d08ffd3c9c3"), TRAMPOLINE)
    assert reason(bytes.fromhex("554889e5488b5d08ffd0c9c3"), TRAMPOLINE)


@pytest.mark.parametrize(
    "code", ["488937", "48894508", "488985f8efffff", "4889c5", "f0480107", "5d", "4889c4", "5c"]
)
def test_a_trampoline_writes_below_its_frame_pointer_alone(code: str) -> None:
    """Whoever forges a symbol for such code gains no way to write memory."""
    begin, end = bytes.fromhex("554889e54883ec20488945f8"), bytes.fromhex("5bc94883c408c3")
    assert not reason(begin + end, TRAMPOLINE)
    assert reason(begin + bytes.fromhex(code) + end, TRAMPOLINE)
