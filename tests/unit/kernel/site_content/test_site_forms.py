"""Sites whose forms were built in, from returns and thunks to alternatives and paravirt calls."""

from __future__ import annotations

import pytest

from tests.unit.kernel.site_content.site_looks import (
    FOREIGN,
    RETURN,
    assert_found,
    wrong,
)
from tests.unit.kernel.site_world import (
    CALLEE,
    KVM_FLUSH,
    NATIVE,
    NOTHING,
    OTHER,
    OTHER_THUNK,
    PLACES,
    PV_OPS,
    RETURN_THUNK,
    SHIFT_VARIABLE,
    SLIDE,
    THUNKS,
    SiteWorld,
    near,
)


def test_other_return_thunks_of_the_kernel_are_legal(world: SiteWorld) -> None:
    for name in ("return_1", "return_2", "return_3"):
        world.write(PLACES[name], near(0xE9, PLACES[name], OTHER_THUNK))
    assert wrong(world) == []


def test_a_return_that_leads_elsewhere_is_found(world: SiteWorld) -> None:
    world.write(PLACES["return_2"], near(0xE9, PLACES["return_2"], OTHER))
    assert_found(world, "return", "return_2")
    (run,) = world.look().unexplained
    assert run.found == near(0xE9, PLACES["return_2"], OTHER)
    assert near(0xE9, PLACES["return_2"], RETURN_THUNK) in run.allowed
    world.write(PLACES["return_2"], near(0xE9, PLACES["return_2"], RETURN_THUNK))
    assert wrong(world) == []


def test_one_return_unlike_the_others_is_found(world: SiteWorld) -> None:
    """Each form is legal; that one site has another one is not."""
    world.write(PLACES["return_3"], RETURN)
    assert_found(world, "return", "return_3")


def test_a_thunk_call_may_become_an_indirect_call(world: SiteWorld) -> None:
    world.write(PLACES["thunk_call"], bytes.fromhex("ffd00f1f00"))
    world.write(PLACES["thunk_jump"], bytes.fromhex("ffe0cc6690"))
    world.write(PLACES["thunk_call_9"], bytes.fromhex("41ffd10f1f00"))
    assert wrong(world) == []


@pytest.mark.parametrize(
    "content",
    [
        near(0xE8, PLACES["thunk_call"], OTHER),
        near(0xE8, PLACES["thunk_call"], THUNKS + 32),
        bytes.fromhex("ffd10f1f00"),
        bytes.fromhex("ffe00f1f00"),
        bytes.fromhex("9090909090"),
    ],
    ids=["another function", "another register's thunk", "another register", "a jump", "nothing"],
)
def test_a_thunk_call_that_does_anything_else_is_found(world: SiteWorld, content: bytes) -> None:
    world.write(PLACES["thunk_call"], content)
    assert_found(world, "retpoline", "thunk_call")


@pytest.mark.parametrize(("thunk", "legal"), [("ffe0cc", True), ("ffe1cc", False), ("90ffe0", False)])
def test_a_thunk_made_at_run_time_must_be_that_of_its_register(
    world: SiteWorld, thunk: str, legal: bool
) -> None:
    """Indirect target selection: thunks lie outside of the image, in the upper half of a line."""
    world.heap(bytes(0x20) + bytes.fromhex(thunk), executable_at=FOREIGN)
    for name in ("thunk_call", "thunk_jump"):
        opcode = 0xE8 if name == "thunk_call" else 0xE9
        world.write(PLACES[name], near(opcode, PLACES[name] + SLIDE, FOREIGN + 0x20))
    assert (("retpoline", PLACES["thunk_call"]) not in wrong(world)) is legal


def test_a_lock_taken_from_one_place_is_found(world: SiteWorld) -> None:
    world.write(PLACES["lock_2"], b"\x3e")
    assert_found(world, "smp_lock", "lock_2")


def test_a_kernel_of_one_processor_has_no_locks(world: SiteWorld) -> None:
    for name in ("lock_1", "lock_2", "lock_3"):
        world.write(PLACES[name], b"\x3e")
    assert wrong(world) == []


def test_seals_are_legal_and_other_landing_pads_are_found(world: SiteWorld) -> None:
    for name in ("endbr_1", "endbr_2", "endbr_3"):
        world.write(PLACES[name], bytes.fromhex("660f1f00"))
    assert wrong(world) == []
    world.write(PLACES["endbr_1"], bytes.fromhex("ebfe9090"))
    assert_found(world, "endbr", "endbr_1")


def test_code_in_padding_is_found(world: SiteWorld) -> None:
    world.write(PLACES["pad_1"], b"\xeb\xfe")
    assert_found(world, "call_padding", "pad_1")


def test_replacements_are_legal_with_their_operands_moved(world: SiteWorld) -> None:
    for name in ("alternative_1", "alternative_2", "alternative_3"):
        world.write(PLACES[name], bytes.fromhex("0f01ca"))
    at = PLACES["alternative_call"]
    world.write(at, near(0xE8, at, OTHER) + bytes.fromhex("0f1f00"))
    assert wrong(world) == []


