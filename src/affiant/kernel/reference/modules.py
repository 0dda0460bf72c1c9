"""The modules of a kernel's package: what each file is, so that a loaded module can be told from others.

The index names files by digest; it does not hold their contents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath

from affiant.kernel.reference.decompress import compression_of, decompress
from affiant.kernel.reference.elf import ElfFile, read_elf
from affiant.model.errors import MalformedError

__all__ = ["ModuleEntry", "decode_modules", "encode_modules", "read_module"]

_MAX_MODULE = 128 << 20
_MAX_MODULES = 20_000
_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_NAME = re.compile(r"[A-Za-z0-9_]{1,63}")


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One module. Sizes are bytes; digests are SHA-256 in lower-case hex, as the index is JSON.

    `file_digest` is of the file as packaged, `digest` of the module after decompression, signature
    included. `text_size` is that of `.text`, `code_size` of all executable sections that stay loaded.
    `srcversion`, `vermagic` and `build_id` are empty when the module has none. `signed` tells whether
    a signature is appended, not whether it holds.
    """

    name: str
    path: str
    file_digest: str
    digest: str
    srcversion: str
    vermagic: str
    build_id: str
    text_size: int
    code_size: int
    signed: bool


def read_module(path: str, data: bytes) -> ModuleEntry:
    """Return the index entry of a module file. Raises `MalformedError` if it is none."""
    content = decompress(data, limit=_MAX_MODULE) if compression_of(data) else data
    elf = read_elf(content)
    information = _modinfo(elf)
    name = information.get("name") or PurePosixPath(path).name.split(".ko")[0].replace("-", "_")
    if not _NAME.fullmatch(name):
        raise MalformedError(f"{path} has an unusable module name")
    text = elf.section(".text")
    resident = [
        section.size
        for section in elf.sections
        if section.allocated and section.executable and not section.name.startswith((".init", ".exit"))
    ]
    return ModuleEntry(
        name=name,
        path=path,
        file_digest=hashlib.sha256(data).hexdigest(),
        digest=hashlib.sha256(content).hexdigest(),
        srcversion=information.get("srcversion", ""),
        vermagic=information.get("vermagic", "").rstrip(" "),
        build_id=build_id(elf),
        text_size=text.size if text else 0,
        code_size=sum(resident),
        signed=content.endswith(_SIGNATURE_MAGIC),
    )


def build_id(elf: ElfFile) -> str:
    """Return the GNU build id in hex, or "" (ELF notes: name `GNU`, type 3)."""
    for section in elf.sections:
        if section.name not in (".note.gnu.build-id", ".notes"):
            continue
        notes, position = section.data, 0
        while position + 12 <= len(notes):
            name_size, size, kind = (
                int.from_bytes(notes[position + at : position + at + 4], "little") for at in (0, 4, 8)
            )
            name_end = position + 12 + name_size
            start = -(-name_end // 4) * 4
            if kind == 3 and bytes(notes[position + 12 : name_end]) == b"GNU\0" and 0 < size <= 64:
                return bytes(notes[start : start + size]).hex()
            position = -(-(start + size) // 4) * 4
    return ""


def encode_modules(modules: Sequence[ModuleEntry]) -> bytes:
    """Return the index as JSON, sorted by path, with sorted keys."""
    entries = [asdict(module) for module in sorted(modules, key=lambda module: module.path)]
    return json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode_modules(data: bytes | memoryview) -> tuple[ModuleEntry, ...]:
    """Read what `encode_modules` wrote; raises `MalformedError` otherwise."""
    try:
        entries = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise MalformedError("the reference image's module index is not JSON") from error
    if not isinstance(entries, list) or len(entries) > _MAX_MODULES:
        raise MalformedError("the reference image's module index is no list")
    types = {
        field.name: {"str": str, "int": int, "bool": bool}[str(field.type)] for field in fields(ModuleEntry)
    }
    modules: list[ModuleEntry] = []
    for entry in entries:
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != types:
            raise MalformedError("the reference image's module index has a broken entry")
        modules.append(ModuleEntry(**entry))
    return tuple(modules)


def _modinfo(elf: ElfFile) -> Mapping[str, str]:
    section = elf.section(".modinfo")
    if section is None or len(section.data) > 1 << 20:
        return {}
    pairs = (text.partition(b"=") for text in bytes(section.data).split(b"\0"))
    readable = [(key, value) for key, sign, value in pairs if sign and key.isascii() and value.isascii()]
    return {key.decode("ascii"): value.decode("ascii") for key, value in readable}
