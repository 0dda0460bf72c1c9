"""Where the firmware says that an EFI image came from: UEFI_IMAGE_LOAD_EVENT.

TCG PC Client Platform Firmware Profile, section 10.2.3; device paths: UEFI, section 10.3. No digest
covers any of it (PCR 4 holds the image's Authenticode digest), so it is a name for people.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["untrusted_image_path"]

_HEADER: Final = struct.Struct("<QQQQ")  # address, length, link-time address, length of the device path
_NODE: Final = struct.Struct("<BBH")
_MEDIA, _FILE_PATH = 4, 4
_MAXIMUM_NODES: Final = 64
_MAXIMUM_PATH: Final = 512


def untrusted_image_path(data: bytes) -> str:
    """Return the file path that the log gives for an image, "" where it has none; never raises."""
    if len(data) < _HEADER.size:
        return ""
    end = min(len(data), _HEADER.size + _HEADER.unpack_from(data)[3])
    offset, parts = _HEADER.size, []
    for _ in range(_MAXIMUM_NODES):
        if offset + _NODE.size > end:
            break
        kind, subtype, size = _NODE.unpack_from(data, offset)
        if size < _NODE.size or offset + size > end:
            break
        if (kind, subtype) == (_MEDIA, _FILE_PATH):
            text = data[offset + _NODE.size : offset + size][:_MAXIMUM_PATH]
            parts.append(text.decode("utf-16-le", "replace").rstrip("\0"))
        offset += size
    return "".join(parts)