def test_merged_padding_of_what_was_linked_is_legal(world: SiteWorld) -> None:
    at = PLACES["alternative_call"]
    world.write(at, near(0xE8, at, CALLEE) + bytes.fromhex("0f1f00"))
    assert wrong(world) == []


def test_a_jump_behind_the_site_may_be_shortened(world: SiteWorld) -> None:
    """The replacement jumps to where the site ends: the kernel shortens it and pads."""
    world.write(PLACES["alternative_call"], bytes.fromhex("eb06cccccc0f1f00"))
    assert wrong(world) == []


@pytest.mark.parametrize(
    "content",
    [
        bytes.fromhex("0f01cb909090") + b"\x90\x90",
        near(0xE8, PLACES["alternative_call"], NATIVE) + b"\x90" * 3,
        near(0xE8, PLACES["alternative_call"], OTHER) + bytes.fromhex("ebfe90"),
        b"\x90" + near(0xE8, PLACES["alternative_call"] + 1, OTHER) + b"\x90" * 2,
        near(0xE8, PLACES["alternative_call"], OTHER) + bytes.fromhex("0f1f05"),
    ],
    ids=["another instruction", "another target", "code in padding", "another place", "an unknown nop"],
)
def test_an_alternative_that_is_none_of_its_own_is_found(world: SiteWorld, content: bytes) -> None:
    world.write(PLACES["alternative_call"], content)
    assert_found(world, "alternative", "alternative_call")


def test_an_alternative_that_contradicts_the_cpus_features_is_found(world: SiteWorld) -> None:
    """A legal replacement, where all other sites say that the feature is missing."""
    world.write(PLACES["alternative_2"], bytes.fromhex("0f01ca"))
    assert_found(world, "alternative", "alternative_2")
    assert "2 sites deny" in world.look().unexplained[0].reason


def test_a_call_through_pv_ops_becomes_direct(world: SiteWorld) -> None:
    at = PLACES["pv_call"]
    world.write(at, near(0xE8, at, NATIVE) + b"\x90")
    assert wrong(world) == []


def test_a_hypervisors_function_may_stand_in_pv_ops(world: SiteWorld) -> None:
    at = PLACES["pv_call"]
    world.write(PV_OPS + 8, (KVM_FLUSH + SLIDE).to_bytes(8, "little"))
    world.write(at, near(0xE8, at, KVM_FLUSH) + b"\x90")
    assert wrong(world) == []


def test_a_call_of_nothing_becomes_nothing(world: SiteWorld) -> None:
    world.write(PV_OPS + 8, (NOTHING + SLIDE).to_bytes(8, "little"))
    world.write(PLACES["pv_call"], bytes.fromhex("660f1f440000"))
    assert wrong(world) == []


@pytest.mark.parametrize("target", [OTHER, CALLEE])
def test_a_direct_call_that_pv_ops_does_not_hold_is_found(world: SiteWorld, target: int) -> None:
    world.write(PLACES["pv_call"], near(0xE8, PLACES["pv_call"], target) + b"\x90")
    assert_found(world, "paravirt", "pv_call")


def test_pv_ops_changed_along_with_the_call_is_found(world: SiteWorld) -> None:
    world.write(PV_OPS + 8, (OTHER + SLIDE).to_bytes(8, "little"))
    world.write(PLACES["pv_call"], near(0xE8, PLACES["pv_call"], OTHER) + b"\x90")
    assert_found(world, "paravirt", "pv_call")


def test_an_alternative_may_make_a_call_direct(world: SiteWorld) -> None:
    """Since 6.8; the slot of pv_ops tells where it leads."""
    at = PLACES["direct_call"]
    world.write(at, near(0xE8, at, NATIVE) + b"\x90")
    assert wrong(world) == []


def test_a_direct_call_is_held_against_its_slot_whenever_all_is_judged_anew(world: SiteWorld) -> None:
    """Not even a call that was legal before is so when the slot holds another function by now."""
    at = PLACES["direct_call"]
    world.write(at, near(0xE8, at, NATIVE) + b"\x90")
    for function, expected in ((NATIVE, []), (KVM_FLUSH, [("alternative", at)]), (NATIVE, [])):
        world.write(PV_OPS + 8, (function + SLIDE).to_bytes(8, "little"))
        world.seen.forget_verified()
        assert wrong(world) == expected
    world.write(at, near(0xE8, at, OTHER) + b"\x90")
    assert_found(world, "alternative", "direct_call")


def test_a_shift_unlike_its_fellows_is_found(world: SiteWorld) -> None:
    world.write(PLACES["shift_2"], b"\x0d")
    assert_found(world, "runtime_shift", "shift_2")


def test_shifts_that_their_variable_contradicts_are_found(world: SiteWorld) -> None:
    for name in ("shift_1", "shift_2", "shift_3"):
        world.write(PLACES[name], b"\x0d")
    assert wrong(world) == [("runtime_shift", PLACES["shift_1"])]
    world.write(SHIFT_VARIABLE, b"\x0d")
    assert wrong(world) == []
