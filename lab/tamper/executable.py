"""Executable pages: code where none belongs, and owners forged for it.

What is put there is never run: it stands in memory that nothing jumps to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from threading import Event, Thread
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.bpf_lists import CHUNK, read_bpf_lists
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique
from lab.tamper.traced_entry import behind_entry

__all__ = ["EXECUTABLE_TECHNIQUES"]

# mov eax, cr0; and eax, ~WP; mov cr0, rax; jmp rdi
_SHELLCODE: Final = bytes.fromhex("0f20c025fffffeff0f22c0ffe7")
# push rbp; mov rbp, rsp; mov [rdi], rsi; leave; ret: compiled by the look of it, and writes anywhere.
_WRITER: Final = bytes.fromhex("554889e5488937c9c3")
_TRACING: Final = "/sys/kernel/tracing"
_COLD: Final = "kernel_kexec"
"""A function that nothing calls in a guest of the lab."""

_PLACES, _STAY_SECONDS = 32, 0.1

_PRESENT, _ACCESSED_DIRTY, _GLOBAL = 1 << 0, 0x60, 1 << 8
_SPARE_PAGE: Final = 0x6000  # reserved by the kernel (CONFIG_X86_RESERVE_LOW) and left alone
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000


def _free_chunk(live: LiveGuest) -> tuple[int, int, int]:
    """Return the last chunk of a pack: its address, and the address and bit that are clear for it."""
    program = live.guest.program
    pack = read_bpf_lists(program).packs[0]
    number = (pack.end - pack.start) // CHUNK - 1
    assert not pack.bitmap[number // 8] >> number % 8 & 1, "the last chunk is in use"
    structure = program.word(program.address("pack_list")) - program.offset("struct bpf_prog_pack", "list")
    bits = structure + program.offset("struct bpf_prog_pack", "bitmap")
    return pack.start + CHUNK * number, bits + number // 8, number % 8


@contextmanager
def _hide_in_free_chunk(live: LiveGuest) -> Iterator[str]:
    """Write code into memory of BPF that is free."""
    address, _, _ = _free_chunk(live)
    with live.changed(address, _SHELLCODE):
        yield f"code at {address:#x}"


@contextmanager
def _forge_filter(live: LiveGuest) -> Iterator[str]:
    """Put a writer of memory where a classic filter could be: with header and filler, marked as used."""
    address, byte, bit = _free_chunk(live)
    image = CHUNK.to_bytes(4, "little") + b"\xcc" * 4 + _WRITER
    marked = live.guest.program.read(byte, 1)[0] | 1 << bit
    with live.all_changed((address, image), (byte, bytes([marked]))):
        yield f"code at {address + 8:#x}"  # what it writes, a listed program could


@contextmanager
def _redirect_filter(live: LiveGuest) -> Iterator[str]:
    """Let the kernel's own filter of time stamps, which nobody lists, call a system call."""
    program = live.guest.program
    pack = read_bpf_lists(program).packs[0]
    code = program.read(pack.start, PAGE_SIZE)
    call = code.index(bytes.fromhex("000000e8")) + 3  # mov ecx, SIZE; call
    target = program.address("__x64_sys_getpid") - (pack.start + call + 5)
    with live.changed(pack.start + call + 1, (target & 0xFFFF_FFFF).to_bytes(4, "little")):
        yield f"code at {pack.start + call:#x}"


@contextmanager
def _hostile_page(live: LiveGuest, content: bytes) -> Iterator[int]:
    """Map a page of code in the module area, where no page was; yields its address."""
    ((address, entry, leaf), *_) = _free_places(live)
    with ExitStack() as stack:
        page = content.ljust(PAGE_SIZE, b"\xcc")
        stack.enter_context(live.physically_changed(_SPARE_PAGE, page))
        stack.enter_context(live.physically_changed(entry, leaf))
        yield address


