"""Checks of the rules repository, each in a thread of its own: nothing else waits for one.

Everything on the way is hostile: a relay that is slow, sends without end, or brings what was true
yesterday. Bytes are bounded by whoever carries and whoever reads them, time and number here; what they
are worth is for `affiant.rules.trusted`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from affiant.assertions.bundle import Bundle
from affiant.model.errors import AffiantError, UnavailableError
from affiant.rules.fetching import Fetch, NotFoundError
from affiant.rules.trusted import TrustedRules
from affiant.wire.courier import MAX_BODY, FetchAnswer
from affiant.wire.rules_path import TIMESTAMP_PATH

__all__ = ["Checked", "Courier", "RulesChecks"]

_LOG = logging.getLogger(__name__)

_FETCH_SECONDS: Final = 10.0
_CHECK_SECONDS: Final = 60.0
_MOST_FETCHES: Final = 64
_MOST_TIMESTAMP_BYTES: Final = 16 * 1024
# A timestamp that has not changed is all that is looked at, but for one check in so many: a root may
# be rotated without anything else.
_WHOLE_EVERY: Final = 60
_OK, _NOT_FOUND = 200, 404


class Courier(Protocol):
    """What a check needs of the courier: it may be asked from any thread."""

    def fetch(self, path: str, maximum: int, *, timeout_s: float) -> FetchAnswer:
        """Return the relay's answer. Raises `UnavailableError` without one."""

    def wake(self) -> None:
        """End the wait of the thread that owns the channel."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What one check came to. `bundle` is the last good one, whatever happened.

    `trouble` says why nothing newer could be had, and is empty where the repository was confirmed to have
    nothing newer. `fresh_until` is when the newest timestamp seen expires (seconds since the epoch),
    `timestamp` the SHA-256 of the one that was offered last, or None.
    """

    bundle: Bundle
    trouble: str
    fresh_until: int | None
    timestamp: bytes | None


class RulesChecks:
    """Checks one repository for one fleet, one check at a time. Its methods belong to one thread."""

    def __init__(self, trusted: TrustedRules, courier: Courier, *, fleet: str) -> None:
        """`trusted` belongs to this object from now on."""
        self._trusted = trusted
        self._courier = courier
        self._fleet = fleet
        self._thread: threading.Thread | None = None
        self._result: Checked | None = None
        self._offered: bytes | None = None
        self._confirmed: bytes | None = None
        self._demanded = 0
        self._quick = 0

    def begin(self, *, now: int, minimum_version: int) -> bool:
        """Begin a check, unless one is under way; tell whether it began.

        `now` is seconds since the epoch by the service's clock.
        """
        if self._thread is not None:
            return False
        self._thread = threading.Thread(
            target=self._run, args=(now, minimum_version), name="rules check", daemon=True
        )
        self._thread.start()
        return True

    def take(self) -> Checked | None:
        """Return what a check that has ended came to, once; None while there is none."""
        if self._thread is None or self._result is None:
            return None
        self._thread.join()  # it has said its last word
        result, self._thread, self._result = self._result, None, None
        return result

    def _run(self, now: int, minimum_version: int) -> None:
        try:
            trouble = self._check(now, minimum_version)
        except Exception as error:  # noqa: BLE001  a check that ends without a word would never be missed
            _LOG.exception("a check of the rules failed")
            trouble = f"the check failed: {type(error).__name__}"
        timestamp = None if self._offered is None else hashlib.sha256(self._offered).digest()
        self._result = Checked(self._trusted.bundle, trouble, self._trusted.fresh_until, timestamp)
        self._courier.wake()

    def _check(self, now: int, minimum_version: int) -> str:
        fetch = _bounded(self._courier)
        try:
            self._offered = fetch(TIMESTAMP_PATH, _MOST_TIMESTAMP_BYTES)
            if self._is_confirmed(self._offered, now, minimum_version):
                return ""
            self._quick, self._confirmed = 0, None
            self._trusted.update(
                self._with_offered(fetch), now=now, fleet=self._fleet, minimum_version=minimum_version
            )
        except AffiantError as error:
            return str(error)
        self._confirmed, self._demanded = self._offered, minimum_version
        return ""

    def _is_confirmed(self, offered: bytes, now: int, minimum_version: int) -> bool:
        """Tell whether the last whole check already found everything under this very timestamp good."""
        self._quick += 1
        fresh_until = self._trusted.fresh_until
        return (
            offered == self._confirmed
            and minimum_version <= self._demanded
            and fresh_until is not None
            and now < fresh_until
            and self._quick < _WHOLE_EVERY
        )

    def _with_offered(self, fetch: Fetch) -> Fetch:
        """Return a fetch that does not ask again for the timestamp that was just brought."""

        def with_offered(path: str, maximum: int, /) -> bytes:
            if path == TIMESTAMP_PATH and self._offered is not None:
                return self._offered
            return fetch(path, maximum)

        return with_offered


def _bounded(courier: Courier, *, clock: Callable[[], float] = time.monotonic) -> Fetch:
    """Return the fetch of one check, which ends after so many files or so much time, whoever is slow."""
    deadline = clock() + _CHECK_SECONDS
    fetches = 0

    def fetch(path: str, maximum: int, /) -> bytes:
        nonlocal fetches
        fetches += 1
        left = deadline - clock()
        if fetches > _MOST_FETCHES or left <= 0:
            raise UnavailableError(f"{path}: the check of the rules took too long")
        answer = courier.fetch(path, min(maximum, MAX_BODY), timeout_s=min(left, _FETCH_SECONDS))
        if answer.status == _NOT_FOUND:
            raise NotFoundError(f"{path}: the repository has none")
        if answer.status != _OK:
            said = f"status {answer.status}" if answer.status else "the repository was not reached"
            raise UnavailableError(f"{path}: {said}")
        return answer.body

    return fetch
