"""The bzImage that a boot loader loads: its setup header and the compressed kernel inside.

Offsets are those of the kernel's own Documentation/arch/x86/boot.rst ("The Linux/x86 Boot Protocol",
section "The Real-Mode Kernel Header").
"""

from __future__ import annotations

from dataclasses import dataclass

from affiant.model.errors import MalformedError

__all__ = ["BzImage", "read_bzimage"]

_SECTOR = 512
_MIN_PROTOCOL = 0x020C  # xloadflags, and all that is read here; every 64-bit kernel since 3.8
_XLF_KERNEL_64 = 1


@dataclass(frozen=True, slots=True)
class BzImage:
    """What the setup header says; nothing of it is proven by anything but the file's digest.

    `payload`: the compressed kernel. `banner`: the version text of the setup code, for instance
    `6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP ...`. `alignment`: what the virtual
    address of the kernel is a multiple of, in bytes. `preferred_address`: the physical address that
    the kernel is linked for.
    """

    payload: memoryview
    banner: str
    alignment: int
    preferred_address: int


def read_bzimage(data: bytes | memoryview) -> BzImage:
    """Return the setup header of a 64-bit bzImage.

    Guaranteed: boot protocol 2.12 or later with a 64-bit entry; the payload lies inside the file; the
    banner is printable ASCII; the alignment is a power of two from 4 KiB to 16 MiB.

    Raises `MalformedError` for anything else.
    """
    view = memoryview(data)
    if len(view) < 2 * _SECTOR or bytes(view[0x202:0x206]) != b"HdrS" or _u16(view, 0x1FE) != 0xAA55:
        raise MalformedError(
            "not a Linux kernel image (bzImage)",
            hint="give a package (linux-image-VERSION_amd64.deb) or a kernel file (vmlinuz) for x86-64",
        )
    protocol = _u16(view, 0x206)
    if protocol < _MIN_PROTOCOL or not _u16(view, 0x236) & _XLF_KERNEL_64:
        raise MalformedError(f"kernel image is not 64-bit (boot protocol {protocol >> 8}.{protocol & 0xFF})")
    setup_sectors = view[0x1F1] or 4  # zero means four, for the oldest boot loaders
    start = (setup_sectors + 1) * _SECTOR
    offset, length = _u32(view, 0x248), _u32(view, 0x24C)
    if length == 0 or start + offset + length > len(view):
        raise MalformedError("the kernel image's payload reaches beyond the end of the file")
    alignment = _u32(view, 0x230)
    if alignment & (alignment - 1) or not 1 << 12 <= alignment <= 1 << 24:
        raise MalformedError(f"kernel alignment {alignment:#x} is not a power of two in range")
    return BzImage(
        payload=view[start + offset : start + offset + length],
        banner=_banner(view, start),
        alignment=alignment,
        preferred_address=int.from_bytes(view[0x258:0x260], "little"),
    )


def _banner(view: memoryview, start: int) -> str:
    pointer = _u16(view, 0x20E)  # relative to the second sector
    if pointer == 0:
        return ""
    position = pointer + _SECTOR
    if position >= min(start, len(view)):
        raise MalformedError("the kernel image's version text lies outside its setup code")
    text = bytes(view[position : position + 256]).split(b"\0")[0]
    if not text.isascii() or not text.decode("ascii").isprintable():
        raise MalformedError("the kernel image's version text is not printable")
    return text.decode("ascii")


def _u16(view: memoryview, offset: int) -> int:
    return int.from_bytes(view[offset : offset + 2], "little")


def _u32(view: memoryview, offset: int) -> int:
    return int.from_bytes(view[offset : offset + 4], "little")
