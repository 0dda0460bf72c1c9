"""Reading Windows' packed structures: little-endian integers, always within bounds."""

from __future__ import annotations

from affiant.model.errors import MalformedError
from affiant.tpm.cursor import Cursor

__all__ = ["LittleEndianReader", "decode_utf16"]


class LittleEndianReader(Cursor):
    """Reads structures of Windows, which are packed and little-endian."""

    __slots__ = ()

    def u16(self) -> int:
        """The next 16-bit integer."""
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        """The next 32-bit integer."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """The next 64-bit integer."""
        return int.from_bytes(self.take(8), "little")


def decode_utf16(octets: bytes, subject: str) -> str:
    """The UTF-16 text in `octets`, without its terminating zeros; MalformedError when it is none."""
    try:
        return octets.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError:
        raise MalformedError(f"{subject}: not UTF-16") from None
