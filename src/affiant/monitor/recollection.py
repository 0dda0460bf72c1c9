"""What outlives a monitor: the violations of this boot, which the launcher remembers for the next one."""

from __future__ import annotations

import logging
from dataclasses import replace

from affiant.model.episode import Episode
from affiant.model.errors import AffiantError
from affiant.monitor.launcher_client import LauncherClient
from affiant.wire.episodes import read_episodes, write_episodes
from affiant.wire.launcher_requests import Remember, Remembered

__all__ = ["Recollection"]

_LOG = logging.getLogger(__name__)

# That a violation still stands is no news at every look; so old may be what the next monitor knows of it.
_SIGHTING_MS = 10_000


class Recollection:
    """Hands violations from a monitor that ended to the one that the launcher starts after it."""

    def __init__(self, launcher: LauncherClient) -> None:
        self._launcher = launcher
        self._kept: tuple[Episode, ...] = ()
        self._kept_ms = 0

    def recall(self, *, now_ms: int) -> tuple[Episode, ...]:
        """Return what earlier monitors of this boot saw; nothing, where the boot has shown nothing.

        Raises `UnavailableError` or `MalformedError` when that cannot be told: it is no clean boot then.
        """
        content = self._launcher.ask(Remembered())
        self._kept = read_episodes(content, now_ms=now_ms) if content else ()
        self._kept_ms = now_ms
        return self._kept

    def keep(self, episodes: tuple[Episode, ...], *, generation: int, now_ms: int) -> None:
        """Have the launcher remember what is new in `episodes` of the boot `generation`.

        If it does not, the next look tries again: a monitor that goes on forgets less than one that ends.
        """
        if episodes == self._kept:
            return
        if _lasting(episodes) == _lasting(self._kept) and now_ms < self._kept_ms + _SIGHTING_MS:
            return
        try:
            self._launcher.ask(Remember(generation, write_episodes(episodes)))
        except AffiantError as error:
            _LOG.warning("violations that were seen are not remembered beyond this monitor: %s", error)
            return
        self._kept, self._kept_ms = episodes, now_ms


def _lasting(episodes: tuple[Episode, ...]) -> list[Episode]:
    """Return all of them but for when each was seen last."""
    return [replace(each, violation=replace(each.violation, last_seen=0)) for each in episodes]
