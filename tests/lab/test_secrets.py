"""Private keys stay where they are made: searched for, by their value, wherever else they could be.

Nothing is injected and nothing is asked of the programs. As root, this test reads the memory of the
real launcher and the real monitor, and finds their private keys there by what they are: the numbers
whose public points stand in the launch record and the session certificate. Then it looks for those
numbers everywhere else. A control proves that the search sees what there is.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.folders import cache_folder, home_folder
from affiant.tpm.templates import ATTESTATION_KEY
from affiant.wire.passport import decode_passport
from affiant.wire.runtime_report import read_runtime_report
from lab.console import Console
from tests.lab.attested import AttestedGuest
from tests.lab.processes import descendants

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reads other processes' memory, as root alone can")

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256, FIPS 186-4 D.1.2.3
_CHUNK = 16 << 20
_OVERLAP = 256


def test_private_keys_are_in_their_own_process_only(attested: AttestedGuest, tmp_path: Path) -> None:
    session_point = session_key_of(attested.ask().passport)
    launcher, monitor = attested.state.launcher_pid, monitor_process(attested)
    assert launcher
    identities = private_keys(launcher, points_known_to(launcher) - {session_point})
    assert len(identities) == 1, "the launcher holds one private key, the identity key"
    sessions = private_keys(monitor, {session_point})
    assert len(sessions) == 1, "the monitor holds the session key"
    ak_auth, ak_secret = attestation_key_secrets(launcher)
    (swtpm,) = [pid for pid, line in descendants(launcher).items() if line.startswith("/usr/bin/swtpm ")]

    # Each secret, and the processes that must hold it to do their work: the TPM makes the AK for each use.
    secrets = {
        "identity key": (identities.popitem()[1], {launcher}),
        "session key": (sessions.popitem()[1], {monitor}),
        "AK authorization": (ak_auth, {launcher, swtpm}),
        "AK secret, first half": (ak_secret[:32], {launcher, swtpm}),
        "AK secret, second half": (ak_secret[32:], {launcher, swtpm}),
    }
    patterns = {
        (name, form): data for name, (value, _) in secrets.items() for form, data in forms(value).items()
    }
    allowed = {(name, f"memory of {pid}") for name, (_, pids) in secrets.items() for pid in pids}
    found = [
        (name, place, form)
        for place, chunks in places(attested)
        for name, form in search(chunks, patterns if is_text(place) else compact(patterns))
    ]
    leaks = [each for each in found if each[:2] not in allowed]
    assert not leaks, descendants()
    holders = {name for name, _, _ in found}
    assert holders == set(secrets), "the search sees each secret where it lives"

    # The same search sees what is public in other kinds of places, and every form over every border.
    control = {("public key", form): data for form, data in forms(session_point[1:33]).items()}
    for kind in ("file", "memory"):
        assert any(
            search(chunks, compact(control)) for place, chunks in places(attested) if place.startswith(kind)
        )
    planted = tmp_path / "planted"
    planted.write_bytes(bytes(_CHUNK - 7) + b"".join(patterns.values()))
    assert set(search(file_chunks(planted), patterns)) == set(patterns)


def test_the_search_reads_guest_memory(attested: AttestedGuest, console: Console) -> None:
    """What a guest process writes is found in the guest's RAM, so a key there would be."""
    # Joined in the guest, so that neither the typed line nor its echo is what is found.
    console.run('a=0123456789abcdef; for i in 1 2 3 4; do echo "$a$a-in-the-guest"; done > /tmp/mark')
    mark = b"0123456789abcdef" * 2 + b"-in-the-guest\n"
    assert search(file_chunks(attested.state.ram), {("mark", ""): mark * 2})


def session_key_of(passport: bytes) -> bytes:
    """Return the point that the session certificate of a passport is for."""
    report = read_runtime_report(decode_passport(passport).runtime_report)
    key = x509.load_der_x509_certificate(report.certificates[0]).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def monitor_process(guest: AttestedGuest) -> int:
    """Return the monitor itself, not its sandbox: the innermost process of that command."""
    assert guest.state.launcher_pid
    below = descendants(guest.state.launcher_pid)
    (pid,) = [
        pid
        for pid, line in below.items()
        if line.startswith("/env/bin/python") and " -m affiant.monitor " in line
    ]
    return pid


