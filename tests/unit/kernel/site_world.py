"""A made-up kernel with one or two patch sites of each class, and real instructions at them.

`SiteWorld` starts as the kernel was linked, before it patched anything; tests write what the kernel, or an
attacker, would write, and look.
"""

from __future__ import annotations

import struct

import numpy as np

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.guest import Guest
from affiant.kernel.reference.image import Metadata, ReferenceImage
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.relocations import Relocations
from affiant.kernel.reference.sites import SITE, PatchTable, SiteClass, Sites
from affiant.kernel.reference.symbols import SymbolTable
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    BANNER,
    DATA,
    END,
    LINK,
    RODATA,
    SLIDE,
    SYMBOLS,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

CODE = LINK + 0x8000
THUNKS = CODE
RETURN_THUNK, OTHER_THUNK = CODE + 0x400, CODE + 0x420
CALLEE, OTHER, NATIVE, KVM_FLUSH, NOTHING = (CODE + 0x480 + 0x40 * n for n in range(5))
FTRACE_CALLER, FTRACE_STUB, TRACER = CODE + 0x600, CODE + 0x680, CODE + 0x6C0
RETURN_ZERO, PROBED, OPTIMIZED = CODE + 0x700, CODE + 0x740, CODE + 0x780
SOCKET_HELPER, BPF_HELPER, AGGREGATE = CODE + 0x7C0, CODE + 0x800, CODE + 0x840
BODY = CODE + 0x1000
"""The functions with sites: each gets 64 bytes."""

PLACES = {
    name: BODY + 0x40 * number
    for number, name in enumerate(
        [
            *(
                "return_1",
                "return_2",
                "return_3",
                "thunk_call",
                "thunk_jump",
                "thunk_call_9",
                "lock_1",
                "lock_2",
            ),
            *("lock_3", "alternative_1", "alternative_2", "alternative_3", "alternative_call", "pv_call"),
            *("label_near", "label_short", "static_call", "static_tail", "tramp_pad", "traced", "traced_2"),
            *("shift_1", "shift_2", "shift_3", "pad_1", "endbr_1", "endbr_2", "endbr_3", "spare"),
            "direct_call",
        ]
    )
}
TRAMPOLINE = PLACES["tramp_pad"]
PV_OPS = DATA + 0x2000
KEY_NEAR, KEY_SHORT, CALL_KEY = DATA + 0x2100, DATA + 0x2110, DATA + 0x2120
OPS_LIST, LIST_END, KPROBES, SHIFT_VARIABLE = DATA + 0x2200, DATA + 0x2210, DATA + 0x2400, DATA + 0x2700
REMOVED_OPS, TRAMPOLINES, TEXT_MUTEX = DATA + 0x2220, DATA + 0x2230, DATA + 0x2250
STATIC_CALL_MUTEX, JUMP_LABEL_MUTEX = DATA + 0x2280, DATA + 0x22C0
TABLES = RODATA + 0x1000
INIT_POINTER = RODATA + 0x3200
TEMPLATE = RODATA + 0x3900
"""What optimised probes begin with: pushf, clac, the probe, a call, popf."""
"""In `__ro_after_init`, linked to CALLEE."""

VDSO, VDSO_STRUCT = DATA + 0x1_0000, RODATA + 0x3A00
VDSO_SITE, VDSO_OTHER_SITE, VDSO_CODE = 0x100, 0x140, 0x180
"""An image with two alternatives, as offsets in it, and plain code."""

REPLACEMENTS = END + 0x100000
FEATURE, OTHER_FEATURE = 100, 200

