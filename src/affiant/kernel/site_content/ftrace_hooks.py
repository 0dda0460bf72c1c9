"""Who is called when ftrace is: the registered `struct ftrace_ops`, and the trampolines made for them.

The list and its members are data of the guest. What is believed of them: nothing. A trampoline must be
the kernel's own entry code (ftrace_caller or ftrace_regs_caller, as it was compared with the
reference), copied and changed as create_trampoline() does; it must call the function that its ops
names; and that function must be one of this kernel's image,
or of a module whose code is what its package holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.site_content.branches import CALL, JUMP
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.instructions import meaning
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import AffiantError, MalformedError

__all__ = ["FtraceHooks", "FtraceOps"]

_OPS: Final = "struct ftrace_ops"
_MOST_OPS: Final = 4096
_LARGEST_TRAMPOLINE: Final = 4096
_RETURN_SIZE: Final = 5  # RET_SIZE with return thunks
_OP_LOAD: Final = bytes.fromhex("488b15")  # movq disp32(%rip), %rdx
_OP_LOAD_SIZE: Final = 7
_CALL_SIZE: Final = 5
_CALLS: Final = {"ftrace_caller": "ftrace_call", "ftrace_regs_caller": "ftrace_regs_call"}
# What ftrace_ops_get_func() and update_ftrace_function() may put between the entry code and a handler.
_GO_BETWEENS: Final = (
    "ftrace_ops_assist_func",
    "ftrace_ops_list_func",
    "arch_ftrace_ops_list_func",
    "ftrace_ops_no_ops",
    "ftrace_stub",
    "ftrace_graph_func",
)


@dataclass(frozen=True, slots=True)
class FtraceOps:
    """One registered `struct ftrace_ops` as it was at one moment."""

    address: int
    function: int
    trampoline: int


class FtraceHooks:
    """The registered ops of one moment; `refresh` reads them anew."""

    def __init__(self, image: KernelImage, verified_text: Callable[[int, int], bytes]) -> None:
        """`verified_text` returns what stands at an address of the kernel's text, as far as it was judged."""
        self._image = image
        self._text = verified_text
        self._between = {
            address for name in _GO_BETWEENS if (address := image.program.find(name)) is not None
        }
        self.ops: tuple[FtraceOps, ...] = ()
        self._by_trampoline: dict[int, list[FtraceOps]] = {}
        self._functions: frozenset[int] | None = None
        self._kept: dict[int, list[FtraceOps]] | None = None

    def refresh(self) -> None:
        """Read the list of registered ops. Raises MemoryFault or MalformedError if it has no end."""
        program = self._image.program
        end = program.find("ftrace_list_end")
        head = program.find("ftrace_ops_list")
        following = program.offset(_OPS, "next")
        found: list[FtraceOps] = []
        seen: set[int] = set()
        address = program.word(head) if head is not None else 0
        while address not in (0, end):
            if address in seen or len(seen) >= _MOST_OPS:
                raise MalformedError("the list of ftrace_ops runs in a circle, or has no end")
            seen.add(address)
            found.append(self._ops_at(address))
            address = program.word(address + following)
        # What is being unregistered is called, off the list, until its sites are changed (ftrace_shutdown()).
        leaving = program.find("removed_ops")
        address = program.word(leaving) if leaving is not None else 0
        if address and address not in seen:
            found.append(self._ops_at(address))
        self.ops, self._functions, self._kept = tuple(found), None, None
        self._by_trampoline = _by_trampoline(found)

    def _ops_at(self, address: int) -> FtraceOps:
        copy = self._image.program.copy(_OPS, address)
        return FtraceOps(address, copy.integer("func"), copy.integer("trampoline"))

    def strangers(self) -> tuple[FtraceOps, ...]:
        """Return the ops whose function is none that is known."""
        known = self._known_functions()
        return tuple(ops for ops in self.ops if ops.function not in known)

    def _known_functions(self) -> frozenset[int]:
        """Return those functions of registered ops that are known: all are asked about at once."""
        if self._functions is None:
            self._functions = self._image.callable_among({ops.function for ops in self.ops})
        return self._functions

    def entered_by(self, function: int) -> str:
        """Return why the entry code may not call `function` instead of ftrace_stub; "" if it may."""
        if function in self._between or any(ops.function == function for ops in self.ops):
            return "" if self._is_function(function) else "calls a function outside of the kernel image"
        return "calls a function that no registered ftrace_ops names"

    def objection_to(self, trampoline: int) -> tuple[str, int]:
        """Return why a site must not call an address outside of the image, and who is to blame.

        The reason is "" if it may; nobody (0) is to blame for what a healthy kernel does for a moment.
        """
        owners = self._by_trampoline.get(trampoline)
        if not owners:
            if self._is_left(trampoline):
                return "calls a trampoline that its ftrace_ops has left", 0
            return "calls what no registered ftrace_ops has as its trampoline", trampoline
        reasons = [(self._compare(ops), ops) for ops in owners]
        for reason, ops in reasons:
            if not reason:
                if ops.function in self._known_functions():
                    return "", 0
                return "is hooked by a function outside of the kernel image", ops.function
        return reasons[0][0], trampoline

    def _is_left(self, trampoline: int) -> bool:
        """Tell whether an ops that is not registered keeps a trampoline, and it is one.

        Between the list of those that are registered and `removed_ops`, an ops that is being unregistered is
        for a moment on neither.
        """
        if self._kept is None:
            self._kept = _by_trampoline(self._with_trampolines())
        return any(not self.judge(ops)[1] for ops in self._kept.get(trampoline, ()))

    def _with_trampolines(self) -> tuple[FtraceOps, ...]:
        """Return the ops that keep a trampoline; none where nobody can tell."""
        program = self._image.program
        head = program.find("ftrace_ops_trampoline_list")
        if head is None:
            return ()
        offset = program.offset(_OPS, "list")
        try:
            addresses = list_entries(program, head, offset=offset, maximum=_MOST_OPS)
            return tuple(self._ops_at(address) for address in addresses)
        except AffiantError:
            return ()

    def judge(self, ops: FtraceOps) -> tuple[int, str]:
        """Return how long the trampoline of an ops is by the kernel's own code, and what is wrong with it.

        Some ops keep their trampoline, and what it calls, while they are not registered; `refresh` tells
        which are. Raises UnavailableError if this kernel makes no trampolines.
        """
        program = self._image.program
        registered = any(ops.address == each.address for each in self.ops)
        sizes, reasons = [], []
        for kind in ("ftrace_caller", "ftrace_regs_caller"):
            size = program.address(f"{kind}_end") - program.address(kind) + _RETURN_SIZE + 8
            called = ops if registered else replace(ops, function=self._called(kind, ops))
            reason = self._quietly(kind, called)
            if not reason:
                known = self._is_function(called.function)
                return size, "" if known else "calls a function outside of the kernel image"
            sizes.append(size)
            reasons.append(reason)
        return max(sizes), reasons[0]

    def _called(self, kind: str, ops: FtraceOps) -> int:
        """Return what a trampoline calls, as one of its kind would."""
        call = self._image.program.address(_CALLS[kind]) - self._image.program.address(kind)
        try:
            copy = self._image.program.read(ops.trampoline + call, _CALL_SIZE)
        except MemoryFault:
            return 0
        return ops.trampoline + call + _CALL_SIZE + _signed(copy[1:])

    def _is_function(self, address: int) -> bool:
        return self._image.may_be_called(address)

    def _compare(self, ops: FtraceOps) -> str:
        """Return how a trampoline differs from both of its possible originals; "" if from one it does not."""
        reasons = []
        for kind in ("ftrace_caller", "ftrace_regs_caller"):
            reason = self._quietly(kind, ops)
            if not reason:
                return ""
            reasons.append(reason)
        return reasons[0]

    def _quietly(self, kind: str, ops: FtraceOps) -> str:
        try:
            return self._differs_from(kind, ops)
        except MemoryFault:
            return "calls a trampoline that is not mapped"
        except AffiantError as error:
            return str(error)

    def _differs_from(self, kind: str, ops: FtraceOps) -> str:
        program = self._image.program
        start, end = program.address(kind), program.address(f"{kind}_end")
        call = program.address(_CALLS[kind]) - start
        load = program.address(f"{kind}_op_ptr") - start
        size = end - start
        if not 0 < size <= _LARGEST_TRAMPOLINE:
            raise MalformedError(f"{kind} of {size} bytes")
        copy = program.read(ops.trampoline, size + _RETURN_SIZE + 8)
        expected = bytearray(self._text(start, size))
        # What create_trampoline() changes, each change taken back if it is the right one.
        pointer = ops.trampoline + size + _RETURN_SIZE
        loads_from = ops.trampoline + load + _OP_LOAD_SIZE + _signed(copy[load + 3 : load + _OP_LOAD_SIZE])
        calls = ops.trampoline + call + _CALL_SIZE + _signed(copy[call + 1 : call + _CALL_SIZE])
        if copy[load : load + 3] != _OP_LOAD or loads_from != pointer:
            return "calls a trampoline that loads something else than its ftrace_ops"
        if int.from_bytes(copy[-8:], "little") != ops.address:
            return "calls a trampoline that passes another ftrace_ops than its own"
        if copy[call] != CALL or calls not in (ops.function, *self._between):
            return "calls a trampoline that calls another function than its ftrace_ops names"
        if not self._returns(copy[size : size + _RETURN_SIZE], ops.trampoline + size):
            return "calls a trampoline that does not return"
        live = bytearray(copy[:size])
        for place, length in ((load, _OP_LOAD_SIZE), (call, _CALL_SIZE)):
            live[place : place + length] = expected[place : place + length] = b"\x90" * length
        self._skip_direct_jump(kind, expected, start)
        same = meaning(bytes(live), ops.trampoline) == meaning(
            bytes(expected), start, copied_to=ops.trampoline, inner=size
        )
        return "" if same else "calls a trampoline that is no copy of the kernel's entry code"

    def _skip_direct_jump(self, kind: str, expected: bytearray, start: int) -> None:
        """The jump to direct callers becomes a no-operation in a copy of ftrace_regs_caller."""
        jump = self._image.program.find(f"{kind}_jmp")
        if jump is not None and 0 <= jump - start < len(expected) - 1 and expected[jump - start] == 0x75:
            expected[jump - start : jump - start + 2] = b"\x66\x90"

    def _returns(self, code: bytes, address: int) -> bool:
        if code[:2] == b"\xc3\xcc":
            return True
        target = address + _CALL_SIZE + _signed(code[1:5])
        return code[0] == JUMP and target in set(self._image.named(r"\w+_return_thunk").values())


def _by_trampoline(every: Iterable[FtraceOps]) -> dict[int, list[FtraceOps]]:
    found: dict[int, list[FtraceOps]] = {}
    for ops in every:
        found.setdefault(ops.trampoline, []).append(ops)
    return found


def _signed(displacement: bytes) -> int:
    return int.from_bytes(displacement, "little", signed=True)
