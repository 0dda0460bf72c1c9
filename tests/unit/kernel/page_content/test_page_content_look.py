"""Every executable page has an owner that may have what stands there; time tells what passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from affiant.kernel.page_content.claim import Claim, Fault, is_filler, pages_around
from affiant.kernel.page_content.look import PageContent, PageOwners, read_page_content
from affiant.kernel.page_content.thunk_pages import ThunkPages
from affiant.kernel.page_content.view import View
from affiant.model.errors import MalformedError
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.site_world import TEXT_MUTEX, SiteWorld
from tests.unit.kernel.synthetic_guest import (
    DATA,
    DIRECT_MAP,
    MODULE_AREA,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

NOBODYS = MODULE_AREA + 0x30_0000
THUNKS = DATA + 0x1800


def look(world: SiteWorld, now: float) -> PageContent:
    seen = world.seen
    return read_page_content(seen, seen.page_owners, now=now)


@pytest.fixture
def world() -> SiteWorld:
    return SiteWorld()


def test_a_truthful_guest_has_only_pages_of_its_module(world: SiteWorld) -> None:
    seen = look(world, 0.0)
    assert (seen.pages, seen.modules, seen.faults, seen.settling) == (1, {"first": 1}, (), ())


def test_a_page_of_nobody_counts_when_it_has_lasted(world: SiteWorld) -> None:
    world.heap(b"\xcc" * 100 + bytes.fromhex("0f20c0c3"), executable_at=NOBODYS)
    for second in range(5):
        seen = look(world, float(second))
        assert (seen.faults, len(seen.settling)) == ((), 1)
    (fault,) = look(world, 5.0).faults
    assert (fault.address, fault.reason) == (NOBODYS, "belongs to nobody (1 pages)")
    assert fault.found.startswith(bytes.fromhex("0f20c0c3"))


def test_a_page_of_nobody_counts_though_its_neighbours_change(world: SiteWorld) -> None:
    """Pages are remembered one by one: mapping another beside one does not make it new."""
    world.heap(b"\x90" * 4096, executable_at=NOBODYS)
    for second in range(6):
        world.heap(bytes([second + 1]) * 4096, executable_at=NOBODYS + 4096)
        seen = look(world, float(second))
    assert [(fault.address, fault.reason) for fault in seen.faults] == [
        (NOBODYS, "belongs to nobody (1 pages)")
    ]
    assert [fault.address for fault in seen.settling] == [NOBODYS + 4096]


def test_an_owner_that_is_always_at_fault_cannot_evade_by_changing_the_fault() -> None:
    guest = thunk_world()
    seen = guest.open()
    owners = PageOwners(seen)
    for second in range(60):
        line = 64 * (second % 60)
        before = guest.poke(0x140_0000 + line, b"\x90")
        view = read_page_content(seen, owners, now=float(second))
        assert (view.faults, len(view.settling)) == ((), 1)
        guest.poke(0x140_0000 + line, before)
    guest.poke(0x140_0000, b"\x90")
    assert len(read_page_content(seen, owners, now=60.0).faults) == 1


class Leaving:
    """An owner of code that it has given up, and that nobody has freed yet."""

    kind = "leaving"

    def __init__(self, waits: bool = True) -> None:
        self.waiting = frozenset({NOBODYS}) if waits else frozenset[int]()
        self.at = NOBODYS

    def claims(self, _: View) -> Iterator[Claim]:
        left = (Fault.at(self.at, "nobody", "left", b"\xc3"),)
        yield Claim(NOBODYS, NOBODYS + 4096, "nobody", leaving=left, waiting=self.waiting)


@pytest.mark.parametrize(("waits", "told"), [(False, 5), (True, 64)])
def test_code_that_leaves_counts_soon_unless_it_waits_to_be_freed(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch, waits: bool, told: int
) -> None:
    """A busy guest takes its time to free what was in order; it does not take for ever."""
    monkeypatch.setattr(world.seen.page_owners, "_owners", (Leaving(waits),))
    seen = [look(world, float(second)) for second in range(70)]
    assert [bool(each.faults) for each in seen].index(True) == told
    assert all(len(each.faults) + len(each.settling) == 1 for each in seen)


def test_code_that_leaves_now_here_now_there_counts_after_a_minute(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Leaving(waits=False)
    monkeypatch.setattr(world.seen.page_owners, "_owners", (owner,))
    found = []
    for second in range(62):
        owner.at = NOBODYS + 64 * (second % 30)
        found.append(bool(look(world, float(second)).faults))
    assert found.index(True) == 60


class Freeing:
    """An owner with code in it that nobody lists: freed soon, or hidden."""

    kind = "freeing"

    def claims(self, _: View) -> Iterator[Claim]:
        fault = Fault.at(NOBODYS, "nobody", "is on no list", b"\xc3")
        yield Claim(NOBODYS, NOBODYS + 4096, "nobody", (fault,))


class Flapping:
    """An owner whose list leads nowhere in some readings, with code in it that may not be there."""

    kind = "flapping"

    def __init__(self, readable: Callable[[int], bool]) -> None:
        self._readable = readable
        self.readings = 0

    def claims(self, _: View) -> Iterator[Claim]:
        self.readings += 1
        if not self._readable(self.readings):
            raise MalformedError("the list runs in a circle")
        fault = Fault.at(NOBODYS + 4096, "flapping", "is foreign", b"\xc3")
        yield Claim(NOBODYS + 4096, NOBODYS + 8192, "flapping", (fault,))


def test_what_is_wrong_with_an_owner_that_was_not_read_at_first_is_told(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another owner's fault has all of them be read again."""
    flapping = Flapping(lambda reading: reading > 3)
    monkeypatch.setattr(world.seen.page_owners, "_owners", (Freeing(), flapping))
    seen = look(world, 0.0)
    assert (flapping.readings, dict(seen.unread)) == (4, {})
    assert {fault.owner for fault in seen.settling} == {"nobody", "flapping"}