def places(guest: AttestedGuest) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Every place that a secret could have leaked to: files, RAM, processes, their words and environments."""
    for folder in (home_folder(), cache_folder() / "images" / "made"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield f"file {path}", file_chunks(path)
    yield "guest memory", file_chunks(guest.state.ram)
    for pid in descendants():
        yield f"memory of {pid}", writable_memory(pid)
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield f"{name} of {folder.name}", [(folder / name).read_bytes()]
            except OSError:
                continue  # gone meanwhile


def forms(value: bytes) -> dict[str, bytes]:
    """The ways in which 32 bytes are written: either byte order, and as text."""
    text = base64.b64encode(value).rstrip(b"=")
    return {
        "big-endian": value,
        "little-endian": value[::-1],
        "hex": value.hex().encode(),
        "HEX": value.hex().upper().encode(),
        "base64": text[:-1],  # the last character depends on what follows
        "base64url": text[:-1].translate(bytes.maketrans(b"+/", b"-_")),
        # In the middle of a longer value base64 starts at one of two other bits.
        "base64, one off": base64.b64encode(bytes(1) + value)[2:42],
        "base64, two off": base64.b64encode(bytes(2) + value)[3:43],
    }


def is_text(place: str) -> bool:
    """Tell whether people or programs write words there: then every form of a secret is looked for."""
    return not place.startswith(("memory", "guest"))


def compact(patterns: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], bytes]:
    """Return the forms that programs keep in memory; gigabytes are searched for them."""
    return {key: data for key, data in patterns.items() if "endian" in key[1] or key[1] == "hex"}


def search(chunks: Iterable[bytes], patterns: dict[tuple[str, str], bytes]) -> list[tuple[str, str]]:
    """Return the patterns that occur, also over the border of two chunks."""
    found: set[tuple[str, str]] = set()
    before = b""
    for chunk in chunks:
        window = before + chunk
        found |= {key for key, pattern in patterns.items() if key not in found and pattern in window}
        before = window[-_OVERLAP:]
    return sorted(found)


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's data without its holes: most of a guest's RAM was never touched.

    Nothing of a file that has gone meanwhile, as a database's journal does.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        position = 0
        while position < end:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return  # a hole up to the end
            file.seek(position)
            data = file.read(_CHUNK)
            if not data:
                return
            yield data
            position += len(data)


def writable_memory(pid: int) -> Iterator[bytes]:
    """Yield what a process can write to: heap, stacks, arenas; without the guest's RAM."""
    return (data for _, data in writable_regions(pid))


def writable_regions(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield the same with addresses; nothing of a process that has gone meanwhile."""
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if "rw" not in fields[1] or (len(fields) == 6 and fields[5].startswith("/dev/shm")):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            while start < end:
                try:
                    memory.seek(start)
                    data = memory.read(min(_CHUNK, end - start))
                except OSError:
                    break  # the kernel's own, or unmapped meanwhile
                if not data:
                    break
                yield start, data
                start += len(data)


def read_memory(pid: int, address: int, size: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def points_known_to(pid: int) -> set[bytes]:
    """Return the P-256 points that a Python process holds as bytes objects: 65 octets, the first a 4."""
    found = set()
    for chunk in writable_memory(pid):
        for match in re.finditer(rb"\x41\0{7}[\s\S]{8}(\x04[\s\S]{64})\0", chunk):
            try:
                ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), match[1])
            except ValueError:
                continue
            found.add(match[1])
    return found


def private_keys(pid: int, points: set[bytes]) -> dict[bytes, bytes]:
    """Return, by point, the private numbers that lie in a process's memory as OpenSSL keeps them.

    That is: words of 64 bits, low one first, at the start of an allocation, before which the C library
    notes its size. Each such number is multiplied with the generator and compared.
    """
    found: dict[bytes, bytes] = {}
    tried: set[bytes] = set()
    for chunk in writable_memory(pid):
        # Sizes of 48 to 256 bytes with three flag bits; then 32 bytes, which are no number below 2^192.
        for match in re.finditer(rb"[\x30-\xff]\0{7}(?=([\s\S]{32}))", chunk):
            number = int.from_bytes(match[1], "little")
            if match.start() % 8 or match[1] in tried or not 1 << 192 < number < _ORDER:
                continue
            tried.add(match[1])
            key = ec.derive_private_key(number, ec.SECP256R1()).public_key()
            point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            if point in points:
                found[point] = match[1][::-1]
    return found


def attestation_key_secrets(pid: int) -> tuple[bytes, bytes]:
    """Return the authorization of the AK, and the secret that it is derived from.

    The launcher keeps both in one object, the template right behind the authorization: the template is
    found by its public beginning, then what points to it, then what the word before points to.
    """
    beginning = ATTESTATION_KEY.removesuffix(bytes(4)) + (32).to_bytes(2, "big")
    for start, chunk in writable_regions(pid):
        at = chunk.find(beginning)
        while at >= 0:
            template = chunk[at : at + len(beginning) + 66]
            # Of a bytes object the data stands behind count, type, length and hash.
            pointer = struct.pack("<Q", start + at - 32)
            for auth in _bytes_before_pointers(pid, pointer):
                secret = template[len(beginning) : len(beginning) + 32] + template[-32:]
                return auth, secret
            at = chunk.find(beginning, at + 1)
    raise AssertionError("the attestation key's secrets were not found where they must be")


def _bytes_before_pointers(pid: int, pointer: bytes) -> Iterator[bytes]:
    for chunk in writable_memory(pid):
        at = chunk.find(pointer)
        while at >= 8:
            (before,) = struct.unpack_from("<Q", chunk, at - 8)
            try:
                head = read_memory(pid, before, 64)
            except (OSError, OverflowError):
                head = b""
            if len(head) == 64 and struct.unpack_from("<Q", head, 16)[0] == 32:
                yield head[32:]
            at = chunk.find(pointer, at + 1)