_NAMES = {
    "__x86_indirect_thunk_array": THUNKS,
    "__x86_return_thunk": RETURN_THUNK,
    "srso_return_thunk": OTHER_THUNK,
    "callee": CALLEE,
    "other": OTHER,
    "native_flush": NATIVE,
    "kvm_flush": KVM_FLUSH,
    "_paravirt_nop": NOTHING,
    "ftrace_caller": FTRACE_CALLER,
    "ftrace_caller_op_ptr": FTRACE_CALLER + 4,
    "ftrace_call": FTRACE_CALLER + 11,
    "ftrace_caller_end": FTRACE_CALLER + 20,
    "ftrace_stub": FTRACE_STUB,
    "function_trace_call": TRACER,
    "__static_call_return0": RETURN_ZERO,
    "probed": PROBED,
    "optimized_callback": OPTIMIZED,
    "bpf_skb_load_helper_8": SOCKET_HELPER,
    "bpf_get_prandom_u32": BPF_HELPER,
    "__SCT__thing": TRAMPOLINE,
    "__SCK__thing": CALL_KEY,
    "pv_ops": PV_OPS,
    "key_near": KEY_NEAR,
    "key_short": KEY_SHORT,
    "ftrace_ops_list": OPS_LIST,
    "ftrace_list_end": LIST_END,
    "removed_ops": REMOVED_OPS,
    "text_mutex": TEXT_MUTEX,
    "static_call_mutex": STATIC_CALL_MUTEX,
    "jump_label_mutex": JUMP_LABEL_MUTEX,
    "ftrace_ops_trampoline_list": TRAMPOLINES,
    "kprobe_table": KPROBES,
    "aggr_pre_handler": AGGREGATE,
    "optprobe_template_entry": TEMPLATE,
    "optprobe_template_clac": TEMPLATE + 1,
    "optprobe_template_val": TEMPLATE + 4,
    "optprobe_template_call": TEMPLATE + 14,
    "optprobe_template_end": TEMPLATE + 20,
    "count": SHIFT_VARIABLE,
    "vdso_image_64": VDSO_STRUCT,
}


def near(opcode: int, at: int, to: int) -> bytes:
    """Return a near call or jump."""
    return bytes([opcode]) + struct.pack("<i", to - at - 5)


def _text() -> bytearray:
    text = bytearray(make_reference().section(".text")[1])
    put = {
        FTRACE_CALLER: bytes.fromhex("4883ec40")  # sub $0x40, %rsp
        + bytes.fromhex("488b15") + struct.pack("<i", LIST_END - (FTRACE_CALLER + 11))
        + near(0xE8, FTRACE_CALLER + 11, FTRACE_STUB)
        + bytes.fromhex("4883c440") + b"\xe9" + struct.pack("<i", RETURN_THUNK - (FTRACE_CALLER + 25)),
        PROBED: bytes.fromhex("554889e54883ec10c3"),
    }  # fmt: skip
    places = PLACES
    for name in ("return_1", "return_2", "return_3"):
        put[places[name]] = near(0xE9, places[name], RETURN_THUNK)
    put[places["thunk_call"]] = near(0xE8, places["thunk_call"], THUNKS)
    put[places["thunk_jump"]] = near(0xE9, places["thunk_jump"], THUNKS)
    put[places["thunk_call_9"]] = b"\x2e" + near(0xE8, places["thunk_call_9"] + 1, THUNKS + 32 * 9)
    for name in ("lock_1", "lock_2", "lock_3"):
        put[places[name]] = bytes.fromhex("f0ff00")
    for name in ("alternative_1", "alternative_2", "alternative_3"):
        put[places[name]] = b"\x90" * 3
    at = places["alternative_call"]
    put[at] = near(0xE8, at, CALLEE) + b"\x90" * 3
    for name in ("pv_call", "direct_call"):
        at = places[name]
        put[at] = b"\xff\x15" + struct.pack("<i", PV_OPS + 8 - at - 6)
    put[places["label_near"]] = bytes.fromhex("0f1f440000")
    put[places["label_short"]] = bytes.fromhex("eb10")
    put[places["static_call"]] = near(0xE8, places["static_call"], TRAMPOLINE)
    put[places["static_tail"]] = near(0xE9, places["static_tail"], TRAMPOLINE)
    put[TRAMPOLINE] = near(0xE9, TRAMPOLINE, CALLEE) + bytes.fromhex("0fb9cc")
    for name in ("traced", "traced_2"):
        put[places[name]] = near(0xE8, places[name], FTRACE_STUB)
    for name in ("shift_1", "shift_2", "shift_3"):
        put[places[name]] = b"\x0c"
    put[places["pad_1"]] = b"\x90" * 9
    for name in ("endbr_1", "endbr_2", "endbr_3"):
        put[places[name]] = bytes.fromhex("f30f1efa")
    for address, content in put.items():
        text[address - LINK : address - LINK + len(content)] = content
    return text


