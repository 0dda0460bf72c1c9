"""Kprobes: breakpoints that the kernel puts anywhere into its text for whoever registered them.

kernel/kprobes.c, arch/x86/kernel/kprobes/. A registered probe explains INT3 in place of the byte that it
saved, or (optimised) a jump to a slot that the kernel filled from its template. Both are told as what
they are. A probe whose handler lies outside of the kernel image is an objection that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import StructCopy
from affiant.kernel.site_content.branches import CALL, INT3, JUMP
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.instructions import length_of, meaning
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["Probe", "Probes"]

_KPROBE: Final = "struct kprobe"
_OPTIMIZED: Final = "struct optimized_kprobe"
_KRETPROBE: Final = "struct kretprobe"
_BUCKETS: Final = 64  # KPROBE_TABLE_SIZE
_MOST_PROBES: Final = 65536
_JUMP_SIZE: Final = 5
_HANDLERS: Final = ("pre_handler", "post_handler")
_RETURN_HANDLERS: Final = ("handler", "entry_handler")
_LARGEST_TEMPLATE: Final = 4096
_LONGEST_COPY: Final = 20  # MAX_OPTIMIZED_LENGTH: INT3 in the middle of a long instruction, and five bytes
_ARGUMENT: Final = b"\x48\xbf"  # movabs $imm64, %rdi


@dataclass(frozen=True, slots=True)
class Probe:
    """A registered probe: where, the byte it saved, and what is called (addresses, without zeros).

    `slot` is where its copy of the probed instruction stands, `detour` where a jump in its place would lead;
    0 where it has none.
    """

    address: int
    structure: int
    saved: int
    handlers: tuple[int, ...]
    slot: int = 0
    detour: int = 0


class Probes:
    """The probes of one moment; `refresh` reads them anew."""

    def __init__(self, image: KernelImage, verified_text: Callable[[int, int], bytes]) -> None:
        """`verified_text` returns what stands at an address of the kernel's text, as far as it was judged."""
        self._image = image
        self._text = verified_text
        self.by_address: dict[int, Probe] = {}
        self._by_slot: dict[int, Probe] = {}
        self._by_detour: dict[int, Probe] = {}
        self._met = 0

    def refresh(self) -> None:
        """Read the table of probes.

        Raises MemoryFault or MalformedError if it cannot be followed; a kernel without kprobes has none.
        """
        program = self._image.program
        table = program.find("kprobe_table")
        self.by_address, self._by_slot, self._by_detour = {}, {}, {}
        self._met = 0
        if table is None or not program.has_type(_KPROBE):
            return
        heads = program.read(table, 8 * _BUCKETS)
        offset = program.offset(_KPROBE, "hlist")
        for bucket in range(_BUCKETS):
            node = int.from_bytes(heads[8 * bucket : 8 * bucket + 8], "little")
            seen: set[int] = set()
            while node:
                if node in seen:
                    raise MalformedError("the table of kprobes runs in a circle")
                seen.add(node)
                self._count()
                copy = program.copy(_KPROBE, node - offset)
                probe = self._probe(copy)
                self.by_address[probe.address] = probe
                self._by_slot[probe.slot] = self._by_detour[probe.detour] = probe
                node = copy.integer("hlist.next")

    def strangers(self, probes: Iterable[Probe]) -> frozenset[int]:
        """Return the handlers of some probes that are no functions that are known."""
        handlers = {handler for probe in probes for handler in probe.handlers}
        return frozenset(handlers - self._image.callable_among(handlers))

    def explains(self, address: int, found: bytes, verified: bytes) -> int:
        """Return how many bytes at an address a probe has changed; 0 if none may have changed them so.

        `found` and `verified` are the live and the judged bytes there, 32 if there are as many.
        """
        probe = self.by_address.get(address)
        if probe is None or not found or not verified:
            return 0
        if found[0] == INT3 and probe.saved == verified[0]:
            return 1
        if len(found) < _JUMP_SIZE or found[0] != JUMP or probe.saved != verified[0]:
            return 0
        slot = address + _JUMP_SIZE + _signed(found[1:_JUMP_SIZE])
        return _JUMP_SIZE if self._is_slot_of(probe, slot, verified) else 0

    def slot_objection(self, place: int, content: bytes, *, in_use: bool) -> tuple[str, bytes]:
        """Return why a slot for a probed instruction must not hold `content`, and what nobody judged of it.

        The reason is "" if it may. A probe in a module is taken for what it is: its text is not at hand.
        """
        owner = self._by_slot.get(place)
        if in_use and owner is None:
            return "is a slot in use by no registered probe", content
        if owner is not None and not self._image.contains(owner.address):
            return "", content
        size = length_of(content)
        rest = content[size:]
        if not size or rest[:1] not in (bytes([INT3]), bytes([JUMP])):
            return "is no copy of an instruction", content
        returns = rest[0] == JUMP
        back = place + size + _JUMP_SIZE + _signed(rest[1:_JUMP_SIZE])
        address = owner.address if owner is not None else back - size
        if returns and back != address + size:
            return "is a copy that goes on elsewhere than behind its probe", content
        if owner is None and not (returns and self._image.contains(address)):
            # One instruction and INT3 lead nowhere; behind a jump into a module is a module's text.
            return "", rest[1:] if not returns else content
        if not self._is_copy(content[:size], place, address):
            return "is no copy of the kernel's instruction", content
        return "", rest[_JUMP_SIZE if returns else 1 :]

    def detour_objection(self, place: int, content: bytes, *, in_use: bool) -> tuple[str, bytes]:
        """Return why a slot for an optimised probe must not hold `content`, and what nobody judged of it."""
        owner = self._by_detour.get(place)
        if in_use and owner is None:
            return "is a slot in use by no registered probe", content
        found = self._unfold(place, content)
        if found is None:
            return "does not begin as the kernel's template does", content
        structure, tail = found
        if owner is not None and structure != owner.structure:
            return "passes another probe than its own", content
        start = place + len(content) - len(tail)
        for size in range(_JUMP_SIZE, min(_LONGEST_COPY, len(tail) - _JUMP_SIZE) + 1):
            address = start + _JUMP_SIZE + _signed(tail[size + 1 : size + _JUMP_SIZE])
            if tail[size] != JUMP or (owner is not None and address != owner.address):
                continue
            rest = tail[size + _JUMP_SIZE :]
            if not self._image.contains(address):
                return "", content
            if self._is_copy(tail[:size], start, address):
                return "", rest
        return "holds no copy of the kernel's instructions", content

    def _is_copy(self, code: bytes, place: int, address: int) -> bool:
        """Tell whether code is that of the kernel's text at an address, as it was or for another place."""
        try:
            original = self._text(address, len(code))
        except MemoryFault:
            return False
        same = meaning(original, address)
        return code == original or (same is not None and meaning(code, place) == same)

    def _is_slot_of(self, probe: Probe, slot: int, verified: bytes) -> bool:
        """Tell whether a slot holds what arch_prepare_optimized_kprobe() fills it with for this probe."""
        if self._image.contains(slot):
            return False
        try:
            size = len(self._template()[0]) + _LONGEST_COPY + _JUMP_SIZE
            live = self._image.program.read(slot, size)
            found = self._unfold(slot, live)
        except (UnavailableError, MemoryFault):
            return False
        if found is None or found[0] != probe.structure:
            return False
        return _continues(found[1], slot + size - len(found[1]), verified, probe.address)

    def _unfold(self, place: int, content: bytes) -> tuple[int, bytes] | None:
        """Return the probe that a filled template passes on, and what follows the template, or None.

        Raises UnavailableError if this kernel has no template.
        """
        template, value, call, clac = self._template()
        callback = self._image.program.address("optimized_callback")
        head, tail = content[: len(template)], content[len(template) :]
        structure = head[value + 2 : value + 10]
        expected = bytearray(template)
        expected[value : value + 10] = _ARGUMENT + structure
        distance = (callback - (place + call + _JUMP_SIZE)) & 0xFFFF_FFFF
        expected[call : call + _JUMP_SIZE] = bytes([CALL]) + distance.to_bytes(4, "little")
        without_access = bytearray(expected)
        without_access[clac : clac + 3] = bytes.fromhex("0f01ca")
        if head not in (bytes(expected), bytes(without_access)):
            return None
        return int.from_bytes(structure, "little"), tail

    def _template(self) -> tuple[bytes, int, int, int]:
        """Return the template, and where its value, its call and its CLAC stand."""
        program = self._image.program
        entry, end = program.address("optprobe_template_entry"), program.address("optprobe_template_end")
        value, call, clac = (
            program.address(f"optprobe_template_{name}") - entry for name in ("val", "call", "clac")
        )
        try:
            template = bytes(program.reference.read(entry - self._image.slide, end - entry))
        except KeyError:
            raise UnavailableError("the reference does not store the template of probes") from None
        if len(template) > _LARGEST_TEMPLATE:
            raise UnavailableError("the template of probes is too large")
        return template, value, call, clac

    def _probe(self, copy: StructCopy) -> Probe:
        program = self._image.program
        handlers = {copy.integer(member) for member in _HANDLERS}
        detour = 0
        if copy.integer("pre_handler") == program.find("aggr_pre_handler"):
            if program.has_type(_OPTIMIZED):
                outer = program.copy(_OPTIMIZED, copy.address - program.offset(_OPTIMIZED, "kp"))
                detour = outer.integer("optinsn.insn")
            # Several probes at one place: the one in the table only leads to the others.
            head = copy.at("list")
            for other in list_entries(
                program, head, offset=program.offset(_KPROBE, "list"), maximum=_MOST_PROBES
            ):
                self._count()
                handlers |= self._handlers(program.copy(_KPROBE, other))
        else:
            handlers |= self._handlers(copy)
        return Probe(
            copy.integer("addr"),
            copy.address,
            copy.integer("opcode") & 0xFF,
            tuple(sorted(handlers - {0})),
            copy.integer("ainsn.insn") if "ainsn.insn" in copy else 0,
            detour,
        )

    def _count(self) -> None:
        """Count a structure, whatever it says that it probes."""
        self._met += 1
        if self._met > _MOST_PROBES:
            raise MalformedError(f"there are more than {_MOST_PROBES} kprobes")

    def _handlers(self, copy: StructCopy) -> set[int]:
        program = self._image.program
        found = {copy.integer(member) for member in _HANDLERS}
        if copy.integer("pre_handler") == program.find("pre_handler_kretprobe") and program.has(
            _KRETPROBE, "kp"
        ):
            outer = program.copy(_KRETPROBE, copy.address - program.offset(_KRETPROBE, "kp"))
            found |= {outer.integer(member) for member in _RETURN_HANDLERS}
        return found


def _continues(tail: bytes, place: int, verified: bytes, address: int) -> bool:
    """Tell whether code is a copy of the instructions that the jump replaced, and a jump back behind them."""
    for size in range(_JUMP_SIZE, min(_LONGEST_COPY, len(verified)) + 1):
        back = place + size + _JUMP_SIZE + _signed(tail[size + 1 : size + _JUMP_SIZE])
        if tail[size] == JUMP and back == address + size:
            copied = meaning(verified[:size], address)
            return copied is not None and meaning(tail[:size], place) == copied
    return False


def _signed(displacement: bytes) -> int:
    return int.from_bytes(displacement, "little", signed=True)
