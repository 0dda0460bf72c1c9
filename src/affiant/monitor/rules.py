"""The rules that a monitor judges by: the library in its image, or the newest that were published.

Rules change between two measurements, without a restart and within a session. What cannot be had or
does not verify leaves the last good rules in force, and every report says so.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import Final

from affiant.assertions.bundle import Bundle
from affiant.assertions.engine import Engine
from affiant.assertions.rollout import EVERYWHERE
from affiant.assertions.selection import next_change, select
from affiant.model.runtime_report import RulesFreshness, RulesUsed
from affiant.monitor.clock import SessionClock
from affiant.monitor.rules_checks import Checked, RulesChecks

__all__ = ["MonitorRules"]

_LOG = logging.getLogger(__name__)

_UNCHECKED: Final = "no check of the rules has ended yet"


class MonitorRules:
    """Which rules judge now, how newer ones are asked for, and how fresh they are.

    Without `checks` the library that `engine` begins with is all there ever is; `trouble` says why, where
    that was not intended.
    """

    def __init__(
        self,
        engine: Engine,
        checks: RulesChecks | None = None,
        *,
        interval_ms: int = 5_000,
        trouble: str = "",
    ) -> None:
        self._engine = engine
        self._checks = checks
        self._interval_ms = interval_ms
        self._bundle = engine.bundle
        self._selected_for: tuple[bytes, bytes | None] = (engine.bundle.digest, None)
        self._change_at: int | None = None
        self._minimum = 0
        self._due_ms = 0
        self._begun_ms = 0
        self._confirmed_ms: int | None = None
        self._fresh_until: int | None = None
        self._timestamp: bytes | None = None
        self.trouble = trouble or ("" if checks is None else _UNCHECKED)

    @property
    def used(self) -> RulesUsed:
        """The bundle in force, as reports name it."""
        return self._bundle.used

    @property
    def judging(self) -> Bundle:
        """Those rules of the bundle that judge this machine now."""
        return self._engine.bundle

    def freshness(self, *, now: int, now_ms: int) -> RulesFreshness | None:
        """Return how fresh the rules are at `now` (seconds since the epoch); None if none are published."""
        if self._checks is None and not self.trouble:
            return None
        return RulesFreshness(
            age_ms=None if self._confirmed_ms is None else max(0, now_ms - self._confirmed_ms),
            expired=self._fresh_until is not None and now >= self._fresh_until,
            trouble=self.trouble,
        )

    def demand(self, minimum_version: int) -> None:
        """Take note of what the service demands for a session: what is older is asked for anew at once."""
        if minimum_version > max(self._minimum, self.used.version):
            self._due_ms = 0
        self._minimum = minimum_version

    def heard_of(self, timestamp: bytes | None) -> None:
        """Take note of the newest timestamp that the service knows: another than the last is worth a look."""
        if timestamp is not None and timestamp != self._timestamp:
            self._due_ms = 0

    def tend(self, *, clock: SessionClock | None, device: bytes | None, now_ms: int) -> bool:
        """Begin a check where one is due, take in one that ended; tell whether other rules judge now.

        Without a `clock` (no service has told the time yet) nothing is checked: whether rules are
        expired could not be known. `device` is None until a session tells who this machine is; rules for
        a part of the fleet do not judge before that.
        """
        if clock is None:
            return False
        now = clock.now(now_ms)
        if self._checks is not None:
            if (checked := self._checks.take()) is not None:
                self._take(checked)
            if now_ms >= self._due_ms and self._checks.begin(now=now, minimum_version=self._minimum):
                self._begun_ms = now_ms
                # Not in step with every other monitor of the fleet.
                self._due_ms = now_ms + self._interval_ms * (80 + secrets.randbelow(41)) // 100
        return self._select(device, now)

    def _take(self, checked: Checked) -> None:
        if checked.trouble != self.trouble:
            if checked.trouble:
                _LOG.warning("rules: %s", checked.trouble)
            self.trouble = checked.trouble
        if not checked.trouble:
            # By when it was asked: whoever delays the answers does not make it fresher than it is.
            self._confirmed_ms = self._begun_ms
        self._fresh_until = checked.fresh_until
        self._timestamp = checked.timestamp
        self._bundle = checked.bundle

    def _select(self, device: bytes | None, now: int) -> bool:
        """Judge by those rules of the bundle that are this machine's, at this time."""
        wanted = (self._bundle.digest, device)
        if wanted == self._selected_for and (self._change_at is None or now < self._change_at):
            return False
        self._selected_for = wanted
        self._change_at = next_change(self._bundle, now=now)
        bundle = self._bundle if device is not None else _without_shares(self._bundle)
        selected = select(bundle, device=device or b"", now=now)
        if selected == self._engine.bundle:
            return False
        _LOG.info("judging by %d rules of %s %d", len(selected.scripts), selected.name, selected.version)
        self._engine.use(selected)
        return True


def _without_shares(bundle: Bundle) -> Bundle:
    """Return the bundle without those rules that are rolled out to a part of the fleet only."""
    everywhere = tuple(
        script
        for script in bundle.scripts
        if bundle.rollouts.get(script.name, EVERYWHERE).percent == EVERYWHERE.percent
    )
    return replace(bundle, scripts=everywhere)