def _replacements() -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return `.altinstr_replacement`, and (address, length) of each piece in it."""
    data, where = bytearray(), {}
    for name, content in (
        ("clac", bytes.fromhex("0f01ca")),
        ("call", near(0xE8, REPLACEMENTS + 3, OTHER)),
        ("jump", near(0xE9, REPLACEMENTS + 8, PLACES["alternative_call"] + 8)),
    ):
        where[name] = (REPLACEMENTS + len(data), len(content))
        data += content
    return bytes(data), where


def _relative(place: int, target: int) -> bytes:
    return struct.pack("<i", target - place)


def _vdso() -> tuple[bytes, bytes]:
    """Return an image of the vDSO, and the structure that tells of it."""
    image, table = bytearray(0x1000), 0x800
    for site, content in (
        (VDSO_SITE, "0f31909090"),  # rdtsc
        (VDSO_OTHER_SITE, "90909090"),
        (VDSO_CODE, "554889e55dc3"),
        (0x900, "0faee80f31"),  # lfence; rdtsc
        (0x905, "0f01f9"),  # rdtscp
        (0x908, "89cd0f05"),  # mov %ecx, %ebp; syscall
    ):
        image[site : site + len(content) // 2] = bytes.fromhex(content)
    entries = (
        (VDSO_SITE, 0x900, FEATURE, 5, 5),
        (VDSO_SITE, 0x905, OTHER_FEATURE + 7, 5, 3),
        (VDSO_OTHER_SITE, 0x908, OTHER_FEATURE + 8, 4, 4),
    )
    for number, (site, replacement, feature, length, size) in enumerate(entries):
        place = table + 14 * number
        entry = _relative(place, site) + _relative(place + 4, replacement)
        image[place : place + 14] = entry + struct.pack("<HHBB", feature, 0, length, size)
    return bytes(image), struct.pack("<QQQQ", VDSO, len(image), table, 14 * len(entries))


def site_reference() -> ReferenceImage:
    """Return the reference image."""
    replacements, where = _replacements()
    rodata = bytearray(make_reference().section(".rodata")[1])
    tables: list[PatchTable] = []
    rows: list[tuple[int, int, int, int, int]] = []
    at = TABLES

    def table(kind: SiteClass, layout: str, entries: list[tuple[int, int, bytes]], name: str = "") -> None:
        nonlocal at
        number = len(tables)
        tables.append(PatchTable(name or kind.name.lower(), kind, layout, at if layout else 0, len(entries)))
        for index, (address, length, raw) in enumerate(entries):
            rows.append((address, index, number, length, int(kind)))
            rodata[at - RODATA : at - RODATA + len(raw)] = raw
            at += len(raw)
        at = -(-at // 16) * 16

    def relative(kind: SiteClass, length: int, *names: str, name: str = "") -> None:
        table(
            kind,
            "relative",
            [(PLACES[n], length, _relative(at + 4 * i, PLACES[n])) for i, n in enumerate(names)],
            name,
        )

    relative(SiteClass.RETURN, 5, "return_1", "return_2", "return_3")
    sites = [("thunk_call", 5), ("thunk_jump", 5), ("thunk_call_9", 6)]
    table(
        SiteClass.RETPOLINE,
        "relative",
        [(PLACES[n], length, _relative(at + 4 * i, PLACES[n])) for i, (n, length) in enumerate(sites)],
    )
    relative(SiteClass.SMP_LOCK, 1, "lock_1", "lock_2", "lock_3")
    relative(SiteClass.ENDBR, 4, "endbr_1", "endbr_2", "endbr_3")
    entries = []
    for index, (name, feature, flags, length, replacement) in enumerate(
        [
            ("alternative_1", FEATURE, 0, 3, "clac"),
            ("alternative_2", FEATURE, 0, 3, "clac"),
            ("alternative_3", FEATURE, 0, 3, "clac"),
            ("alternative_call", OTHER_FEATURE, 0, 8, "call"),
            ("alternative_call", OTHER_FEATURE + 1, 0, 8, "jump"),
            ("direct_call", OTHER_FEATURE + 2, 2, 6, "call"),  # ALT_FLAG_DIRECT_CALL
        ]
    ):
        place, (target, size) = at + 14 * index, where[replacement]
        raw = _relative(place, PLACES[name]) + _relative(place + 4, target)
        entries.append((PLACES[name], length, raw + struct.pack("<HHBB", feature, flags, length, size)))
    table(SiteClass.ALTERNATIVE, "alternative-14", entries)
    pv = struct.pack("<QBB6x", PLACES["pv_call"], 1, 6)
    table(SiteClass.PARAVIRT, "paravirt-16", [(PLACES["pv_call"], 6, pv)])
    labels = []
    for index, (name, length, key) in enumerate(
        [("label_near", 5, KEY_NEAR), ("label_short", 2, KEY_SHORT | 1)]
    ):
        place, target = at + 16 * index, PLACES[name] + (0x200 if length == 5 else 0x12)
        raw = (
            _relative(place, PLACES[name]) + _relative(place + 4, target) + struct.pack("<q", key - place - 8)
        )
        labels.append((PLACES[name], length, raw))
    table(SiteClass.JUMP_LABEL, "jump-16", labels)
    calls = []
    for index, (name, tail) in enumerate([("static_call", 0), ("static_tail", 1)]):
        place = at + 8 * index
        raw = _relative(place, PLACES[name]) + _relative(place + 4, CALL_KEY | tail)
        calls.append((PLACES[name], 5, raw))
    table(SiteClass.STATIC_CALL, "static-call-8", calls)
    table(SiteClass.STATIC_CALL_TRAMPOLINE, "", [(TRAMPOLINE, 5, b"")])
    table(
        SiteClass.FTRACE,
        "address",
        [(PLACES[n], 5, struct.pack("<Q", PLACES[n])) for n in ("traced", "traced_2")],
    )
    table(SiteClass.FTRACE_CALLER, "", [(FTRACE_CALLER + 11, 5, b"")])
    relative(SiteClass.RUNTIME_SHIFT, 1, "shift_1", "shift_2", "shift_3", name="runtime_shift_count")
    table(SiteClass.CALL_PADDING, "", [(PLACES["pad_1"], 9, b"")])

    struct.pack_into("<Q", rodata, INIT_POINTER - RODATA, CALLEE)
    rodata[TEMPLATE - RODATA : TEMPLATE - RODATA + 20] = bytes.fromhex("9c0f1f00" + "90" * 15 + "9d")
    data = bytearray(0x2_0000)
    image, told = _vdso()
    data[VDSO - DATA : VDSO - DATA + len(image)] = image
    rodata[VDSO_STRUCT - RODATA : VDSO_STRUCT - RODATA + len(told)] = told
    struct.pack_into("<Q", data, PV_OPS + 8 - DATA, NATIVE)
    struct.pack_into("<Q", data, CALL_KEY - DATA, CALLEE)
    named = SYMBOLS | _NAMES | PLACES_NAMED
    names = sorted(named, key=lambda name: named[name])
    addresses = [named[name] for name in names]
    sizes = [max(after - before, 1) for before, after in zip(addresses, [*addresses[1:], END], strict=True)]
    types = "".join("T" if named[name] < RODATA else "D" for name in names).encode()
    ordered = np.array(sorted(rows), dtype=SITE)
    sections = (
        _section(".text", LINK, bytes(_text()), executable=True),
        _section(".rodata", RODATA, bytes(rodata)),
        _section(".data", DATA, bytes(data), writable=True),
        _section(".BTF", END, kernel_types(_hook_types)),
        _section(".altinstr_replacement", REPLACEMENTS, replacements, executable=True),
    )
    return ReferenceImage(
        digest=bytes(32),
        metadata=Metadata(
            "6.1.0-sites", BANNER, "00" * 32, None, "ab" * 20, 0x20_0000, None, tuple(tables), ()
        ),
        kernel=LinkedKernel(sections),
        symbols=SymbolTable(
            np.array(addresses, dtype=np.uint64), np.array(sizes, dtype=np.uint32), types, names
        ),
        sites=Sites(tuple(tables), ordered),
        relocations=Relocations(
            absolute64=np.array([INIT_POINTER], dtype=np.uint64),
            absolute32=np.array([], dtype=np.uint64),
            inverse32=np.array([], dtype=np.uint64),
        ),
        data={},
    )


PLACES_NAMED = {f"at_{name}": address for name, address in PLACES.items() if name != "tramp_pad"}


def _hook_types(btf: BtfBuilder) -> None:
    long, char, address = btf.integer("ulong", 8), btf.integer("uchar", 1), btf.pointer(0)
    btf.struct("mutex", 32, ("owner", long, 0))
    link = btf.struct("ops_link", 16, ("next", address, 0), ("prev", address, 8))
    btf.struct(
        "ftrace_ops",
        56,
        ("func", address, 0),
        ("next", address, 8),
        ("flags", long, 16),
        ("trampoline", long, 24),
        ("list", link, 40),
    )
    node = btf.struct("hlist_node", 16, ("next", address, 0), ("pprev", address, 8))
    copied = btf.struct("arch_specific_insn", 8, ("insn", address, 0))
    kprobe = btf.struct(
        "kprobe",
        72,
        ("hlist", node, 0),
        ("list", node, 16),
        ("addr", address, 32),
        ("pre_handler", address, 40),
        ("post_handler", address, 48),
        ("opcode", char, 56),
        ("ainsn", copied, 64),
    )
    members = ("data", "size", "alt", "alt_len")
    btf.struct("vdso_image", 32, *((name, long, 8 * index) for index, name in enumerate(members)))
    detour = btf.struct("arch_optimized_insn", 8, ("insn", address, 0))
    btf.struct("optimized_kprobe", 80, ("kp", kprobe, 0), ("optinsn", detour, 72))


def _section(
    name: str, address: int, data: bytes, *, executable: bool = False, writable: bool = False
) -> Section:
    return Section(name, address, address, len(data), writable, executable, memoryview(data))


class SiteWorld:
    """The guest, with its memory open; addresses are link addresses."""

    def __init__(self) -> None:
        self.reference = site_reference()
        self.guest = SyntheticGuest(reference=self.reference)
        # The truthful guest patches a site of its own kernel, which is none of ours.
        self.write(LINK, bytes(self.reference.section(".text")[1]))
        self.write(PV_OPS + 8, (NATIVE + SLIDE).to_bytes(8, "little"))
        self.write(CALL_KEY, (CALLEE + SLIDE).to_bytes(8, "little"))
        self.write(OPS_LIST, (LIST_END + SLIDE).to_bytes(8, "little"))
        self.write(TRAMPOLINES, 2 * (TRAMPOLINES + SLIDE).to_bytes(8, "little"))
        self.write(SHIFT_VARIABLE, b"\x0c")
        self.write(VDSO, bytes(self.reference.read(VDSO, 0x1000)))
        self.seen: Guest = self.guest.open()

    def write(self, linked: int, content: bytes) -> bytes:
        return self.guest.poke(self.guest.physical(linked), content)

    def text(self) -> bytes:
        """Return the text as it stands."""
        return self.seen.program.read(self.seen.text.start, len(self.seen.text.expected))

    def heap(self, content: bytes, *, executable_at: int = 0) -> int:
        """Put bytes into fresh memory and return where they are, in the direct map or in the module area."""
        physical, address = self.guest.allocate(len(content) if not executable_at else 8192)
        if executable_at:
            physical = -(-physical // 4096) * 4096
            self.guest.map(executable_at, physical, 4096, executable=True)
        self.guest.poke(physical, content)
        return executable_at or address

    def look(self) -> RegionComparison:
        seen = self.seen
        return compare_region(seen.memory, seen.kernel_space, seen.location, seen.text, seen.text_content)

    def name(self, linked: int) -> str:
        return self.seen.program.describe(linked + SLIDE)
