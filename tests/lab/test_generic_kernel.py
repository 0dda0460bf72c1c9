"""Debian's generic kernel, with drivers for real machines: healthy, and a hook in it is told."""

from __future__ import annotations

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome
from lab.guests import GuestPlan, load_modules, start_guest
from lab.live_guest import open_live_guest
from lab.looking import SkippingClock, judge_one_moment, judge_twice
from lab.references import reference_of
from lab.tamper.text import hook_function

AMBIGUOUS = "binary_formats_owned"
"""Two symbols of this kernel have the name that the rule asks for."""


def test_the_generic_kernel_is_healthy_and_a_hook_in_it_is_told() -> None:
    plan = GuestPlan(suite="bookworm", package="linux-image-amd64", firmware=False, tpm=False, in_turn=True)
    clock = SkippingClock()
    with (
        start_guest(plan) as guest,
        open_live_guest(guest, reference_of(guest.kernel)) as live,
        Engine(packaged_library()) as engine,
    ):
        assert "cloud" not in guest.kernel.release
        load_modules(guest)
        for _ in range(4):
            for result in judge_twice(live, engine, clock=clock):
                wanted = Outcome.NOT_APPLICABLE if result.name == AMBIGUOUS else Outcome.HOLDS
                assert result.outcome is wanted, (result.name, result.reason, result.findings)
            clock.rest(2.0)
        with hook_function(live) as subject:
            (result,) = judge_one_moment(live, engine, ["kernel_text_intact"], clock=clock)
            assert result.outcome is Outcome.VIOLATED
            assert [finding.subject for finding in result.findings] == [subject]
        (result,) = judge_one_moment(live, engine, ["kernel_text_intact"], clock=clock)
        assert result.outcome is Outcome.HOLDS
