"""Copies of a guest's pages: those asked for and those that CR3 names, at their places, for reading."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from affiant.launcher.qemu import page_copies
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.model.errors import SetupError, UnavailableError

PAGE = 4096
PAGES, LOW = 64, 48


def content(page: int, version: int = 1) -> bytes:
    return bytes([page, version]) * (PAGE // 2)


@dataclass
class Guest:
    """RAM of 64 pages, 48 of them below 4 GiB, and its copies as a monitor sees them."""

    ram: mmap.mmap
    copies: PageCopies
    seen: mmap.mmap

    def write(self, page: int, data: bytes) -> None:
        self.ram[page * PAGE : (page + 1) * PAGE] = data

    def copied(self) -> dict[int, bytes]:
        pages = {page: self.seen[page * PAGE : (page + 1) * PAGE] for page in range(PAGES)}
        return {page: data for page, data in pages.items() if data != bytes(PAGE)}

    def ram_used(self) -> int:
        return os.fstat(self.copies._ram).st_blocks

    def stored(self) -> int:
        return os.fstat(self.copies.descriptor).st_blocks


@pytest.fixture
def guest() -> Iterator[Guest]:
    ram = os.memfd_create("ram")
    os.ftruncate(ram, PAGES * PAGE)
    with mmap.mmap(ram, PAGES * PAGE) as mapped:
        copies = PageCopies(ram, memory_bytes=PAGES * PAGE, below_4g_bytes=LOW * PAGE)
        os.close(ram)
        with mmap.mmap(copies.descriptor, PAGES * PAGE, prot=mmap.PROT_READ) as seen:
            guest = Guest(mapped, copies, seen)
            for page in range(PAGES):
                guest.write(page, content(page))
            yield guest
        copies.close()


def test_pages_are_copied_as_they_are_when_they_are_taken(guest: Guest) -> None:
    guest.copies.prepare([(3, 2), (50, 1)])
    guest.write(4, content(4, 2))
    guest.copies.take([(3, 2), (50, 1)])
    guest.write(4, content(4, 3))
    assert guest.copied() == {3: content(3), 4: content(4, 2), 50: content(50)}


def test_copies_of_other_pages_are_gone_and_those_of_the_same_stay_in_place(guest: Guest) -> None:
    guest.copies.prepare([(3, 2)])
    guest.copies.prepare([(7, 1)])
    assert guest.copied() == {7: content(7)}
    guest.copies.take_roots(["CR3=0000000000005000"])
    guest.copies.prepare([(7, 1)])
    assert guest.copied() == {page: content(page) for page in (4, 5, 7)}
    guest.copies.forget()
    assert guest.stored() == 0
    assert guest.copied() == {}


def test_the_file_of_copies_is_never_shorter_than_what_is_mapped_of_it(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is still under way in another thread would end the launcher."""

    def shortened(descriptor: int, length: int) -> None:
        pytest.fail(f"cut to {length} bytes")

    monkeypatch.setattr(os, "ftruncate", shortened)
    guest.copies.prepare([(3, 2)])
    guest.copies.prepare([(7, 1)])
    guest.copies.forget()
    assert (guest.stored(), guest.copied()) == (0, {})


