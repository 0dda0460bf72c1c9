"""Reading and writing TPM octets: big-endian integers and sized buffers, always within bounds.

TPM 2.0 Library, Part 2, section 4 (notation) and 10.4 (sized buffers, TPM2B).
"""

from __future__ import annotations

import struct

from affiant.model.errors import MalformedError
from affiant.tpm.cursor import Cursor

__all__ = ["OctetReader", "sized"]

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


def sized(content: bytes) -> bytes:
    """The TPM2B encoding of `content`: a 16-bit length, then the octets."""
    if len(content) > 0xFFFF:
        raise ValueError("a sized buffer holds at most 65535 octets")
    return _U16.pack(len(content)) + content


class OctetReader(Cursor):
    """Reads the TPM's structures, which are big-endian (TPM 2.0 Library, Part 1, appendix B)."""

    __slots__ = ()

    def u8(self) -> int:
        """The next octet."""
        return self._data[self._advance(1)]

    def u16(self) -> int:
        """The next 16-bit big-endian integer."""
        value: int = _U16.unpack_from(self._data, self._advance(2))[0]
        return value

    def u32(self) -> int:
        """The next 32-bit big-endian integer."""
        value: int = _U32.unpack_from(self._data, self._advance(4))[0]
        return value

    def u64(self) -> int:
        """The next 64-bit big-endian integer."""
        value: int = _U64.unpack_from(self._data, self._advance(8))[0]
        return value

    def sized(self, field: str, *, maximum: int) -> bytes:
        """The next sized buffer (TPM2B), refused when longer than `maximum`."""
        size = self.u16()
        if size > maximum:
            raise MalformedError(f"{self._subject}: {field} of {size} octets is longer than {maximum}")
        return self.take(size)

    def since(self, offset: int) -> bytes:
        """The octets read since `offset`, exactly as they came."""
        return self._data[offset : self._offset]
