"""A kernel's IMA in memory: it measures files, writes the binary list, and extends PCR 10."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from affiant.tpm.algorithms import HashAlgorithm

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256


def fields(*values: bytes) -> bytes:
    """Template data: each field with its length."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def digest_field(content: bytes, algorithm: HashAlgorithm = SHA256) -> bytes:
    return algorithm.title.encode() + b":\0" + algorithm.digest(content)


@dataclass
class Measured:
    template: bytes
    data: bytes
    pcr: int = 10
    violation: bool = False

    @property
    def covered(self) -> bytes:
        """What the template digest is of."""
        if self.template != b"ima":
            return self.data
        return self.data[:20] + self.data[24:].ljust(256, b"\0")

    def encode(self, algorithm: HashAlgorithm = SHA1) -> bytes:
        digest = bytes(algorithm.digest_size) if self.violation else algorithm.digest(self.covered)
        head = struct.pack("<I", self.pcr) + digest + struct.pack("<I", len(self.template)) + self.template
        return head + (b"" if self.template == b"ima" else struct.pack("<I", len(self.data))) + self.data


@dataclass
class Kernel:
    entries: list[Measured] = field(default_factory=list)

    @classmethod
    def busy(cls) -> Kernel:
        """A few files under each template, and one violation."""
        kernel = cls()
        kernel.file("boot_aggregate", b"the PCRs")
        kernel.file("/usr/bin/bash", b"bash", template=b"ima-sig", third=b"\x03\x02signature")
        kernel.file("/usr/bin/open", b"", template=b"ima-sig", third=b"", violation=True)
        kernel.file("kexec-cmdline", b"root=/dev/vda", template=b"ima-buf", third=b"root=/dev/vda")
        kernel.file("/usr/bin/cat", b"cat")
        return kernel

    def file(
        self,
        path: str,
        content: bytes,
        *,
        template: bytes = b"ima-ng",
        third: bytes | None = None,
        violation: bool = False,
        pcr: int = 10,
    ) -> None:
        more = () if third is None else (third,)
        data = fields(digest_field(content), path.encode() + b"\0", *more)
        self.entries.append(Measured(template, data, pcr, violation))

    def legacy_file(self, path: str, content: bytes) -> None:
        data = SHA1.digest(content) + struct.pack("<I", len(path)) + path.encode()
        self.entries.append(Measured(b"ima", data))

    def list(self, algorithm: HashAlgorithm = SHA1) -> bytes:
        return b"".join(entry.encode(algorithm) for entry in self.entries)

    def pcrs(self, bank: HashAlgorithm = SHA256, *, padded: bool = False) -> dict[int, bytes]:
        """What the TPM holds; `padded` as kernels before 5.8 extend."""
        values = {pcr: bytes(bank.digest_size) for pcr in range(16)}
        for entry in self.entries:
            if entry.violation:
                extended = b"\xff" * bank.digest_size
            elif padded:
                extended = SHA1.digest(entry.covered).ljust(bank.digest_size, b"\0")
            else:
                extended = bank.digest(entry.covered)
            values[entry.pcr] = bank.digest(values[entry.pcr] + extended)
        return values
