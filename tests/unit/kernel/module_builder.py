"""Makes small relocatable ELF files: modules with code, read-only data, relocations and a patch table."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ALLOC, EXECUTE, WRITE = 2, 4, 1
PC32, PLT32, ABSOLUTE64, ABSOLUTE32S = 2, 4, 1, 11
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS = 1, 2, 3, 4, 8


@dataclass
class ModuleBuilder:
    """Sections (name, flags, bytes, alignment), symbols (name, section or None, value) and relocations
    (section, offset, type, symbol, addend).
    """

    sections: list[tuple[str, int, bytes, int]] = field(default_factory=list)
    symbols: list[tuple[str, str | None, int]] = field(default_factory=list)
    relocations: list[tuple[str, int, int, str, int]] = field(default_factory=list)

    def section(self, name: str, flags: int, data: bytes, align: int = 16) -> None:
        self.sections.append((name, flags, data, align))

    def symbol(self, name: str, section: str | None, value: int = 0) -> None:
        self.symbols.append((name, section, value))

    def relocate(self, section: str, offset: int, kind: int, symbol: str, addend: int = 0) -> None:
        self.relocations.append((section, offset, kind, symbol, addend))

    def build(self) -> bytes:
        names = [name for name, *_ in self.sections]
        index = {name: number + 1 for number, name in enumerate(names)}
        strings, symtab = bytearray(b"\0"), bytearray(24)
        numbers: dict[str, int] = {}
        for name, owner, value in self.symbols:
            numbers[name] = len(numbers) + 1
            where = 0 if owner is None else index[owner]
            symtab += struct.pack("<IBBHQQ", len(strings), 0x12, 0, where, value, 0)
            strings += name.encode() + b"\0"
        parts = [(name, PROGBITS, flags, data, 0, 0, align) for name, flags, data, align in self.sections]
        table = len(parts) + 1
        parts += [
            (".symtab", SYMTAB, 0, bytes(symtab), table + 1, 0, 8),
            (".strtab", STRTAB, 0, bytes(strings), 0, 0, 1),
        ]
        for name in dict.fromkeys(section for section, *_ in self.relocations):
            rows = b"".join(
                struct.pack("<QIIq", offset, kind, numbers[symbol], addend)
                for section, offset, kind, symbol, addend in self.relocations
                if section == name
            )
            parts.append((f".rela{name}", RELA, 0, rows, table, index[name], 8))
        section_names = b"\0" + b"".join(part[0].encode() + b"\0" for part in parts) + b".shstrtab\0"
        parts.append((".shstrtab", STRTAB, 0, section_names, 0, 0, 1))
        body, headers = bytearray(64), bytearray(64)
        for name, kind, flags, data, link, info, align in parts:
            at = section_names.index(b"\0" + name.encode() + b"\0") + 1
            offset = len(body)
            entry = 24 if kind in (SYMTAB, RELA) else 0
            headers += struct.pack(
                "<IIQQQQIIQQ", at, kind, flags, 0, offset, len(data), link, info, align, entry
            )
            body += data
        start = len(body)
        body[:64] = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, len(parts) + 1, len(parts)
        )
        return bytes(body + headers)


def small_module() -> ModuleBuilder:
    """Return a module with a function that calls `victim` and returns through the thunk, and a table."""
    module = ModuleBuilder()
    code = bytes.fromhex("e80000000048c7c000000000e900000000") + b"\x90" * 15
    module.section(".text", ALLOC | EXECUTE, code)
    module.section(".rodata", ALLOC, b"read only, all of it\0\0\0\0" + bytes(8))
    module.section(".return_sites", ALLOC, bytes(4), align=1)
    module.section(".data", ALLOC | WRITE, b"writable")
    module.section(".modinfo", ALLOC, b"name=first\0license=GPL\0vermagic=6.1.0-synthetic SMP \0", align=1)
    module.symbol("entry", ".text")
    module.symbol("message", ".rodata")
    module.symbol("victim", None)
    module.symbol("__x86_return_thunk", None)
    module.relocate(".text", 1, PLT32, "victim", -4)
    module.relocate(".text", 8, ABSOLUTE32S, "message")
    module.relocate(".text", 13, PLT32, "__x86_return_thunk", -4)
    module.relocate(".rodata", 24, ABSOLUTE64, "victim")
    module.relocate(".return_sites", 0, PC32, "entry", 12)
    return module
