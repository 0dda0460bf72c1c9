"""A relay, or a service behind it, that takes what a monitor posts and never answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from affiant.wire.courier import Post
from tests.attacks.hostile_relay import SECONDS, HostileRelay, attacked_monitor
from tests.rules_repository import make_repository
from tests.simulator import World
from tests.unit.monitor.world import RecordedKernel

HEARTBEAT = "/v1/heartbeat"


@pytest.fixture
def attacked(world: World) -> Iterator[tuple[HostileRelay, RecordedKernel]]:
    with attacked_monitor(world, make_repository(), interval_ms=(50, 60)) as both:
        yield both


def looked(watch: RecordedKernel, times: int) -> threading.Event:
    """Return what is set once the kernel was looked at so many times more."""
    done, wanted, look = threading.Event(), watch.looks + times, watch.look

    def counted(*, everything: bool = False) -> object:
        seen = look(everything=everything)
        if watch.looks >= wanted:
            done.set()
        return seen

    watch.look = counted  # type: ignore[method-assign, assignment]
    return done


def test_a_heartbeat_that_is_never_answered_stalls_neither_looks_nor_answers(
    attacked: tuple[HostileRelay, RecordedKernel],
) -> None:
    """For thirty seconds the monitor waits for the acknowledgement. Meanwhile it looks, and speaks."""
    relay, watch = attacked
    relay.withheld = {HEARTBEAT}
    relay.until(lambda message: isinstance(message, Post) and message.path == HEARTBEAT)
    started = time.monotonic()
    assert looked(watch, 20).wait(SECONDS)
    reports = [relay.ask() for _ in range(5)]
    assert time.monotonic() - started < 10
    assert relay.posted[HEARTBEAT] == 1, "it still waits for the first"
    numbers = [report.sequence for report in reports]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert all(later.previous == earlier.digest for earlier, later in itertools.pairwise(reports))


def test_a_session_that_is_never_granted_does_not_stall_looks(
    attacked: tuple[HostileRelay, RecordedKernel],
) -> None:
    relay, watch = attacked
    relay.withheld = {"/v1/session"}
    relay.until(lambda message: isinstance(message, Post) and message.path == "/v1/session")
    assert looked(watch, 20).wait(SECONDS)
    assert relay.posted["/v1/session"] == 1
