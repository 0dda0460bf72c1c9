"""The journal: what each assertion last said, and every violation that this boot has shown.

A violation that was repaired stays: an attacker who restores the bytes before the next look has
still been seen. The journal survives a renewed session of the same boot, and other rules; what it holds of
violations survives the monitor, too (`affiant.monitor.recollection`). It ends with the boot. A violation
by a rule that is withdrawn stays as well: what was seen was seen by the rules of then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from affiant.model.episode import Episode
from affiant.model.outcome import AssertionResult, Mode, Outcome
from affiant.model.runtime_report import AssertionReport, Violation

__all__ = ["Journal"]

_FINDINGS_KEPT = 16
_EPISODES_KEPT = 4  # for each assertion, so that one that flaps cannot crowd out another
_EPISODES_IN_ALL = 1024  # what a report can tell


@dataclass(slots=True)
class Journal:
    """Remembers results; times are milliseconds of one monotonic clock, whatever its origin.

    Bounded: an assertion has at most four episodes of at most 16 findings; later sightings are
    told in the last of them, with the number of findings left out. Of all assertions there are at most
    1024 episodes; the first to go are further ones of the same assertion, then those of rules that are gone.
    """

    _last: dict[str, tuple[AssertionResult, int]] = field(default_factory=dict)
    _last_good: dict[str, int] = field(default_factory=dict)
    _episodes: list[Episode] = field(default_factory=list)

    @classmethod
    def of(cls, episodes: Iterable[Episode]) -> Journal:
        """Return the journal of a monitor that has not looked yet, with what earlier ones saw.

        A violation that stood when they ended stands until a look finds the property holding.
        """
        return cls(_episodes=list(episodes))

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Every violation that this boot has shown, for the next monitor."""
        return tuple(self._episodes)

    def record(self, results: Iterable[AssertionResult], *, at_ms: int) -> None:
        """Take in the results of one measurement made at `at_ms`."""
        results = tuple(results)
        self._last.update((result.name, (result, at_ms)) for result in results)
        for result in results:
            if result.outcome is Outcome.VIOLATED:
                self._record_violation(result, at_ms)
            elif result.outcome is Outcome.HOLDS:
                self._end_violation(result.name)
                self._last_good[result.name] = at_ms

    def follow(self, rules: Mapping[str, int]) -> None:
        """Go on with other rules (name to version), of which nothing is known before they have looked.

        A rule that is gone, or has another version and so claims something else, leaves its violations:
        they stay as they were last seen, and nothing else of it does.
        """
        for name, (result, _) in tuple(self._last.items()):
            if rules.get(name) != result.version:
                del self._last[name]
                self._last_good.pop(name, None)

    def standings(self, *, now_ms: int) -> tuple[AssertionReport, ...]:
        """Return each assertion's last result with its age, in the order of first appearance."""
        return tuple(
            AssertionReport(
                name=result.name,
                version=result.version,
                mode=result.mode,
                outcome=result.outcome,
                age_ms=max(0, now_ms - at_ms),
                looked_at=result.looked_at,
                reason=result.reason,
            )
            for result, at_ms in self._last.values()
        )

    def standing_violations(self) -> frozenset[str]:
        """Return the names of the assertions that the last look found violated."""
        return frozenset(each.violation.assertion for each in self._episodes if each.violation.standing)

    def violations(self, *, origin_ms: int) -> tuple[Violation, ...]:
        """Return every episode, with times counted from `origin_ms`.

        What happened before the origin (in an earlier session of the same boot) is told as 0.
        """
        return tuple(
            replace(
                seen,
                first_seen=max(0, seen.first_seen - origin_ms),
                last_seen=max(0, seen.last_seen - origin_ms),
                last_good=None if seen.last_good is None else max(0, seen.last_good - origin_ms),
            )
            for seen in (episode.violation for episode in self._episodes)
        )

    def _record_violation(self, result: AssertionResult, at_ms: int) -> None:
        own = self._indices(result.name)
        if own and self._goes_on(self._episodes[own[-1]], result, len(own)):
            self._episodes[own[-1]] = self._grown(self._episodes[own[-1]], result, at_ms)
            return
        # Of an earlier version's episode it can no longer be said that the last look still found it.
        self._end_violation(result.name)
        if len(self._episodes) >= _EPISODES_IN_ALL:
            self._make_room()
        self._episodes.append(
            Episode(
                result.version,
                Violation(
                    assertion=result.name,
                    first_seen=at_ms,
                    last_seen=at_ms,
                    last_good=self._last_good.get(result.name),
                    standing=True,
                    findings=result.findings[:_FINDINGS_KEPT],
                    more=max(0, len(result.findings) - _FINDINGS_KEPT),
                    mode=result.mode,
                ),
            )
        )

    def _indices(self, name: str) -> list[int]:
        return [index for index, each in enumerate(self._episodes) if each.violation.assertion == name]

    @staticmethod
    def _goes_on(last: Episode, result: AssertionResult, episodes: int) -> bool:
        return (last.violation.standing and last.version == result.version) or episodes >= _EPISODES_KEPT

    def _make_room(self) -> None:
        """Forget one episode, and no assertion's only one while its rule is there."""
        names = [episode.violation.assertion for episode in self._episodes]
        most, episodes = Counter(names).most_common(1)[0]
        for index, name in enumerate(names):
            if name == most if episodes > 1 else name not in self._last:
                del self._episodes[index]
                return

    @staticmethod
    def _grown(episode: Episode, result: AssertionResult, at_ms: int) -> Episode:
        """Add what is new in a violation that still stands: a second hook is not hidden by the first."""
        seen = episode.violation
        new = [finding for finding in result.findings if finding not in seen.findings]
        room = _FINDINGS_KEPT - len(seen.findings)
        grown = replace(
            seen,
            last_seen=at_ms,
            standing=True,
            findings=seen.findings + tuple(new[:room]),
            more=max(seen.more, len(new) - room, 0),
            mode=Mode.AUDIT if seen.mode is result.mode is Mode.AUDIT else Mode.ENFORCE,
        )
        return replace(episode, violation=grown)

    def _end_violation(self, name: str) -> None:
        for index in self._indices(name):
            episode = self._episodes[index]
            self._episodes[index] = replace(episode, violation=replace(episode.violation, standing=False))
