"""The vDSO: what boot may have patched in it, and what nobody may."""

from __future__ import annotations

from typing import Any

import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.kernel_image.vdso import vdso_images
from affiant.kernel.reference.image import ReferenceImage
from affiant.model.errors import MalformedError
from tests.unit.kernel.site_world import PLACES, VDSO, VDSO_CODE, VDSO_OTHER_SITE, VDSO_SITE, SiteWorld

RDTSC, FENCED, SERIALIZED = (bytes.fromhex(code) for code in ("0f31909090", "0faee80f31", "0f01f90f1f00"))
SYSCALL = bytes.fromhex("89cd0f05")
CLAC = bytes.fromhex("0f01ca")


@pytest.fixture
def world() -> SiteWorld:
    return SiteWorld()


def rodata(world: SiteWorld) -> dict[str, Any]:
    return collect(world.seen, ["kernel_rodata"])["kernel_rodata"].to_json()


def told(world: SiteWorld) -> list[tuple[str, str]]:
    return [(run["symbol"], run["site"]) for run in rodata(world)["unexplained"]]


def boots_with_the_feature(world: SiteWorld) -> None:
    """The feature that the vDSO's first alternative asks for, as the kernel's own text shows it."""
    for name in ("alternative_1", "alternative_2", "alternative_3"):
        world.write(PLACES[name], CLAC)


def test_an_image_as_linked_is_compared_whole(world: SiteWorld) -> None:
    seen = rodata(world)
    assert seen["unexplained"] == []
    assert {"name": "vdso_image_64", "bytes": 0x1000} in seen["regions"]
    assert seen["sites"] == {"alternative": 2}


def test_alternatives_of_its_own_are_legal(world: SiteWorld) -> None:
    boots_with_the_feature(world)
    world.write(VDSO + VDSO_SITE, FENCED)
    world.write(VDSO + VDSO_OTHER_SITE, SYSCALL)
    seen = rodata(world)
    assert seen["unexplained"] == []
    assert seen["by_class"]["alternative"] == 8


def test_padding_that_was_merged_is_legal(world: SiteWorld) -> None:
    world.write(VDSO + VDSO_SITE, SERIALIZED[:3] + bytes.fromhex("6690"))
    world.write(VDSO + VDSO_OTHER_SITE, bytes.fromhex("0f1f4000"))
    assert told(world) == []


def test_changed_code_is_named_by_its_image(world: SiteWorld) -> None:
    world.write(VDSO + VDSO_CODE + 1, b"\xcc")
    assert told(world) == [(f"vdso_image_64+{VDSO_CODE + 1:#x}", "")]


def test_an_alternative_of_another_place_is_found(world: SiteWorld) -> None:
    """What may stand at one site may not stand at another."""
    world.write(VDSO + VDSO_SITE, SYSCALL + b"\x90")
    assert told(world) == [(f"vdso_image_64+{VDSO_SITE:#x}", "alternative")]


def test_an_alternative_that_the_kernels_text_denies_is_found(world: SiteWorld) -> None:
    """Three sites of the text say that the processor lacks the feature."""
    world.write(VDSO + VDSO_SITE, FENCED)
    assert told(world) == [(f"vdso_image_64+{VDSO_SITE:#x}", "alternative")]


def test_a_site_that_changes_after_a_look_is_judged_anew(world: SiteWorld) -> None:
    assert [told(world) for _ in range(2)] == [[], []]
    before = world.write(VDSO + VDSO_SITE, FENCED)
    assert told(world) == [(f"vdso_image_64+{VDSO_SITE:#x}", "alternative")]
    world.write(VDSO + VDSO_SITE, before)
    assert told(world) == []


def test_features_are_those_of_the_text_as_it_is_now(world: SiteWorld) -> None:
    """The text was looked at before it was patched, and not since."""
    assert told(world) == []
    boots_with_the_feature(world)
    world.write(VDSO + VDSO_SITE, FENCED)
    assert told(world) == []


def test_an_image_that_has_not_changed_is_judged_by_what_the_text_says_now(world: SiteWorld) -> None:
    boots_with_the_feature(world)
    world.write(VDSO + VDSO_SITE, FENCED)
    assert [told(world) for _ in range(2)] == [[], []]
    linked = world.seen.text
    for name in ("alternative_1", "alternative_2", "alternative_3"):
        at = world.guest.physical(PLACES[name]) - world.guest.physical(
            linked.start - world.seen.location.slide
        )
        world.write(PLACES[name], linked.expected[at : at + len(CLAC)].tobytes())
    collect(world.seen, ["kernel_text"])
    assert told(world) == [(f"vdso_image_64+{VDSO_SITE:#x}", "alternative")]


def test_a_look_anew_judges_an_image_that_has_not_changed(world: SiteWorld) -> None:
    assert told(world) == []
    (image,) = world.seen.vdso
    world.seen.forget_verified()
    taken: list[int] = []
    take = image.content.rule.take
    image.content.rule.take = lambda *sites: taken.append(1) or take(*sites)  # type: ignore[method-assign,func-returns-value]
    assert [told(world) for _ in range(2)] == [[], []]
    assert taken == [1]


def test_an_image_that_the_reference_does_not_store_is_malformed(
    world: SiteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = world.seen.program
    real = type(program.reference).read

    def without(reference: ReferenceImage, address: int, size: int) -> memoryview:
        if address == VDSO:
            raise KeyError(address)
        return real(reference, address, size)

    monkeypatch.setattr(type(program.reference), "read", without)
    with pytest.raises(MalformedError, match="stores"):
        vdso_images(world.seen.memory, world.seen.kernel_space, program, ())


def test_replacements_and_their_table_are_as_linked(world: SiteWorld) -> None:
    for offset in (0x800, 0x900):
        before = world.write(VDSO + offset, b"\xcc")
        assert [name for name, _ in told(world)] == [f"vdso_image_64+{offset:#x}"]
        world.write(VDSO + offset, before)
    assert told(world) == []
