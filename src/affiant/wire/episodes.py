"""Episodes as bytes: what a monitor has its launcher remember of a boot, for the monitor after it.

A map `{1: [[rule version, violation]...]}`; a violation is written as in a runtime report. What a guest does
decides how much there is, so it is brought within the bound like a report: findings beyond the first are
counted instead of told where there is no room, and no episode is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from affiant.model.episode import Episode
from affiant.wire import cbor
from affiant.wire.cbor import Item
from affiant.wire.fields import Fields
from affiant.wire.launcher_requests import MOST_REMEMBERED
from affiant.wire.report_bounds import STEPS, fit_violation
from affiant.wire.runtime_report import MAX_VIOLATIONS, read_violation, write_violation

__all__ = ["read_episodes", "write_episodes"]

_NAME = "remembered violations"
_EPISODES = 1


def write_episodes(episodes: Sequence[Episode]) -> bytes:
    """Return at most `MOST_REMEMBERED` bytes that tell all of at most `MAX_VIOLATIONS` episodes.

    Guaranteed: the first finding of each stays, with as many more as there is room for; what is left out
    is counted in `more`, and texts end in an ellipsis where cut.
    """
    encoding = b""
    for findings, characters in STEPS:
        fitted = [
            replace(each, violation=fit_violation(each.violation, findings, characters)) for each in episodes
        ]
        encoding = cbor.encode({_EPISODES: [_write(each) for each in fitted]})
        if len(encoding) <= MOST_REMEMBERED:
            break
    return encoding


def read_episodes(data: bytes, *, now_ms: int) -> tuple[Episode, ...]:
    """Return the episodes that an earlier monitor wrote; `now_ms` is the host's monotonic clock.

    What holds then: `write_episodes` could have made the bytes, within the bounds of a runtime report, and
    nothing in them was seen later than now. Raises `MalformedError` otherwise.
    """
    fields = Fields.of_map(cbor.decode(data, max_size=MOST_REMEMBERED, name=_NAME), _NAME)

    def read(rows: Fields, index: int) -> Episode:
        row = rows.array(index, str(index), length=2)
        episode = Episode(row.integer(0, "version"), read_violation(row, 1))
        if max(episode.violation.last_seen, episode.violation.last_good or 0) > now_ms:
            raise row.error("last seen", "later than now")
        return episode

    episodes = fields.each(_EPISODES, "episodes", read, maximum=MAX_VIOLATIONS)
    fields.close()
    return episodes


def _write(episode: Episode) -> Item:
    return [episode.version, write_violation(episode.violation)]