def _free_places(live: LiveGuest) -> list[tuple[int, int, bytes]]:
    """Return addresses that no page is mapped at, in the emptiest table of the module area: each with the
    place of its entry, and the entry that would map the spare page there.
    """
    space = live.guest.kernel_space
    area = live.guest.program.address("_end")
    leaves = space.leaves(area, 0xFFFF_FFFF_FEFF_FFFF)
    pages = leaves.select(leaves.executable & (leaves.size == PAGE_SIZE))
    assert len(pages), "nothing in the module area is mapped by small pages"
    mapped = set(leaves.address.tolist())
    tables = {int(page) // 0x20_0000 * 0x20_0000 for page in pages.address}
    free, first = max(
        (
            ([page for page in range(first, first + 0x20_0000, PAGE_SIZE) if page not in mapped], first)
            for first in tables
        ),
        key=lambda each: len(each[0]),
    )
    table = space.root
    for level in range(space.levels, 1, -1):
        entry = table + 8 * (first >> 12 + 9 * (level - 1) & 511)
        table = int.from_bytes(live.memory.read(entry, 8), "little") & _ADDRESS
    leaf = _word(_SPARE_PAGE | _PRESENT | _ACCESSED_DIRTY | _GLOBAL)
    return [(address, table + 8 * (address >> 12 & 511), leaf) for address in free]


def _forged(program: KernelProgram, structure: str, **members: bytes) -> bytearray:
    """Return a structure that is zero but for some members."""
    forged = bytearray(program.size(structure))
    for name, value in members.items():
        place = program.offset(structure, name)
        forged[place : place + len(value)] = value
    return forged


def _word(value: int) -> bytes:
    return value.to_bytes(8, "little")


@contextmanager
def _linked(live: LiveGuest, head: int, structure: bytearray, link: int) -> Iterator[int]:
    """Put a forged structure first on a list; `link` is where it holds its list_head."""
    program = live.guest.program
    log = program.reference.symbols.unique("__log_buf")
    assert log is not None
    place = program.running(log.address) + log.size - PAGE_SIZE
    assert not any(program.read(place, len(structure))), "the kernel's log reaches its end"
    following = program.word(head)
    structure[link : link + 16] = _word(following) + _word(head)
    with live.all_changed(
        (place, bytes(structure)), (following + 8, _word(place + link)), (head, _word(place + link))
    ):
        yield place


@contextmanager
def _map_code_of_nobody(live: LiveGuest) -> Iterator[str]:
    """Map a page of code that no list owns."""
    with _hostile_page(live, _SHELLCODE) as address:
        yield f"code at {address:#x}"


@contextmanager
def _move_code_of_nobody(live: LiveGuest) -> Iterator[str]:
    """Map a page of code that no list owns, and have it elsewhere ten times a second."""
    places = _free_places(live)[-_PLACES:]
    ended = Event()

    def move() -> None:
        with ExitStack() as last:
            for _, entry, leaf in cycle(places):
                following = ExitStack()
                following.enter_context(live.physically_changed(entry, leaf))
                last.close()  # it is never nowhere
                last.push(following)
                if ended.wait(_STAY_SECONDS):
                    return

    with live.physically_changed(_SPARE_PAGE, _SHELLCODE.ljust(PAGE_SIZE, b"\xcc")):
        mover = Thread(target=move)
        mover.start()
        try:
            yield f"code at {places[0][0]:#x}"[: -len("600000")]
        finally:
            ended.set()
            mover.join()


@contextmanager
def _forge_trampoline(live: LiveGuest) -> Iterator[str]:
    """Let a forged tracer own a page of code."""
    program = live.guest.program
    ops = "struct ftrace_ops"
    with _hostile_page(live, _SHELLCODE) as address:
        forged = _forged(
            program,
            ops,
            func=_word(program.address("ftrace_stub")),
            trampoline=_word(address),
            trampoline_size=_word(PAGE_SIZE),
        )
        head = program.address("ftrace_ops_trampoline_list")
        with _linked(live, head, forged, program.offset(ops, "list")):
            yield f"code at {address:#x}"


@contextmanager
def _forge_slots(live: LiveGuest) -> Iterator[str]:
    """Let a forged page of probe slots, all free, own a page of code."""
    program = live.guest.program
    page = "struct kprobe_insn_page"
    with _hostile_page(live, _SHELLCODE) as address:
        forged = _forged(program, page, insns=_word(address)) + bytes(PAGE_SIZE // 8)
        head = program.address("kprobe_insn_slots") + program.offset("struct kprobe_insn_cache", "pages")
        with _linked(live, head, forged, program.offset(page, "list")):
            yield f"code at {address:#x}"


@contextmanager
def _forge_bpf_symbol(live: LiveGuest) -> Iterator[str]:
    """Let a forged symbol of a BPF trampoline own a page of code."""
    program = live.guest.program
    symbol = "struct bpf_ksym"
    with _hostile_page(live, _SHELLCODE) as address:
        forged = _forged(
            program,
            symbol,
            start=_word(address),
            end=_word(address + PAGE_SIZE),
            name=b"bpf_trampoline_6442",
        )
        head = program.address("bpf_kallsyms")
        with _linked(live, head, forged, program.offset(symbol, "lnode")):
            yield f"code at {address:#x}"


@contextmanager
def _change_trampoline(live: LiveGuest) -> Iterator[str]:
    """Change an instruction of the trampoline that a tracer of the kernel has."""
    run = live.lab.console.run
    run(f"cd {_TRACING}; echo {_COLD} > set_ftrace_filter; echo function > current_tracer", timeout=200)
    try:
        hooks = live.guest.text_content.hooks
        hooks.refresh()
        trampoline = next(ops.trampoline for ops in hooks.ops if ops.trampoline)
        with live.changed(trampoline + 16, bytes.fromhex("ebfe")):
            yield f"code at {trampoline:#x}"
    finally:
        run(f"cd {_TRACING}; echo nop > current_tracer; echo > set_ftrace_filter", timeout=200)


@contextmanager
def _change_slot(live: LiveGuest) -> Iterator[str]:
    """Change the copy of a probed instruction."""
    run, start = live.lab.console.run, live.guest.program.address(_COLD)
    behind = behind_entry(live, _COLD)
    run(f"cd {_TRACING}; echo 'p:lab {_COLD}+{behind}' > kprobe_events; echo 1 > events/kprobes/lab/enable")
    try:
        probes = live.guest.text_content.probes
        probes.refresh()
        slot = probes.by_address[start + behind].slot
        with live.changed(slot, bytes.fromhex("0f22c0cc")):
            yield f"code at {slot:#x}"
    finally:
        run(f"cd {_TRACING}; echo 0 > events/kprobes/lab/enable; echo > kprobe_events")


@contextmanager
def _change_real_mode(live: LiveGuest) -> Iterator[str]:
    """Change the code that starts other processors."""
    program = live.guest.program
    blob = program.word(program.address("real_mode_header"))
    # struct real_mode_header begins with where its text starts, as a physical address.
    physical = int.from_bytes(program.read(blob, 4), "little")
    with live.physically_changed(physical + 0x20, b"\xeb\xfe"):
        yield "code at "


_pages = partial(Technique, "executable pages", rule="executable_pages_owned")

EXECUTABLE_TECHNIQUES: Final = (
    _pages(
        "code_in_free_chunk",
        about="Code was written into memory of BPF that is free.",
        tamper=_hide_in_free_chunk,
        recorded=True,
    ),
    _pages(
        "forged_filter",
        about="Code that writes memory poses as a classic BPF filter.",
        tamper=_forge_filter,
        recorded=True,
    ),
    _pages(
        "redirected_filter",
        about="A classic BPF filter of the kernel calls a system call.",
        tamper=_redirect_filter,
        recorded=True,
    ),
    _pages(
        "code_of_nobody",
        about="A page of code was mapped that no list owns.",
        tamper=_map_code_of_nobody,
        recorded=True,
    ),
    _pages(
        "code_that_moves",
        about="A page of code that no list owns is elsewhere in each look.",
        tamper=_move_code_of_nobody,
    ),
    _pages("forged_trampoline", about="A forged tracer owns a page of code.", tamper=_forge_trampoline),
    _pages("forged_slots", about="A forged page of probe slots owns code.", tamper=_forge_slots),
    _pages(
        "forged_bpf_symbol", about="A forged BPF trampoline owns a page of code.", tamper=_forge_bpf_symbol
    ),
    _pages(
        "changed_tracing_trampoline",
        about="The trampoline of a tracer of the kernel was changed.",
        tamper=_change_trampoline,
    ),
    _pages("changed_slot", about="The copy of a probed instruction was changed.", tamper=_change_slot),
    _pages(
        "changed_real_mode_code",
        about="The code that starts other processors was changed.",
        tamper=_change_real_mode,
    ),
)
