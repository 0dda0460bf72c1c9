"""A unified kernel image as a file: which kernel is in it, and how firmware names the whole.

One PE file holds systemd's stub, a kernel in the section `.linux`, and the kernel's command line and
initial RAM disk (UAPI.5, Unified Kernel Image). The firmware measures its Authenticode digest into PCR 4
before any of it runs, so that digest stands for all that is in it. An add-on is a PE file without a kernel
beside it, which the stub takes parameters from; it never runs, and is measured in the same way.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from affiant.kernel.reference.authenticode import authenticode_digest
from affiant.model.errors import MalformedError

__all__ = ["UnifiedFile", "read_unified_file"]

_COFF = struct.Struct("<4sHHIIIHH")
_SECTION = struct.Struct("<8sIIII12xI")  # name, virtual size, address, size and offset in the file, flags
_KERNEL = b".linux"
# What systemd-stub takes from an add-on (systemd-stub(7), "Companion files").
_OF_ADDONS = frozenset({b".cmdline", b".dtb", b".dtbauto", b".ucode", b".initrd", b".hwids", b".efifw"})


@dataclass(frozen=True, slots=True)
class UnifiedFile:
    """`authenticode` names it as PCR 4 does, `kernel` is SHA-256 of its kernel; an add-on has none."""

    authenticode: bytes
    kernel: bytes | None


def read_unified_file(data: bytes) -> UnifiedFile:
    """Read a unified kernel image, or an add-on of one. Who signed it is not looked at.

    Guaranteed: the kernel is the content of the only section `.linux`, as long as that section is in memory:
    what was given to the program that made the image, without the padding after it.

    Raises `MalformedError` for what is neither (another program could start anything), for more than one
    kernel (which of them runs is decided at boot), and for a kernel that the file does not hold in full.
    """
    authenticode = authenticode_digest(data)
    if authenticode is None:
        raise MalformedError("no unified kernel image: not a PE file")
    sections = _sections(data)
    kernels = [content for name, content in sections if name == _KERNEL]
    if len(kernels) > 1:
        raise MalformedError(f"the image holds {len(kernels)} kernels: which one runs is decided at boot")
    if not kernels and _OF_ADDONS.isdisjoint(name for name, _ in sections):
        raise MalformedError("neither a unified kernel image nor an add-on of one: another program")
    return UnifiedFile(authenticode, hashlib.sha256(kernels[0]).digest() if kernels else None)


def _sections(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return name and content of each section of a PE file whose headers have been checked."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    _, _, count, _, _, _, optional_size, _ = _COFF.unpack_from(data, header)
    table = header + _COFF.size + optional_size
    found = []
    for index in range(count):
        name, size, _, in_file, offset, _ = _SECTION.unpack_from(data, table + index * _SECTION.size)
        name = name.rstrip(b"\0")
        if name == _KERNEL and size > in_file:
            raise MalformedError("the image's kernel is longer than what the file holds of it")
        found.append((name, data[offset : offset + size]))
    return found