def test_page_tables_of_moments_that_are_over_do_not_pile_up(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_copies, "_MOST_ROOTS", 10)
    held = set()
    for page in range(0, 40, 2):
        guest.copies.prepare([(50, 1)])
        guest.copies.take_roots([f"CR3={page * PAGE:016x}"])
        held.add(guest.stored() * 512 // PAGE)
    assert max(held) <= 1 + 10 + 2 + 1


def test_page_tables_that_cr3_names_are_copied_with_their_other_half(guest: Guest) -> None:
    """Below and above 4 GiB, with a process context in the low bits; what is not RAM is left out."""
    above = (1 << 32) + 3 * PAGE  # the RAM file's page 51
    listings = [
        "CPU#0\nCR0=80050033 CR2=00007f0000000000 CR3=0000000000005007 CR4=00000020\n",
        f"CPU#1\nCR0=80050033 CR2=0000000000002000 CR3={above:016x} CR4=00000020\n",
        f"CPU#2\nCR0=80050033 CR2=0000000000002000 CR3={LOW * PAGE:016x} CR4=00000020\n",
        "CPU#3\nCR0=80050033 CR2=0000000000002000 CR3=ffffffffffffffff CR4=00000020\n",
    ]
    assert guest.copies.take_roots(listings) == (4, 5, 50, 51)
    assert guest.copied() == {page: content(page) for page in (4, 5, 50, 51)}


def test_pages_that_the_guest_does_not_have_are_refused(guest: Guest) -> None:
    guest.copies.prepare([(1, 1)])
    for runs in ([(PAGES, 1)], [(1, 1), (PAGES - 1, 2)], [(1 << 39, 1)]):
        with pytest.raises(SetupError, match="does not have"):
            guest.copies.prepare(runs)
    assert guest.copied() == {1: content(1)}


def test_a_host_without_memory_for_copies_says_so(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes to a page that cannot be had is killed, and with the launcher its guest."""
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if offset >= 7 * PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    guest.copies.prepare([(1, 1)])
    for runs in ([(3, 2), (7, 1)], [(8, 1)]):
        with pytest.raises(UnavailableError, match="no memory for copies of pages: No space left"):
            guest.copies.prepare(runs)
        assert (guest.stored(), guest.copied()) == (0, {})
    guest.copies.prepare([(3, 2)])
    with pytest.raises(UnavailableError, match="no memory for copies"):
        guest.copies.take_roots(["CR3=0000000000008000"])
    assert guest.copied() == {3: content(3), 4: content(4)}


def test_a_page_that_cannot_be_had_does_not_end_the_launcher(guest: Guest) -> None:
    """What is mapped beyond a file's end ends who touches it, as a page of a full file system does."""
    guest.copies.prepare([(3, 2)])
    os.truncate(guest.copies._file, 4 * PAGE)
    for runs, copied in (([(5, 1)], "Bad address"), ([(3, 3)], "(Bad address|4096 bytes of 12288)")):
        with pytest.raises(UnavailableError, match=f"cannot be copied: {copied}"):
            guest.copies.take(runs)


def test_pages_that_the_guest_never_touched_take_no_memory_that_is_not_there(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system of its RAM is full, who touches them is killed."""

    class Full:
        def madvise(self, option: int, start: int, length: int) -> None:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    guest.ram.madvise(mmap.MADV_REMOVE, 4 * PAGE, 2 * PAGE)
    used = guest.ram_used()
    monkeypatch.setattr(guest.copies, "_mapped_ram", Full())
    guest.copies.prepare([(3, 2), (6, 1)])
    guest.copies.take([(3, 2), (6, 1)])
    guest.copies.take_roots(["CR3=0000000000005000"])
    assert guest.copied() == {3: content(3), 6: content(6)}
    assert guest.ram_used() == used
    monkeypatch.undo()


def test_the_monitors_descriptor_is_for_reading(guest: Guest) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(guest.copies.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(guest.copies.descriptor, PAGE)
    with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
        os.ftruncate(guest.copies.descriptor, 0)


def test_ram_that_is_too_short_is_told_and_leaves_nothing_open(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(PAGE))
    with ram.open("rb") as file:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(UnavailableError, match="cannot be copied"):
            PageCopies(file.fileno(), memory_bytes=PAGES * PAGE, below_4g_bytes=PAGES * PAGE)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_copies_in_locked_memory_are_given_back(guest: Guest) -> None:
    """A launcher that runs as root locks all of its memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(guest.copies._copies))
    assert libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(PAGES * PAGE)) == 0
    guest.copies.prepare([(3, 2)])
    assert set(guest.copied()) == {3, 4}
    guest.copies.prepare([(7, 1)])
    assert set(guest.copied()) == {7}
    guest.copies.forget()
    assert (guest.stored(), guest.copied()) == (0, {})
