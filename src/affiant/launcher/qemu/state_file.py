"""The memory that QEMU writes its device state into: a file without a name, for a few moments."""

from __future__ import annotations

import os

__all__ = ["StateFile"]


class StateFile:
    """Written through `descriptor`, which is for QEMU, and read here.

    What QEMU writes is as long as the state of the devices that the machine was given; the guest can
    change its content, not add to it at will.
    """

    def __init__(self) -> None:
        self._memory = os.memfd_create("device-state", os.MFD_CLOEXEC)
        try:
            # QEMU takes a descriptor of a set only if it is open for writing alone, as it wants it.
            self.descriptor = os.open(f"/proc/self/fd/{self._memory}", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._memory)
            raise

    def empty(self) -> None:
        """Forget what was written, and let the next writer begin at the start."""
        os.ftruncate(self._memory, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    def written(self, most: int) -> bytes:
        """Return what was written, or its first `most` bytes."""
        return os.pread(self._memory, most, 0)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.descriptor)
        os.close(self._memory)
