"""Kernels in unified kernel images: known by what firmware measured, on recorded boots of real machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from affiant.appraisal.levels import Judgement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.appraisal.verified_boot import BootJudgement, judge_verified_boot
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.boot_state import BootApplication, VerifiedBoot, verify_boot
from affiant.tpm.quote import verify_quote

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "userspace").glob("*.json"))
OTHER = BootApplication(b"\x0f" * 32, b"")


def recorded(path: Path) -> VerifiedBoot:
    """What the quote of a recorded boot proves to a service, which sees neither systemd's log nor PCR 11."""
    told = json.loads(path.read_text())
    quote = verify_quote(
        *(bytes.fromhex(told[name]) for name in ("quote", "signature")),
        attestation_key=verify_attestation_key(bytes.fromhex(told["ak"])),
        expected_extra_data=bytes.fromhex(told["nonce"]),
        pcrs={int(pcr): bytes.fromhex(told["pcrs"]["sha256"][pcr]) for pcr in map(str, range(16))},
        bank=HashAlgorithm.SHA256,
    )
    return verify_boot(quote, path.with_suffix(".bin").read_bytes())


@pytest.fixture(params=VECTORS, ids=lambda path: path.stem)
def boot(request: pytest.FixtureRequest) -> VerifiedBoot:
    return recorded(request.param)


@pytest.fixture
def known(boot: VerifiedBoot) -> ReferenceValue:
    """The kernel of the recorded boot: firmware started the image, and measured the add-on beside it."""
    image, addon = (application.digest for application in boot.applications)
    return ReferenceValue(
        kernel=b"\x01" * 32,
        authenticode=b"\x02" * 32,
        reference=b"\x03" * 32,
        release="6.12",
        locks_down=True,
        verifies_modules=True,
        unified_images=frozenset({image}),
        addons=frozenset({addon}),
    )


def judge(boot: VerifiedBoot, *references: ReferenceValue) -> BootJudgement:
    return judge_verified_boot(
        boot,
        counters=None,
        last_seen=None,
        shown_reference=b"\x03" * 32,
        policy=AppraisalPolicy(),
        references=references,
    )


def claim(judged: BootJudgement, name: str) -> Judgement:
    return next(one for one in judged.judgements if one.claim == name)


def test_a_kernel_in_a_known_image_is_known(boot: VerifiedBoot, known: ReferenceValue) -> None:
    stranger = replace(known, kernel=b"\x09" * 32, unified_images=frozenset({b"\x09" * 32}))
    judged = judge(boot, stranger, known)
    assert judged.kernel == known
    assert claim(judged, "kernel_known").value is True
    assert claim(judged, "reference_matches_kernel").value is True


def test_loaders_before_the_image_are_what_may_stand_there(boot: VerifiedBoot, known: ReferenceValue) -> None:
    for count, value in ((2, True), (3, False)):
        led = replace(boot, applications=(OTHER,) * count + boot.applications)
        assert claim(judge(led, known), "kernel_known").value is value


@pytest.mark.parametrize("where", ["after the image", "after the add-on"])
def test_whatever_else_was_started_after_the_image_may_be_the_kernel(
    boot: VerifiedBoot, known: ReferenceValue, where: str
) -> None:
    """The image may have failed, and the firmware gone on to the next thing that it could start."""
    image, addon = boot.applications
    for other in (OTHER, BootApplication(known.authenticode or b"", b"")):
        chain = (image, other, addon) if where == "after the image" else (image, addon, other)
        judged = judge(replace(boot, applications=chain), known)
        assert judged.kernel is None
        assert claim(judged, "kernel_known").value is False


def test_an_addon_that_is_not_known_costs_the_claim(boot: VerifiedBoot, known: ReferenceValue) -> None:
    """It may bring parameters, device trees and code for the processor."""
    judged = judge(boot, replace(known, addons=frozenset()))
    assert judged.kernel is None
    assert "add-ons alone" in claim(judged, "kernel_known").explanation


def test_two_known_images_leave_open_which_one_runs(boot: VerifiedBoot, known: ReferenceValue) -> None:
    image, addon = boot.applications
    second = replace(known, kernel=b"\x0a" * 32, unified_images=frozenset({OTHER.digest}))
    both = replace(known, unified_images=known.unified_images | {OTHER.digest})
    chain = replace(boot, applications=(image, OTHER, addon))
    for references in ((known, second), (both,)):
        assert claim(judge(chain, *references), "kernel_known").value is False


def test_grub_has_no_part_in_it(boot: VerifiedBoot, known: ReferenceValue) -> None:
    """It may have started the image, or loaded another kernel after that failed."""
    for changes in ({"strings": ("linux /vmlinuz",)}, {"unexplained": 1}):
        judged = judge(replace(boot, grub=replace(boot.grub, **changes)), known)
        assert claim(judged, "kernel_known").value is False


def test_an_image_that_was_not_started_makes_no_kernel_known(
    boot: VerifiedBoot, known: ReferenceValue
) -> None:
    """Neither its add-on alone, nor its kernel's digest in PCR 11, which anybody may extend later."""
    section = boot.uki.section(".linux")
    unknown = replace(known, kernel=section or b"", unified_images=frozenset({b"\x0b" * 32}))
    judged = claim(judge(boot, unknown), "kernel_known")
    assert judged.value is False
    assert judged.explanation.startswith("no unified kernel image that is known was started")
    assert (
        claim(judge(replace(boot, applications=boot.applications[1:]), known), "kernel_known").value is False
    )