def test_an_owner_cannot_evade_by_not_being_read_now_and_then(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look in which nobody knows what it has says so, and forgets nothing of what was seen."""
    readable = True
    monkeypatch.setattr(world.seen.page_owners, "_owners", (Flapping(lambda _reading: readable),))
    found = []
    for second in range(24):
        readable = second % 2 == 0
        seen = look(world, float(second))
        assert bool(seen.unread) is not readable
        found.append(bool(seen.faults))
    assert found.index(True) == 10


@pytest.mark.parametrize(("owner", "told"), [(0, 5), (DIRECT_MAP, 60)])
def test_code_that_is_to_be_freed_waits_for_whoever_changes_code(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch, owner: int, told: int
) -> None:
    """For a minute at most: then the same owner was at fault in every look."""
    monkeypatch.setattr(world.seen.page_owners, "_owners", (Freeing(),))
    world.write(TEXT_MUTEX, owner.to_bytes(8, "little"))
    found = [bool(look(world, float(second)).faults) for second in range(70)]
    assert found.index(True) == told


def test_a_page_without_code_needs_no_owner(world: SiteWorld) -> None:
    world.heap(b"\xcc" * 4096, executable_at=NOBODYS)
    seen = look(world, 0.0)
    assert (seen.pages, seen.traps, seen.settling) == (2, 1, ())


def test_owners_whose_lists_have_no_end_are_told_and_nobody_is_blamed() -> None:
    """What is unowned is not known while an owner is not: blindness is no finding."""
    guest = thunk_world()
    world = guest.open()
    guest.poke(guest.physical(THUNKS) + 8, (1 << 30).to_bytes(4, "little"))
    guest.map(NOBODYS, 0x140_0000, 4096, executable=True)
    seen = read_page_content(world, PageOwners(world), now=0.0)
    assert list(seen.unread) == ["thunk"]
    assert seen.settling == ()


def thunk_types(btf: BtfBuilder) -> None:
    btf.struct(
        "its_array", 16, ("pages", btf.pointer(0), 0), ("num", btf.integer("count", 4, signed=True), 8)
    )


def thunk_world() -> SyntheticGuest:
    """A kernel that made one page of thunks for itself."""
    guest = SyntheticGuest(
        reference=make_reference(types=kernel_types(thunk_types), further_symbols={"its_pages": THUNKS})
    )
    array, address = guest.allocate(8)
    guest.word(array, NOBODYS)
    guest.poke(guest.physical(THUNKS), address.to_bytes(8, "little") + (1).to_bytes(4, "little"))
    page = bytearray(b"\xcc" * 4096)
    page[0x20:0x22], page[0x60:0x63] = bytes.fromhex("ffe0"), bytes.fromhex("41ffe3")
    guest.poke(0x140_0000, bytes(page))
    guest.map(NOBODYS, 0x140_0000, 4096, executable=True)
    return guest


def test_thunks_in_the_upper_half_of_a_line_are_legal() -> None:
    seen = thunk_world().open()
    (claim,) = ThunkPages().claims(View(seen))
    assert (claim.start, claim.owner, claim.faults) == (NOBODYS, "kernel", ())


@pytest.mark.parametrize(
    ("offset", "code"),
    [(0, "ffe0"), (0x20, "ff20"), (0x20, "ffd0"), (0x20, "90ffe0"), (0xA0, "0f22c0"), (0xFFE, "ebfe")],
    ids=["lower half", "through memory", "a call", "something before", "anything else", "the last bytes"],
)
def test_a_page_of_thunks_holds_nothing_else(offset: int, code: str) -> None:
    guest = thunk_world()
    guest.poke(0x140_0000 + offset, bytes.fromhex(code))
    seen = guest.open()
    (claim,) = ThunkPages().claims(View(seen))
    (fault,) = claim.faults
    assert (fault.address, fault.reason) == (NOBODYS + offset // 64 * 64, "is no thunk")


def test_a_page_that_is_not_mapped_leaves_its_kind_unread() -> None:
    guest = thunk_world()
    guest.map(NOBODYS, 1 << 40, 4096, executable=True)
    seen = guest.open()
    assert list(read_page_content(seen, PageOwners(seen), now=0.0).unread) == ["thunk"]


def test_filler_is_one_byte_over_and_over() -> None:
    assert is_filler(b"") and is_filler(bytes(7)) and is_filler(b"\xcc" * 9)
    assert not is_filler(b"\xcc\x00") and not is_filler(b"\x90" * 4)
    assert pages_around(0x1001, 0x1002) == (0x1000, 0x2000)
