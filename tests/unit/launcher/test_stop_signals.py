"""A signal to stop ends the sections that heed it, and disturbs nothing else."""

from __future__ import annotations

import os
import signal

import pytest

from affiant.launcher.process.stop_signals import StopRequested, StopSignals

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_section_that_heeds_signals_is_ended_by_one(number: signal.Signals) -> None:
    reached = []
    with StopSignals() as signals, pytest.raises(StopRequested), signals.heeded():
        reached.append("section")
        tell(number)
        reached.append("too far")
    assert reached == ["section"]


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_between_sections_waits_for_the_next(number: signal.Signals) -> None:
    reached = []
    with StopSignals() as signals:
        with signals.heeded():
            reached.append("first")
        tell(number)
        reached.append("between")
        with pytest.raises(StopRequested), signals.heeded():
            reached.append("too far")
    assert reached == ["first", "between"]


def test_clearing_away_is_not_disturbed() -> None:
    reached = []
    with StopSignals() as signals:
        with pytest.raises(StopRequested), signals.heeded():
            tell(signal.SIGTERM)
        tell(signal.SIGINT)
        reached.append("cleared")
    assert reached == ["cleared"]


def test_handlers_of_before_are_back() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
