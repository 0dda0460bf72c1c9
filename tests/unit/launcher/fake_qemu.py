"""A QEMU as the gateway sees it: speaks the control protocol and owns the guest's TPM channel."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

STARTUP_CLEAR = struct.pack(">HIIH", 0x8001, 12, 0x144, 0)
GET_RANDOM = struct.pack(">HIIH", 0x8001, 12, 0x17B, 8)


def read_pcr(index: int) -> bytes:
    """Return the TPM2_PCR_Read command of one SHA-256 PCR."""
    select = bytearray(3)
    select[index // 8] = 1 << index % 8
    return struct.pack(">HIIIHB", 0x8001, 20, 0x17E, 1, 0x000B, 3) + select


def code_of(response: bytes) -> int:
    """Return the response code."""
    return int.from_bytes(response[6:10], "big")


class FakeQemu:
    """Connects, hands over a data descriptor, and then does what it is told."""

    def __init__(self, path: Path) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(20)
        self.control.connect(str(path))
        self.guest: socket.socket | None = None

    def ask(
        self, command: int, payload: bytes = b"", *, answer: int = 4, descriptors: tuple[int, ...] = ()
    ) -> bytes:
        message = struct.pack(">I", command) + payload
        socket.send_fds(self.control, [message], list(descriptors))
        data = b""
        while len(data) < answer:
            part = self.control.recv(answer - len(data))
            if not part:
                raise ConnectionError("the gateway closed the control channel")
            data += part
        return data

    def result(self, command: int, payload: bytes = b"", **more: object) -> int:
        return int.from_bytes(self.ask(command, payload, **more)[:4], "big")  # type: ignore[arg-type]

    def hand_over_channel(self) -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            result = self.result(0x10, descriptors=(theirs.fileno(),))
        ours.settimeout(30)
        self.guest = ours
        return result

    def reset(self, buffer_size: int = 3968) -> None:
        """Do what QEMU does when the guest resets."""
        assert self.result(0x0E) == 0
        assert self.result(0x11, struct.pack(">I", buffer_size), answer=16) == 0
        assert self.result(0x02, bytes(4)) == 0

    def boot(self) -> None:
        """Open the TPM device and let the firmware start the TPM."""
        assert self.hand_over_channel() == 0
        self.reset()
        assert code_of(self.guest_sends(STARTUP_CLEAR)) == 0

    def guest_sends(self, command: bytes) -> bytes:
        """Write the bytes as QEMU does (at locality 0) and read one response."""
        assert self.guest is not None
        assert self.result(0x05, bytes(4)) == 0
        self.guest.sendall(command)
        return self.guest_receives()

    def guest_receives(self) -> bytes:
        assert self.guest is not None
        response = b""
        while len(response) < 10 or len(response) < int.from_bytes(response[2:6], "big"):
            part = self.guest.recv(4096)
            if not part:
                raise ConnectionError("the gateway closed the guest's channel")
            response += part
        return response

    def close(self) -> None:
        self.control.close()
        if self.guest is not None:
            self.guest.close()
