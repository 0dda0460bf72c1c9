"""Many sites judged together: the same is said as when each of them is judged by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from affiant.kernel.comparison.compare import RegionComparison, compare_region
from affiant.kernel.guest import Guest
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.alternatives import Alternatives
from affiant.kernel.site_content.fixed_forms import FixedForms, FormTable
from affiant.kernel.site_content.rule import ROW_BYTES, SiteSet
from affiant.kernel.site_content.site_rows import differing_words, put_rows, row_masks, rows_at
from tests.unit.kernel.site_content.site_looks import probe, trampoline_of
from tests.unit.kernel.site_world import (
    CALL_KEY,
    CALLEE,
    FTRACE_CALLER,
    KEY_NEAR,
    KEY_SHORT,
    KVM_FLUSH,
    NATIVE,
    OTHER,
    PLACES,
    PROBED,
    PV_OPS,
    SLIDE,
    TRACER,
    SiteWorld,
    near,
)
from tests.unit.kernel.synthetic_guest import LINK

_KEYS = (
    (PV_OPS + 8, (NATIVE + SLIDE, KVM_FLUSH + SLIDE, OTHER + SLIDE, 0)),
    (CALL_KEY, (CALLEE + SLIDE, OTHER + SLIDE, 0)),
    (KEY_NEAR, (0, 1)),
    (KEY_SHORT, (0, 1)),
)


def _forms(world: SiteWorld) -> dict[int, list[bytes]]:
    """Return what may stand at each site, by its address as linked; what was linked comes first.

    A tracer is registered for it, whose trampoline may be called.
    """
    forms: dict[int, list[bytes]] = {}
    for rule in world.seen.text_content.rules:
        for index, (offset, length) in enumerate(
            zip(rule.sites.offset.tolist(), rule.sites.length.tolist(), strict=True)
        ):
            linked = world.seen.text.expected[offset : offset + length].tobytes()
            forms[LINK + offset] = [linked, *(form for form in rule.allowed(index) if form != linked)]
    for name in ("pv_call", "direct_call"):
        at = PLACES[name]
        forms[at] += [near(0xE8, at, function) + b"\x90" for function in (NATIVE, KVM_FLUSH)]
    for name in ("static_call", "static_tail", "tramp_pad"):
        at = PLACES[name]
        forms[at] += [near(0xE8 if name == "static_call" else 0xE9, at, to) for to in (CALLEE, OTHER)]
    tracer, _ = trampoline_of(world, TRACER + SLIDE)
    forms[PLACES["traced"]].append(near(0xE8, PLACES["traced"], FTRACE_CALLER))
    forms[PLACES["traced"]].append(near(0xE8, PLACES["traced"] + SLIDE, tracer))
    return forms


def _change(forms: dict[int, list[bytes]]) -> st.SearchStrategy[tuple[int, bytes]]:
    """Mostly one form of a site or another, often what was linked; then keys, and bytes that are no form."""
    places = st.sampled_from(sorted(forms))
    legal = places.flatmap(lambda at: st.tuples(st.just(at), st.sampled_from(forms[at])))
    linked = places.map(lambda at: (at, forms[at][0]))
    keys = st.sampled_from([(at, value.to_bytes(8, "little")) for at, values in _KEYS for value in values])
    other = st.tuples(st.tuples(places, st.integers(-2, 9)).map(sum), st.binary(min_size=1, max_size=4))
    return st.one_of(legal, legal, legal, linked, linked, keys, other)


def _one_by_one(world: SiteWorld) -> Guest:
    """Open the guest once more, for looks that judge every site, and every call by what it means."""
    guest = world.guest.open()
    for rule in guest.text_content.rules:
        nobody = np.zeros(len(rule.sites), dtype=bool)
        rule.as_linked = lambda nobody=nobody: nobody  # type: ignore[method-assign, misc]
        if isinstance(rule, Alternatives):
            rule._still_called = lambda sites, _: np.zeros(len(sites), dtype=bool)  # type: ignore[method-assign]
    return guest


def _look(guest: Guest) -> RegionComparison:
    return compare_region(guest.memory, guest.kernel_space, guest.location, guest.text, guest.text_content)


def _assert_alike(together: Guest, alone: Guest) -> None:
    assert _look(together) == _look(alone)
    content = together.text_content
    assert np.array_equal(content.accepted, alone.text_content.accepted)
    # What was counted site by site is what there is to count.
    differing = content.accepted != together.text.expected
    counts = np.bincount(together.text.kinds[differing], minlength=256)
    assert np.array_equal(content.explained, counts)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_looks_say_the_same_whatever_was_judged_before(data: st.DataObject) -> None:
    """Sites that hold what was linked are passed over where all is judged; what is told does not change."""
    world = SiteWorld()
    together, alone = world.seen, _one_by_one(world)
    changes = st.lists(_change(_forms(world)), max_size=8)
    if data.draw(st.booleans()):
        probe(world, PROBED + 1 + SLIDE, TRACER + SLIDE, saved=0x48)
        world.write(PROBED + 1, b"\xcc")
    for _ in range(data.draw(st.integers(2, 6))):
        for at, content in data.draw(changes):
            world.write(at, content)
        if data.draw(st.booleans()):
            together.forget_verified()
            alone.forget_verified()
        _assert_alike(together, alone)


@pytest.mark.parametrize("choice", [0, 1])
def test_each_site_may_go_back_to_what_was_linked_between_two_looks(choice: int) -> None:
    """Else what was remembered of it would be held against what stands there, or pass for it."""
    world = SiteWorld()
    together, alone = world.seen, _one_by_one(world)
    forms = _forms(world)
    for at, values in _KEYS:
        world.write(at, values[choice].to_bytes(8, "little"))
    _assert_alike(together, alone)
    for at, (linked, *others) in forms.items():
        for form in others:
            for content in (form, linked, form, form):
                world.write(at, content)
                together.forget_verified()
                alone.forget_verified()
                _assert_alike(together, alone)
            world.write(at, linked)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_site_holds_the_first_of_its_forms_that_its_bytes_are(data: st.DataObject) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    count, forms, width = (data.draw(st.integers(1, most)) for most in (40, 5, 17))
    lengths = draw.integers(1, width + 1, count)
    sites = SiteSet(*(np.zeros(count, dtype=kind) for kind in (np.uint64, np.int64)), lengths, *2 * [lengths])
    content = draw.integers(0, 2, (count, forms, width), dtype=np.uint8)
    offered = draw.integers(0, 2, (count, forms)).astype(bool)
    rule = FixedForms(
        SiteClass.RETURN,
        sites,
        FormTable(tuple("abcde"[:forms]), content, offered, np.zeros(count, np.int64)),
    )
    chosen = np.flatnonzero(draw.integers(0, 2, count))
    rows = draw.integers(0, 2, (len(chosen), ROW_BYTES * -(-width // ROW_BYTES)), dtype=np.uint8)
    for row in range(0, len(chosen), 2):  # the others hold a form by chance
        rows[row, :width] = content[chosen[row], int(draw.integers(0, forms))]
    legal = rule.take(chosen, rows)
    for row, site in enumerate(chosen.tolist()):
        length = lengths[site]
        same = [
            form
            for form in range(forms)
            if offered[site, form] and np.array_equal(content[site, form, :length], rows[row, :length])
        ]
        assert legal[row] == bool(same)
        assert rule._held[site] == (same[0] if same else 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 21)), min_size=1, max_size=40),
    st.integers(0, 40),
    st.integers(0, 1 << 32),
    st.booleans(),
)
def test_rows_are_put_byte_for_byte(
    gaps: list[tuple[int, int]], behind: int, seed: int, overlapping: bool
) -> None:
    """Sites may lie side by side, end where the code ends, and even overlap."""
    offsets, lengths, end = [], [], 0
    for gap, length in gaps:
        offsets.append(end + gap)
        lengths.append(length)
        end = offsets[-1] + (1 if overlapping else length)
    code = np.zeros(max(map(sum, zip(offsets, lengths, strict=True))) + behind, dtype=np.uint8)
    wanted = code.copy()
    rows = np.random.default_rng(seed).integers(1, 256, (len(offsets), 24), dtype=np.uint8)
    for column in range(24):
        for row, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            if column < length:
                wanted[offset + column] = rows[row, column]
    masks = row_masks(np.array(lengths), 24)
    before = put_rows(code, np.array(offsets), rows, masks, apart=not overlapping)
    assert not before.any()
    assert np.array_equal(code, wanted)
    if not overlapping:
        found = rows_at(code, np.array(offsets), 24)
        for row, length in enumerate(lengths):
            assert np.array_equal(found[row, :length], rows[row, :length])


@given(st.integers(0, 40), st.lists(st.integers(0, 39)))
def test_a_word_differs_if_a_byte_of_it_does(size: int, changed: list[int]) -> None:
    one: NDArray[np.uint8] = np.zeros(size, dtype=np.uint8)
    other = one.copy()
    places = {place for place in changed if place < size}
    other[list(places)] = 1
    assert np.flatnonzero(differing_words(one, other)).tolist() == sorted({place // 8 for place in places})
