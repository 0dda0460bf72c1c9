"""Two pieces of code compared by what they do: the same instructions at the same places, padding aside.

When the kernel copies a replacement over a site it moves relative operands, shortens jumps and merges
padding, each version of it a little differently. None of that changes what the code does. So both
pieces are decoded, operands become absolute, and padding is dropped: of the known no-operations, of
INT3 behind a branch that never returns, and of a jump to what follows, over INT3, a no-operation or
nothing. All else must be equal byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iced_x86 import Code, Decoder, FlowControl, Instruction, OpKind

from affiant.kernel.site_content.branches import INT3, NOPS

__all__ = ["Meaning", "disassemble", "length_of", "meaning"]

_LONGEST = 512
_ALL = (1 << 64) - 1
_NEAR = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_KNOWN_NOPS = frozenset(NOPS[1:])
_SHORT_JUMP, _NEAR_JUMP = Code.JMP_REL8_64, Code.JMP_REL32_64


@dataclass(frozen=True, slots=True)
class _Operation:
    """An instruction at an offset: its bytes without relative operand, and the address that it leads to."""

    offset: int
    code: bytes
    target: int | None


Meaning = tuple[_Operation, ...]
"""What a piece of code does; equal for pieces that do the same at one place."""


def meaning(code: bytes, address: int, *, copied_to: int | None = None, inner: int = 0) -> Meaning | None:
    """Return what `code` does when it runs at `address`, None if it is not whole instructions.

    `copied_to`: what it does after the kernel copied it there, which moves with it what leads into its
    own first `inner` bytes and keeps all other targets.
    """
    if len(code) > _LONGEST:
        return None
    move = 0 if copied_to is None else copied_to - address
    operations: list[_Operation] = []
    position, dead = 0, False
    decoder = Decoder(64, code, ip=address)
    while position < len(code):
        decoder.position, decoder.ip = position, address + position & _ALL
        instruction = decoder.decode()
        if instruction.code == Code.INVALID:
            return None
        piece = code[position : position + instruction.len]
        operation = _operation(piece, position, instruction, address)
        if move and operation.target is not None and address <= operation.target <= address + inner:
            operation = replace(operation, target=operation.target + move)
        skipped = _padding(code, address + move, operation, instruction, dead=dead)
        if skipped:
            position += skipped
            continue
        operations.append(operation)
        dead = instruction.flow_control in (
            FlowControl.UNCONDITIONAL_BRANCH,
            FlowControl.INDIRECT_BRANCH,
            FlowControl.RETURN,
        )
        position += instruction.len
    return tuple(operations)


def length_of(code: bytes) -> int:
    """Return the length of the instruction that code begins with, 0 if it is none."""
    instruction = Decoder(64, code[:_LONGEST]).decode()
    return 0 if instruction.code == Code.INVALID else instruction.len


def disassemble(code: bytes, address: int, *, most: int = 8) -> tuple[str, ...]:
    """Return up to `most` instructions for people, `(bad)` where there are none."""
    return tuple(
        f"{instruction:n}" if instruction.code != Code.INVALID else "(bad)"
        for instruction, _ in zip(Decoder(64, code[:_LONGEST], ip=address), range(most), strict=False)
    )


def _padding(
    code: bytes, address: int, operation: _Operation, instruction: Instruction, *, dead: bool
) -> int:
    """Return how many bytes are padding where an instruction of code at `address` stands, 0 for none."""
    position = operation.offset
    piece = code[position : position + instruction.len]
    if piece in _KNOWN_NOPS:
        return len(piece)
    if dead and piece[0] == INT3:
        return 1
    if instruction.code in (_SHORT_JUMP, _NEAR_JUMP) and operation.target is not None:
        # A jump over INT3 (add_nop() since 6.10) or a no-operation (recompute_jump() before),
        # or to the instruction behind it.
        over = (operation.target - address & _ALL) - position
        filling = code[position + instruction.len : position + over]
        nothing = filling in _KNOWN_NOPS or filling == bytes([INT3]) * len(filling)
        if instruction.len <= over <= len(code) - position and nothing:
            return over
    return 0


def _operation(piece: bytes, position: int, instruction: Instruction, address: int) -> _Operation:
    if instruction.op_count and instruction.op0_kind in _NEAR:
        return _Operation(position, _without_distance(piece, instruction), instruction.near_branch_target)
    if instruction.is_ip_rel_memory_operand:
        decoder = Decoder(64, piece, ip=address + position & _ALL)
        offsets = decoder.get_constant_offsets(decoder.decode())
        start, width = offsets.displacement_offset, offsets.displacement_size
        code = piece[:start] + bytes(width) + piece[start + width :]
        return _Operation(position, code, instruction.ip_rel_memory_address)
    return _Operation(position, piece, None)


def _without_distance(piece: bytes, instruction: Instruction) -> bytes:
    """Return a branch without its displacement; near and short forms of one branch are alike."""
    if instruction.code in (_SHORT_JUMP, _NEAR_JUMP):
        return b"jmp"
    if instruction.is_jcc_short_or_near:
        return b"jcc" + bytes([instruction.condition_code])
    width = 4 if len(piece) >= 5 else 1
    return piece[:-width]
