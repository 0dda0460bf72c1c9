"""Patch sites as a whole: what is legal is remembered, and looks keep up with a kernel that moves."""

from __future__ import annotations

import numpy as np
import pytest

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.fixed_forms import FixedForms, FormTable
from affiant.kernel.site_content.paravirt import PvOps
from affiant.kernel.site_content.rule import SiteSet
from tests.unit.kernel.site_content.site_looks import (
    NOP5,
    RETURN,
    passing,
    probe,
    wrong,
)
from tests.unit.kernel.site_world import (
    KEY_NEAR,
    PLACES,
    SLIDE,
    TRACER,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import LINK


def test_a_kernel_as_linked_is_legal_and_every_site_is_judged(world: SiteWorld) -> None:
    seen = world.look()
    assert (seen.unexplained, seen.passing, seen.unjudged, seen.unchecked) == ((), (), (), ())
    assert seen.sites["return"] == 3
    assert set(seen.sites) == {table.kind.name.lower() for table in world.reference.tables}


def test_legal_forms_are_remembered_and_counted_as_differing(world: SiteWorld) -> None:
    for name in ("return_1", "return_2", "return_3"):
        world.write(PLACES[name], RETURN)
    first, second = world.look(), world.look()
    assert first.unexplained == second.unexplained == ()
    assert first.by_class == second.by_class == {"return": 15}


def test_what_is_remembered_is_judged_anew_once_it_was_forgotten(world: SiteWorld) -> None:
    """A look compares with what was found legal: were that memory wrong, the next full look would tell."""
    at = PLACES["return_1"]
    for name in ("return_1", "return_2", "return_3"):
        world.write(PLACES[name], RETURN)
    world.look()
    hook = near(0xE9, at, at + 0x1000)
    world.write(at, hook)
    content = world.seen.text_content
    content.accepted[at - LINK : at - LINK + 5] = np.frombuffer(hook, dtype=np.uint8)
    assert wrong(world) == []
    world.seen.forget_verified()
    assert ("return", at) in wrong(world)
    assert ("return", at) in wrong(world), "it was found once, and then taken for legal"


def test_a_site_that_held_no_form_when_all_was_judged_is_judged_again(world: SiteWorld) -> None:
    """Else one that comes to hold what was linked would be taken for what it held before that look."""
    at = PLACES["label_near"]
    linked = world.write(at, near(0xE9, at, at + 0x200))
    world.write(KEY_NEAR, b"\1")
    assert (wrong(world), passing(world)) == ([], [])
    world.write(at, b"\xcc")
    world.seen.forget_verified()
    assert passing(world) == [("jump_label", at)]
    world.write(at, linked)
    assert passing(world) == [("jump_label", at)], "it does not jump, and its key is enabled"
    world.write(at, near(0xE9, at, at + 0x200))
    assert (wrong(world), passing(world)) == ([], [])


def test_a_class_that_could_not_be_asked_when_all_was_judged_is_asked_again(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise MemoryFault("pv_ops is not mapped")

    places = [PLACES[name] for name in ("alternative_1", "alternative_2", "alternative_3")]
    linked = [world.write(at, bytes.fromhex("0f01ca")) for at in places]
    assert wrong(world) == []
    world.write(places[1], linked[1])
    world.seen.forget_verified()
    with monkeypatch.context() as unmapped:
        unmapped.setattr(PvOps, "read", unreadable)
        assert any("alternative" in reason for reason in world.look().unjudged)
    assert wrong(world) == [("alternative", places[1])]


def test_who_asks_for_verified_text_after_it_was_forgotten_gets_it_judged_first(world: SiteWorld) -> None:
    for name in ("return_1", "return_2", "return_3"):
        world.write(PLACES[name], RETURN)
    content = world.seen.text_content
    world.look()
    content.forget()
    assert content._verified(PLACES["return_1"] + SLIDE, 5) == RETURN


def test_sites_that_are_all_shorter_than_their_longest_form_are_judged() -> None:
    """A module may have nothing but short retpoline sites; forms of six bytes exist all the same."""
    offsets = np.array([0, 8], dtype=np.int64)
    lengths, nothing = np.array([5, 5]), np.zeros(2, dtype=np.int64)
    sites = SiteSet(offsets.astype(np.uint64), offsets, lengths, nothing, nothing)
    content = np.zeros((2, 2, 6), dtype=np.uint8)
    content[:, 1, :5] = 7
    table = FormTable(("linked", "patched"), content, np.ones((2, 2), dtype=bool), nothing)
    rule = FixedForms(SiteClass.RETPOLINE, sites, table)
    rows = np.array([[7, 7, 7, 7, 7], [7, 7, 7, 7, 8]], dtype=np.uint8)
    assert rule.take(np.arange(2), rows).tolist() == [True, False]


def _judged(world: SiteWorld, copy: bytes) -> tuple[list[str], list[str]]:
    """Judge a copy of the text that was made before the guest came to be as it is."""
    live = np.frombuffer(copy, dtype=np.uint8)
    content = world.seen.text_content
    verdict = content.judge(live, np.flatnonzero(live != content.accepted))
    assert verdict.unreadable == ()
    return [run.site for run in verdict.wrong], [run.site for run in verdict.passing]


def test_a_key_and_its_site_changed_since_the_copy_was_made_agree(world: SiteWorld) -> None:
    before = world.text()
    at = PLACES["label_near"]
    world.write(at, near(0xE9, at, at + 0x200))
    world.write(KEY_NEAR, b"\1")
    assert _judged(world, before) == ([], [])
    world.write(at, NOP5)
    assert _judged(world, before) == ([], ["jump_label"])


def test_a_copy_made_while_code_was_written_is_not_held_against_what_stands_there(world: SiteWorld) -> None:
    before = bytearray(world.text())
    at = PLACES["return_1"] - LINK
    before[at : at + 5] = bytes.fromhex("e9ffcccccc")
    assert _judged(world, bytes(before)) == ([], [])
    world.write(PLACES["return_1"], bytes.fromhex("e9ffcccccc"))
    assert _judged(world, bytes(before)) == (["return"], [])


def test_a_probe_set_since_the_copy_was_made_is_no_objection(world: SiteWorld) -> None:
    """The site is looked at again, and has the probe's breakpoint by then; without the probe it is found."""
    before = bytearray(world.text())
    at = PLACES["return_1"]
    before[at - LINK : at - LINK + 5] = bytes.fromhex("e9ffcccccc")
    saved = world.write(at, b"\xcc")
    assert _judged(world, bytes(before)) == (["return"], [])
    probe(world, at + SLIDE, TRACER + SLIDE, saved=saved[0])
    assert _judged(world, bytes(before)) == ([], [])
