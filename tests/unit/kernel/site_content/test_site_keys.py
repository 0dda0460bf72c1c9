"""Sites that follow a key, and pointers that boot may choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.site_content.fixed_integers import FixedIntegers
from affiant.kernel.site_content.function_types import FunctionTypes
from affiant.kernel.site_content.image import KernelImage
from tests.unit.kernel.site_content.site_looks import (
    FOREIGN,
    NOP5,
    RETURN,
    assert_found,
    passing,
    wrong,
)
from tests.unit.kernel.site_world import (
    CALL_KEY,
    CALLEE,
    INIT_POINTER,
    KEY_NEAR,
    OTHER,
    PLACES,
    SLIDE,
    TRAMPOLINE,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import MODULE_AREA


def test_a_label_follows_its_key(world: SiteWorld) -> None:
    at = PLACES["label_near"]
    world.write(KEY_NEAR, b"\1\0\0\0")
    world.write(at, near(0xE9, at, at + 0x200))
    assert (wrong(world), passing(world)) == ([], [])


@pytest.mark.parametrize("target", [OTHER, PLACES["label_near"] + 0x201])
def test_a_label_that_leads_elsewhere_is_found(world: SiteWorld, target: int) -> None:
    world.write(KEY_NEAR, b"\1\0\0\0")
    world.write(PLACES["label_near"], near(0xE9, PLACES["label_near"], target))
    assert ("jump_label", PLACES["label_near"]) in wrong(world)


def test_a_label_against_its_key_counts_when_it_has_lasted(world: SiteWorld) -> None:
    at = PLACES["label_near"]
    world.write(at, near(0xE9, at, at + 0x200))
    assert (wrong(world), passing(world)) == ([], [("jump_label", at)])
    facts = [collect(world.seen, ["kernel_text"], now=now)["kernel_text"].to_json() for now in range(8)]
    assert facts[0]["unexplained"] == []
    assert facts[0]["settling"][0]["site"] == "jump_label"
    assert facts[-1]["unexplained"][0]["site"] == "jump_label"
    assert facts[-1]["settling"] == []


def test_a_poke_in_flight_passes_for_moments_only(world: SiteWorld) -> None:
    world.write(PLACES["label_near"], b"\xcc")
    assert (wrong(world), passing(world)) == ([], [("jump_label", PLACES["label_near"])])
    world.write(PLACES["label_near"], b"\xcc\xeb\xfe")
    assert wrong(world) == [("jump_label", PLACES["label_near"])]


def test_a_call_that_is_being_changed_passes_for_moments_only(world: SiteWorld) -> None:
    """Its key may have changed once more by the time that it is read."""
    at = PLACES["static_call"]
    world.write(at, b"\xcc" + near(0xE8, at, OTHER)[1:])
    assert (wrong(world), passing(world)) == ([], [("static_call", at)])
    world.write(at, b"\xcc" + near(0xE8, at, OTHER + 1)[1:])
    assert wrong(world) == [("static_call", at)]


@pytest.mark.parametrize("place", ["return_1", "alternative_1", "thunk_call", "lock_1", "shift_1"])
def test_breakpoints_where_the_kernel_puts_none_are_found(world: SiteWorld, place: str) -> None:
    world.write(PLACES[place], b"\xcc")
    assert passing(world) == []
    assert PLACES[place] in {address for _, address in wrong(world)}


def test_static_calls_follow_their_key(world: SiteWorld) -> None:
    call, tail = PLACES["static_call"], PLACES["static_tail"]
    world.write(call, near(0xE8, call, CALLEE))
    world.write(tail, near(0xE9, tail, CALLEE))
    assert (wrong(world), passing(world)) == ([], [])
    world.write(CALL_KEY, bytes(8))
    world.write(call, NOP5)
    world.write(tail, RETURN)
    world.write(TRAMPOLINE, RETURN)
    assert (wrong(world), passing(world)) == ([], [])


def test_a_static_call_that_its_key_does_not_hold_counts_when_it_has_lasted(world: SiteWorld) -> None:
    world.write(PLACES["static_call"], near(0xE8, PLACES["static_call"], OTHER))
    assert passing(world) == [("static_call", PLACES["static_call"])]
    facts = [collect(world.seen, ["kernel_text"], now=now)["kernel_text"].to_json() for now in range(8)]
    assert "leads to other+0x0" in facts[-1]["unexplained"][0]["reason"]


def test_a_static_call_into_the_middle_of_a_function_is_found_at_once(world: SiteWorld) -> None:
    world.write(PLACES["static_call"], near(0xE8, PLACES["static_call"], OTHER + 4))
    assert_found(world, "static_call", "static_call")


def test_a_key_that_holds_another_kind_of_function_is_found(world: SiteWorld) -> None:
    world.write(CALL_KEY, (OTHER + SLIDE).to_bytes(8, "little"))
    assert ("static_call_trampoline", TRAMPOLINE) in wrong(world)
    assert ("static_call", PLACES["static_call"]) in wrong(world)


def test_copies_of_a_function_of_a_header_are_alike(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dispatcher's key is linked with one file's copy of a function, and given back another's."""
    image = KernelImage(world.seen.memory, world.seen.kernel_space, world.seen.program, world.seen.text)
    types = FunctionTypes(image)
    assert not types.alike(CALL_KEY + SLIDE, CALLEE + SLIDE, OTHER + SLIDE)
    monkeypatch.setattr(image, "names_at", lambda address: ("bpf_dispatcher_nop_func",))
    assert types.alike(CALL_KEY + SLIDE, CALLEE + SLIDE, OTHER + SLIDE)


