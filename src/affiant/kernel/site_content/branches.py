"""The bytes of branches and of what the kernel pads with (Intel SDM vol. 2; arch/x86/include/asm/nops.h)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CALL", "INT3", "JUMP", "NOP5", "NOPS", "branch", "branches", "five_bytes", "targets"]

CALL: Final = 0xE8
JUMP: Final = 0xE9
INT3: Final = 0xCC

_NOP8: Final = bytes.fromhex("0f1f840000000000")
NOPS: Final = (
    b"",
    b"\x90",
    b"\x66\x90",
    bytes.fromhex("0f1f00"),
    bytes.fromhex("0f1f4000"),
    bytes.fromhex("0f1f440000"),
    bytes.fromhex("660f1f440000"),
    bytes.fromhex("0f1f8000000000"),
    _NOP8,
    b"\x2e" + _NOP8,
    b"\x66\x2e" + _NOP8,
    b"\x66\x66\x2e" + _NOP8,
)
"""The kernel's no-operation of each length; lengths above 8 since 6.10."""

NOP5: Final = NOPS[5]
_FIVE_BYTES: Final = np.uint64((1 << 40) - 1)


def branch(opcode: int, address: int, target: int) -> bytes:
    """Return the five bytes of a near call or jump at `address`; the displacement wraps as the CPU's does."""
    return bytes([opcode]) + ((target - address - 5) & 0xFFFF_FFFF).to_bytes(4, "little")


def branches(
    opcode: int, addresses: NDArray[np.uint64], destinations: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """Return a row of five bytes for each near call or jump."""
    rows = np.empty((len(addresses), 5), dtype=np.uint8)
    rows[:, 0] = opcode
    distances = (destinations - addresses - np.uint64(5)).astype("<u4")
    rows[:, 1:] = np.ascontiguousarray(distances).view(np.uint8).reshape(-1, 4)
    return rows


def five_bytes(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the first five bytes of each row (of eight or more) as a number, to be compared with others."""
    words: NDArray[np.uint64] = np.ascontiguousarray(rows[:, :8]).view(np.uint64)[:, 0]
    return words & _FIVE_BYTES


def targets(addresses: NDArray[np.uint64], rows: NDArray[np.uint8], *, at: int = 1) -> NDArray[np.uint64]:
    """Return where the four-byte displacement at column `at` of each row leads (it ends the instruction)."""
    distances = np.ascontiguousarray(rows[:, at : at + 4]).view("<i4")[:, 0].astype(np.int64)
    return addresses + np.uint64(at + 4) + distances.view(np.uint64)
