"""Machine code that the BPF compiler may have made: which instructions it uses, and where they lead.

arch/x86/net/bpf_jit_comp.c. The compiler knows a few dozen instructions; code written by hand mostly uses
others. What it must not do differs by what the code is for:

* `CLASSIC` filters (sockets, seccomp) write to their own stack frame and nowhere else, and never branch
  indirectly: whoever put such code there gained nothing but arithmetic;
* a `PROGRAM` writes wherever its verifier let it, and may jump through a thunk or register (tail calls);
* a `TRAMPOLINE` calls what it wraps, and writes below its frame pointer alone; a `DISPATCHER` compares and
  jumps, and writes nothing.

Not judged: what a program computes and which memory it writes. Its own instructions, from which the
code was made, are not compiled again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register, RegisterExt

from affiant.kernel.page_content.stack_frame import frame_objection, moves_frame, writes_outside

__all__ = ["CLASSIC", "DISPATCHER", "PROGRAM", "TRAMPOLINE", "CodeForm", "CodeReport", "read_code"]

_MOVES = "MOV MOVZX MOVSX MOVSXD LEA XCHG PUSH POP LEAVE CMOVE CMOVNE CMOVA CMOVAE CMOVB CMOVBE"
_ARITHMETIC = (
    "ADD SUB AND OR XOR CMP TEST NEG NOT INC DEC IMUL MUL DIV IDIV CDQ CQO"
    " SHL SAL SHR SAR SHLX SHRX SARX ROL ROR BSWAP SHLD SHRD"
)
_ATOMIC = "XADD CMPXCHG"
_BRANCHES = "JMP CALL RET JA JAE JB JBE JE JNE JG JGE JL JLE JS JNS"
_OTHERS = "NOP ENDBR64 LFENCE"


def _mnemonics(*names: str) -> frozenset[int]:
    return frozenset(getattr(Mnemonic, name) for group in names for name in group.split())


_COMPILED: Final = _mnemonics(_MOVES, _ARITHMETIC, _ATOMIC, _BRANCHES, _OTHERS)
_NEAR: Final = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_ENDS: Final = frozenset({FlowControl.RETURN, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH})
_SEGMENTS: Final = frozenset({Register.NONE, Register.GS})
_CONSTANT: Final = frozenset({Register.NONE, Register.RIP, Register.EIP})
_CALL_OF_ORIGINAL: Final = Code.CALL_RM64
# A landing pad, the place where a trampoline is called, how often tail calls followed each other, the
# frame (emit_prologue()); of a callback for exceptions, the frame that it is given.
_PROLOGUE: Final = re.compile(
    rb"(\xf3\x0f\x1e\xfa)?(\x0f\x1f\x44\x00\x00|[\xe8\xe9].{4})?"
    rb"(\x31\xc0|\x48\x31\xc0|\x66\x90|\x0f\x1f\x00)?"
    rb"(\x55\x48\x89\xe5|\x48\x89\xf4\x48\x89\xd5)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class CodeForm:
    """What code may do by its kind: write beyond its frame, branch through registers, call through rbx.

    `framed` code begins with a frame of its own; what is `confined` is followed to tell that it stays there.
    """

    name: str
    writes: bool
    confined: bool
    indirect: bool
    wraps: bool
    framed: bool


CLASSIC: Final = CodeForm(
    "classic filter", writes=False, confined=True, indirect=False, wraps=False, framed=True
)
PROGRAM: Final = CodeForm("program", writes=True, confined=False, indirect=True, wraps=False, framed=True)
TRAMPOLINE: Final = CodeForm(
    "trampoline", writes=False, confined=False, indirect=True, wraps=True, framed=False
)
DISPATCHER: Final = CodeForm(
    "dispatcher", writes=False, confined=False, indirect=True, wraps=False, framed=False
)


@dataclass(frozen=True, slots=True)
class CodeReport:
    """A piece of code that was read to its end, or up to what is wrong with it.

    `leaves` are the addresses outside of the piece that it calls or jumps to, with the offset of a branch
    to each. `indirect` counts branches whose target nothing tells. `wrong` is the offset and reason of the
    first instruction that must not be there, None if there is none.
    """

    leaves: tuple[tuple[int, int], ...]
    indirect: int
    wrong: tuple[int, str] | None


def read_code(code: bytes, size: int, address: int, form: CodeForm, *, exact: bool = True) -> CodeReport:
    """Read `size` bytes of code that runs at an address; the last instruction must end there.

    Not `exact`: the size is that of the code without filler, whose last operand may look like filler.
    """
    decoder = Decoder(64, code, ip=address)
    read: list[Instruction] = []
    inner: list[tuple[int, int]] = []
    leaves: dict[int, int] = {}
    indirect = 0
    if form.framed and not _PROLOGUE.match(code[:size]):
        return CodeReport((), 0, (0, f"does not begin as a {form.name} does"))
    while decoder.position < size:
        offset = decoder.position
        instruction = decoder.decode()
        read.append(instruction)
        # INT3 behind what never returns stops a processor that runs on speculatively.
        trap = instruction.code == Code.INT3 and len(read) > 1 and read[-2].flow_control in _ENDS
        reason = "" if trap else _objection(instruction, form)
        if not reason and decoder.position > (size if exact else len(code)):
            reason = "ends in the middle of an instruction"
        if reason:
            return CodeReport(tuple(leaves.items()), indirect, (offset, reason))
        if instruction.flow_control in (FlowControl.INDIRECT_BRANCH, FlowControl.INDIRECT_CALL):
            indirect += 1
        elif instruction.op_count and instruction.op0_kind in _NEAR:
            target = instruction.near_branch_target
            if 0 <= target - address < size:
                inner.append((target - address, offset))
            else:
                leaves.setdefault(target, offset)
    starts = {instruction.ip - address for instruction in read}
    for target, offset in inner:
        if target not in starts:
            wrong = (offset, "jumps into the middle of an instruction")
            return CodeReport(tuple(leaves.items()), indirect, wrong)
    beyond = frame_objection(read) if form.confined and read else None
    if beyond is not None:
        wrong = (read[beyond[0]].ip - address, f"{beyond[1]}, which no {form.name} does")
        return CodeReport(tuple(leaves.items()), indirect, wrong)
    return CodeReport(tuple(leaves.items()), indirect, None)


def _objection(instruction: Instruction, form: CodeForm) -> str:
    if instruction.code == Code.INVALID:
        return "is no instruction"
    if instruction.mnemonic not in _COMPILED or instruction.code in (Code.RETFQ, Code.RETFD, Code.RETFW):
        return "is an instruction that the BPF compiler does not use"
    kinds = [instruction.op_kind(index) for index in range(instruction.op_count)]
    registers = (
        instruction.op_register(index) for index, kind in enumerate(kinds) if kind == OpKind.REGISTER
    )
    if not all(RegisterExt.is_gpr(register) for register in registers):
        return "names a register that the BPF compiler does not use"
    flow = instruction.flow_control
    if flow == FlowControl.INDIRECT_BRANCH and not (
        form.indirect and instruction.op0_kind == OpKind.REGISTER
    ):
        return f"is an indirect jump, which no {form.name} has"
    if flow == FlowControl.INDIRECT_CALL:
        wrapped = instruction.code == _CALL_OF_ORIGINAL and instruction.op0_register == Register.RBX
        if not (form.wraps and wrapped):
            return f"is an indirect call, which no {form.name} has"
    reason = _memory_objection(instruction, kinds)
    if not reason and not form.writes and not form.confined:
        reason = writes_outside(instruction) or moves_frame(instruction)
        reason = f"{reason}, which no {form.name} does" if reason else ""
    return reason


def _memory_objection(instruction: Instruction, kinds: Sequence[int]) -> str:
    if OpKind.MEMORY not in kinds or instruction.mnemonic in (Mnemonic.NOP, Mnemonic.LEA):
        return ""
    segment, base = instruction.segment_prefix, instruction.memory_base
    if segment not in _SEGMENTS:
        return "reaches through a segment that the BPF compiler does not use"
    if segment == Register.NONE and base in _CONSTANT:
        return "names memory by a constant address"
    return ""