def test_a_key_that_leads_out_of_the_kernel_names_its_target(world: SiteWorld) -> None:
    world.write(CALL_KEY, FOREIGN.to_bytes(8, "little"))
    assert {run.culprit for run in world.look().unexplained} == {FOREIGN}


def test_keys_and_sites_are_held_against_each_other_in_each_look_however_often_they_agreed(
    world: SiteWorld,
) -> None:
    """Whichever of the two changes, and back."""
    label, call = PLACES["label_near"], PLACES["static_call"]
    changes = (
        (KEY_NEAR, b"\1\0\0\0", "jump_label"),
        (label, near(0xE9, label, label + 0x200), "jump_label"),
        (CALL_KEY, (OTHER + SLIDE).to_bytes(8, "little"), "static_call"),
        (call, near(0xE8, call, OTHER), "static_call"),
    )
    for place, content, kind in changes:
        for _ in range(2):
            assert (wrong(world), passing(world)) == ([], [])
        before = world.write(place, content)
        for _ in range(2):
            assert kind in {site for site, _ in (*wrong(world), *passing(world))}, hex(place)
        world.write(place, before)
    assert (wrong(world), passing(world)) == ([], [])


def test_integers_at_fixed_addresses_are_those_of_now(world: SiteWorld) -> None:
    """Those of other pages that are mapped there, too, and those that lie in two pages."""
    guest, place = world.guest, MODULE_AREA + 0x20_0000
    for page in range(4):
        guest.poke(0x180_0000 + 4096 * page, bytes([page + 1]) * 4096)
    for page in range(2):
        guest.map(place + 4096 * page, 0x180_0000 + 4096 * page, 4096)
    image = KernelImage(world.seen.memory, world.seen.kernel_space, world.seen.program, world.seen.text)
    aligned = FixedIntegers(image, np.array([place, place + 4096, CALL_KEY + SLIDE], dtype=np.uint64), 8)
    across = FixedIntegers(image, np.array([place + 4092], dtype=np.uint64), 8)
    words = [int.from_bytes(bytes([page + 1]) * 8, "little") for page in range(4)]
    assert [aligned.read().tolist() for _ in range(2)] == 2 * [[words[0], words[1], CALLEE + SLIDE]]
    assert across.read().tolist() == [words[0] >> 32 | words[1] >> 32 << 32]
    guest.poke(0x180_0000, bytes([9]))
    world.write(CALL_KEY, bytes(8))
    assert aligned.read().tolist() == [words[0] + 8, words[1], 0]
    guest.map(place + 4096, 0x180_3000, 4096)
    assert aligned.read().tolist() == [words[0] + 8, words[3], 0]
    assert across.read().tolist() == [words[0] >> 32 | words[3] >> 32 << 32]
    guest.map(place, 1 << 40, 4096)
    for integers in (aligned, across):
        with pytest.raises(MemoryFault):
            integers.read()
    empty = FixedIntegers(image, np.empty(0, dtype=np.uint64), 8)
    assert [len(empty.read()) for _ in range(2)] == [0, 0]


def test_keys_that_cannot_be_read_leave_their_sites_unjudged(world: SiteWorld) -> None:
    """Blindness is told, not taken for health."""
    guest = world.guest
    space = world.seen.kernel_space
    guest.map(0xFFFF_FFFF_F000_0000, 0, 4096)  # the tables stay whole; only data disappears
    table = guest.root
    linked = KEY_NEAR + SLIDE
    for level in range(space.levels, 2, -1):
        entry = int.from_bytes(guest.ram[table + 8 * (linked >> 12 + 9 * (level - 1) & 511) :][:8], "little")
        table = entry & 0x000F_FFFF_FFFF_F000
    guest.word(table + 8 * (linked >> 21 & 511), 0)
    seen = world.look()
    assert {text.partition(":")[0] for text in seen.unjudged} >= {"jump_label", "static_call"}
    fact = collect(world.seen, ["kernel_text"])["kernel_text"].to_json()
    assert fact["unjudged"]


def rodata(world: SiteWorld) -> dict[str, Any]:
    return collect(world.seen, ["kernel_rodata"])["kernel_rodata"].to_json()


def test_a_pointer_that_boot_sets_may_choose_another_function(world: SiteWorld) -> None:
    assert {"name": "__ro_after_init pointers", "bytes": 8} in rodata(world)["regions"]
    for target in (OTHER + SLIDE, 0):
        world.write(INIT_POINTER, target.to_bytes(8, "little"))
        assert rodata(world)["unexplained"] == []


@pytest.mark.parametrize("target", [OTHER + SLIDE + 1, FOREIGN, 0x1234, MODULE_AREA + 0x40])
def test_a_pointer_that_boot_sets_to_anything_else_is_found(world: SiteWorld, target: int) -> None:
    assert [rodata(world)["unexplained"] for _ in range(2)] == [[], []]
    world.write(INIT_POINTER, target.to_bytes(8, "little"))
    (found,) = rodata(world)["unexplained"]
    assert (found["site"], found["address"]) == ("pointer", hex(INIT_POINTER + SLIDE))


def test_a_word_that_leads_into_a_function_is_found(world: SiteWorld) -> None:
    assert [rodata(world)["unexplained"] for _ in range(2)] == [[], []]
    world.write(INIT_POINTER + 0x40, (OTHER + SLIDE + 7).to_bytes(8, "little"))
    assert [run["reason"] for run in rodata(world)["unexplained"]] == ["leads into a function"]


def test_bytes_that_boot_left_alone_are_no_pointer(world: SiteWorld) -> None:
    linked = world.reference.read(INIT_POINTER + 0x40, 8)
    world.write(INIT_POINTER + 0x40, bytes(linked))
    assert rodata(world)["unexplained"] == []
