"""A truthful kernel of a few kilobytes: every part that a reference is made of, in every known layout.

Tests start from it and bend one thing.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.unit.kernel.reference.tiny_files import RELEASE, Section, bzimage, deb, elf, module

TEXT = 0xFFFFFFFF81000000
RODATA = 0xFFFFFFFF81010000
DATA = 0xFFFFFFFF81040000
INIT = 0xFFFFFFFF81050000
PERCPU_LOAD = 0xFFFFFFFF81045000

BANNER = f"Linux version {RELEASE} (builder@example) #1 SMP 2026-01-01"

LAYOUTS = ("before-6.2", "6.2", "6.4", "in-place")


@dataclass
class TinyKernel:
    """Change what is to be wrong, then ask for `vmlinux()`, `bzimage()` or `package()`."""

    layout: str = "6.4"
    text: bytearray = field(default_factory=lambda: bytearray(b"\x90" * 0x2000))
    symbols: list[tuple[int, str, str]] = field(default_factory=list)
    tables: dict[str, bytes] = field(default_factory=dict)
    absolute64: list[int] = field(default_factory=list)
    absolute32: list[int] = field(default_factory=list)
    inverse32: list[int] | None = field(default_factory=list)
    btf: bytes = b""
    percpu: bool = True

    def __post_init__(self) -> None:
        self.btf = self.btf or tiny_btf()
        self.rodata_head = bytearray(0x3000)
        banner = BANNER.encode() + b"\n\0"
        self.rodata_head[0x100 : 0x100 + len(banner)] = banner
        self.absolute64 = self.absolute64 or [RODATA + 0x800, RODATA + 0x808]
        self.rodata_head[0x800:0x810] = struct.pack("<QQ", TEXT + 0x100, TEXT + 0x200)
        self.text[0x10:0x14] = struct.pack("<I", (RODATA + 0x100) & 0xFFFFFFFF)
        self.absolute32 = self.absolute32 or [TEXT + 0x10]
        if self.inverse32 is not None and not self.inverse32:
            self.text[0x20:0x24] = struct.pack("<i", -0x1000)
            self.inverse32 = [TEXT + 0x20]
        self._add_sites()
        self.symbols += [
            (TEXT, "T", "_text"),
            (TEXT, "T", "_stext"),
            (TEXT + 0x2000, "T", "_etext"),
            (RODATA, "D", "__start_rodata"),
            (RODATA + 0x100, "D", "linux_banner"),
            (RODATA + 0x900, "D", "__start___jump_table"),
            (RODATA + 0x920, "D", "__stop___jump_table"),
            (RODATA + 0xA00, "D", "__start_static_call_sites"),
            (RODATA + 0xA08, "D", "__stop_static_call_sites"),
            (INIT, "D", "__start_mcount_loc"),
            (INIT + 16, "D", "__stop_mcount_loc"),
            (TEXT + 0x1800, "T", "__SCT__tiny"),
            (TEXT + 0x1900, "T", "ftrace_call"),
            (TEXT + 0x640, "t", "twice"),
            (TEXT + 0x680, "t", "twice"),
            (TEXT + 0x700, "t", "name_" + "x" * 200),
        ]
        self.symbols += [(TEXT + 0x1000 + 2 * i, "t", f"function_{i}") for i in range(300)]
        if self.percpu:
            self.symbols += [(0x40, "A", "current_task"), (0x80, "A", "last_percpu")]

    def _add_sites(self) -> None:
        text = self.text
        for at in (0x300, 0x308, 0x310):
            text[at : at + 5] = b"\xe8\0\0\0\0"  # return, retpoline and static call sites
        text[0x310:0x312] = b"\x2e\xe8"
        text[0x320:0x322] = b"\xeb\x10"
        text[0x330:0x335] = b"\x0f\x1f\x44\0\0"
        text[0x340:0x345] = b"\xe8\0\0\0\0"
        text[0x350] = 0xF0
        text[0x360:0x365] = b"\xe8" + struct.pack("<i", 0x420 - 0x365)
        text[0x370:0x374] = b"\xf3\x0f\x1e\xfa"
        text[0x1800:0x1808] = b"\xe9\0\0\0\0\x0f\xb9\xcc"
        text[0x1900:0x1905] = b"\xe8\0\0\0\0"
        jump = RODATA + 0x900
        for number, target in enumerate((0x320, 0x330)):
            place = jump + number * 16
            entry = struct.pack("<iiq", TEXT + target - place, TEXT + 0x400 - place - 4, DATA - place - 8)
            self.rodata_head[0x900 + number * 16 : 0x910 + number * 16] = entry
        place = RODATA + 0xA00
        self.rodata_head[0xA00:0xA08] = struct.pack("<ii", TEXT + 0x308 - place, DATA - place - 4)
        replacement = self.address_of(".altinstr_replacement")
        if not self.tables:
            self.tables = {
                ".altinstructions": self.alternatives([(TEXT + 0x380, replacement, 3, 6, 2)]),
                ".retpoline_sites": self.relative(".retpoline_sites", [TEXT + 0x300, TEXT + 0x310]),
                ".return_sites": self.relative(".return_sites", [TEXT + 0x308]),
                ".call_sites": self.relative(".call_sites", [TEXT + 0x360]),
                ".ibt_endbr_seal": self.relative(".ibt_endbr_seal", [TEXT + 0x370]),
                ".smp_locks": self.relative(".smp_locks", [TEXT + 0x350]) + bytes(64),
                "runtime_shift_tiny": self.relative("runtime_shift_tiny", [TEXT + 0x390]),
                "runtime_ptr_tiny": self.relative("runtime_ptr_tiny", [TEXT + 0x3A0]),
                ".altinstr_replacement": b"\x0f\x01\xcb\x90",
            }
        self.mcount = struct.pack("<QQ", 0, TEXT + 0x340)

    _PLACES = (
        ".altinstructions",
        ".altinstr_replacement",
        ".retpoline_sites",
        ".return_sites",
        ".call_sites",
        ".ibt_endbr_seal",
        ".smp_locks",
        ".parainstructions",
        "runtime_shift_tiny",
        "runtime_ptr_tiny",
    )

    def address_of(self, table: str) -> int:
        return INIT + 0x1000 + 0x400 * self._PLACES.index(table)

    def relative(self, table: str, targets: Sequence[int]) -> bytes:
        base = self.address_of(table)
        return b"".join(struct.pack("<i", target - base - 4 * n) for n, target in enumerate(targets))

    def alternatives(self, entries: Sequence[tuple[int, int, int, int, int]], size: int = 14) -> bytes:
        base = self.address_of(".altinstructions")
        out = b""
        for number, (site, replacement, feature, length, replacement_length) in enumerate(entries):
            place = base + number * size
            out += struct.pack("<iiH", site - place, replacement - place - 4, feature)
            out += (b"\0\0" if size == 14 else b"") + bytes([length, replacement_length])
        return out

    def rodata(self) -> bytes:
        head = bytes(self.rodata_head)
        address = RODATA + len(head)
        return head + kallsyms(
            sorted(self.symbols, key=lambda s: s[0]), self.layout, address, percpu=self.percpu
        )

    def sections(self) -> list[Section]:
        sections = [
            Section(".text", TEXT, bytes(self.text), 6),
            Section(".rodata", RODATA, self.rodata(), 3),
            Section(".BTF", RODATA + 0x20000, self.btf, 2),
            Section(
                ".notes", RODATA + 0x28000, struct.pack("<III4s", 4, 20, 3, b"GNU\0") + bytes(range(20)), 2
            ),
            Section(".data", DATA, b"data" * 64, 3),
            Section(".init.data", INIT, self.mcount + bytes(64), 3),
        ]
        if self.percpu:
            sections.append(Section(".data..percpu", 0, bytes(0x100), 3, load=PERCPU_LOAD))
        for name, data in self.tables.items():
            flags = 6 if name == ".altinstr_replacement" else 2
            sections.append(Section(name, self.address_of(name), data, flags))
        sections.append(Section(".bss", INIT + 0x10000, b"", 3, nobits=0x4000))
        return sections

    def tail(self) -> bytes:
        groups = [self.absolute64, self.absolute32]
        if self.inverse32 is not None:
            groups.insert(1, self.inverse32)
        words = [word & 0xFFFFFFFF for group in groups for word in (0, *group)]
        return struct.pack(f"<{len(words)}I", *words)

    def vmlinux(self) -> bytes:
        return elf(self.sections()) + self.tail()

    def bzimage(self, compression: str = "gzip", *, pe: bool = True) -> bytes:
        return bzimage(self.vmlinux(), compression, pe=pe)

    def package(self, *, compression: str = "xz", modules: Sequence[str] = ("tiny", "other")) -> bytes:
        files = {f"./boot/vmlinuz-{RELEASE}": self.bzimage()}
        for name in modules:
            files[f"./lib/modules/{RELEASE}/kernel/{name}.ko.xz"] = lzma.compress(module(name))
        return deb(files, compression=compression)


def kallsyms(symbols: Sequence[tuple[int, str, str]], layout: str, address: int, *, percpu: bool) -> bytes:
    """The arrays that scripts/kallsyms.c writes, for a blob that is placed at `address`."""
    tokens = [bytes([n]) if 33 <= n < 127 else b"tok%03d" % n for n in range(256)]
    tokens[1] = b"function_"
    names = b""
    markers = []
    for number, (_, kind, name) in enumerate(symbols):
        if number % 256 == 0:
            markers.append(len(names))
        text = (kind + name).encode()
        packed = text.replace(b"function_", b"\x01")
        length = len(packed)
        names += bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
        names += packed
    table = b"".join(token + b"\0" for token in tokens)
    positions, at = [], 0
    for token in tokens:
        positions.append(at)
        at += len(token) + 1
    align = 4 if layout == "in-place" else 8

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    count = pad(struct.pack("<I", len(symbols)))
    name_part = pad(names) + pad(struct.pack(f"<{len(markers)}I", *markers))
    token_part = pad(table) + pad(struct.pack("<256H", *positions))
    sequence = pad(b"".join(n.to_bytes(3, "big") for n in range(len(symbols))))
    base = TEXT
    if percpu:
        offsets = [at if at < TEXT else base - 1 - at for at, _, _ in symbols]
    else:
        offsets = [at - base for at, _, _ in symbols]
    offset_part = pad(struct.pack(f"<{len(offsets)}i", *offsets)) + struct.pack("<Q", base)
    if layout == "before-6.2":
        return offset_part + count + name_part + token_part
    if layout == "6.2":
        return offset_part + count + name_part + sequence + token_part
    if layout == "6.4":
        return count + name_part + token_part + offset_part + sequence
    head = count + name_part + token_part
    own = [
        struct.pack("<i", at - (address + len(head) + 4 * number))
        for number, (at, _, _) in enumerate(symbols)
    ]
    return head + b"".join(own) + sequence


def tiny_btf() -> bytes:
    """int, struct tiny {int a; union {int b; int c:3;}; struct inner {int d;} e;}, enum."""
    strings = b"\0"
    at: dict[str, int] = {"": 0}
    for name in ("int", "tiny", "a", "b", "c", "inner", "d", "e", "tiny_t", "color", "RED"):
        at[name] = len(strings)
        strings += name.encode() + b"\0"

    def record(name: str, kind: int, vlen: int, target: int, extra: bytes = b"", flag: int = 0) -> bytes:
        return struct.pack("<III", at[name], kind << 24 | vlen | flag << 31, target) + extra

    def member(name: str, type_id: int, offset: int) -> bytes:
        return struct.pack("<III", at[name], type_id, offset)

    types = record("int", 1, 0, 4, struct.pack("<I", 0x01000020))  # 1
    types += record("inner", 4, 1, 4, member("d", 1, 0))  # 2
    types += record("", 5, 2, 4, member("b", 1, 0) + member("c", 1, 3 << 24), flag=1)  # 3
    types += record("tiny", 4, 3, 12, member("a", 1, 0) + member("", 3, 32) + member("e", 5, 64))  # 4
    types += record("tiny_t", 8, 0, 2)  # 5, typedef of inner
    types += record("color", 6, 1, 4, struct.pack("<Ii", at["RED"], 7))  # 6
    types += record("", 3, 0, 0, struct.pack("<III", 4, 1, 5))  # 7, an array of five tiny
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings
