"""Code that keeps to its stack frame: it writes below its frame pointer and nowhere else.

Generated trampolines write so. A classic filter is on no list, so that anyone who marks memory of a pack as
used could have put it there: what it may do is narrowed further, until it does not matter whose it is. Its
frame pointer is set once, registers are saved before the first branch and restored before the return, and
between these the stack moves only around a call of the code that clears the branch history (push, push,
call, pop, pop).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind, Register, RegisterExt

__all__ = ["frame_objection", "moves_frame", "writes_outside"]

_STACK: Final = frozenset({Register.RSP, Register.RBP})
_UNTOUCHED: Final = frozenset({Mnemonic.CMP, Mnemonic.TEST, Mnemonic.PUSH})
_BOTH_WRITTEN: Final = frozenset({Mnemonic.XCHG, Mnemonic.XADD})
_READS_ONLY: Final = frozenset(
    {
        Mnemonic.CMP,
        Mnemonic.TEST,
        Mnemonic.PUSH,
        Mnemonic.NOP,
        Mnemonic.LEA,
        Mnemonic.MUL,
        Mnemonic.IMUL,
        Mnemonic.DIV,
        Mnemonic.IDIV,
    }
)
_CLEARING: Final = (Mnemonic.PUSH, Mnemonic.PUSH, Mnemonic.CALL, Mnemonic.POP, Mnemonic.POP)
_LARGEST_FRAME: Final = 4096
_ALL: Final = (1 << 64) - 1


def frame_objection(code: Sequence[Instruction]) -> tuple[int, str] | None:
    """Return the index of the first instruction that may reach beyond the frame, and why; None if none does.

    `code` begins at the function's entry. Jumps must lead to instructions of it, or out of it.
    """
    prologue = next(
        (index for index, each in enumerate(code) if each.flow_control != FlowControl.NEXT), len(code)
    )
    clearing = {
        start + step
        for start in range(prologue - 2, len(code) - len(_CLEARING) + 1)
        if start >= 0 and tuple(each.mnemonic for each in code[start : start + 5]) == _CLEARING
        for step in range(len(_CLEARING))
    }
    closed = {code[index].ip for index in clearing if index - 1 in clearing}
    first = code[prologue].ip if prologue < len(code) else 0
    for index, each in enumerate(code):
        if _branches_within(each, code) and (each.near_branch_target in closed or _backward(each, first)):
            return index, "jumps to where its stack is not what it must be"
        reason = _moves(code, index, saving=index < prologue, clearing=index in clearing)
        reason = reason or writes_outside(each)
        if reason:
            return index, reason
    return None


def _branches_within(each: Instruction, code: Sequence[Instruction]) -> bool:
    near = each.is_jmp_short_or_near or each.is_jcc_short_or_near
    return bool(near) and code[0].ip <= each.near_branch_target <= code[-1].ip


def _backward(each: Instruction, first: int) -> bool:
    """Tell whether a branch leads into the part that saves registers."""
    return bool(each.near_branch_target < first)


def _moves(code: Sequence[Instruction], index: int, *, saving: bool, clearing: bool) -> str:
    each = code[index]
    if each.mnemonic == Mnemonic.LEAVE:
        following = code[index + 1] if index + 1 < len(code) else each
        left = following.mnemonic == Mnemonic.RET or following.is_jmp_short_or_near
        outside = not _branches_within(following, code)
        return "" if left and outside else "gives up its frame and goes on"
    if each.mnemonic == Mnemonic.PUSH:
        return "" if saving or clearing else "moves its stack"
    if each.mnemonic == Mnemonic.POP:
        then = next((later.mnemonic for later in code[index:] if later.mnemonic != Mnemonic.POP), None)
        own = each.op0_kind == OpKind.REGISTER and each.op0_register not in _STACK
        return "" if own and (clearing or then == Mnemonic.LEAVE) else "moves its stack"
    reason = moves_frame(each)
    if reason or not _written_registers(each) & _STACK:
        return reason
    return "" if saving and each.mnemonic != Mnemonic.ADD else "moves its stack"


def moves_frame(each: Instruction) -> str:
    """Return why an instruction moves stack or frame otherwise than a function's entry and exit do."""
    written = _written_registers(each)
    if not written & _STACK:
        return ""
    if each.op_count != 2:
        return "moves its stack"
    if Register.RBP in written:
        entry = each.mnemonic == Mnemonic.MOV and each.op1_kind == OpKind.REGISTER
        return "" if entry and each.op1_register == Register.RSP else "moves its frame"
    constant = each.op1_kind not in (OpKind.REGISTER, OpKind.MEMORY)
    sized = each.mnemonic in (Mnemonic.ADD, Mnemonic.SUB) and constant and each.immediate(1) <= _LARGEST_FRAME
    return "" if sized else "moves its stack"


def _written_registers(each: Instruction) -> frozenset[int]:
    if each.mnemonic in _UNTOUCHED:
        return frozenset()
    count = 2 if each.mnemonic in _BOTH_WRITTEN else 1
    return frozenset(
        RegisterExt.full_register(each.op_register(index))
        for index in range(min(count, each.op_count))
        if each.op_kind(index) == OpKind.REGISTER
    )


def writes_outside(each: Instruction) -> str:
    """Return why an instruction writes memory that is not below the frame pointer, "" if it does not."""
    if each.mnemonic in _READS_ONLY:
        return ""
    if not any(each.op_kind(index) == OpKind.MEMORY for index in range(min(1, each.op_count))):
        return ""
    if each.segment_prefix == Register.GS and each.mnemonic in (Mnemonic.SAR, Mnemonic.INC):
        return ""  # how deep calls are, counted for the processor's return predictor
    distance = _ALL + 1 - each.memory_displacement
    own = each.memory_base == Register.RBP and each.memory_index == Register.NONE
    return "" if own and 0 < distance <= _LARGEST_FRAME else "writes outside of its frame"
