"""For all tests: names that are the same in every process and every run, no stopwatch, and signals."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Machines that run the tests are shared: how long one example takes says nothing about the code.
settings.register_profile("affiant", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("affiant")

# Shells start their background jobs with SIGINT ignored, and that is inherited: by the programs that tests
# start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_LONGEST = 16


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name longer bytes by their argument: many come from fresh keys, and names must not change."""
    return argname if isinstance(val, bytes) and len(val) > _LONGEST else None
