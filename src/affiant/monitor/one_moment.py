"""A look at one moment of a running guest: at copies of what it reads, made while the guest stood still.

A look takes many milliseconds, copying what it reads one or two. So it is made once to learn which pages
it reads, and whether it still finds fault. These pages are copied, all at the same moment and with the
registers of that moment; and what is told is what a look at the copies finds. A guest may have changed
meanwhile so that the look leads to pages that nobody copied: then these are copied, too, at another moment.
Where that does not come to an end, or there is too much to copy, the guest is paused for the whole of the
look, within the launcher's bound. A look that takes longer than that was not at one moment, and accuses
nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory
from affiant.kernel.machine.page_set import PageSet
from affiant.model.errors import AffiantError, UnavailableError
from affiant.monitor.launcher_client import PauseOverError
from affiant.monitor.registers import Moment
from affiant.wire.launcher_requests import MOST_COPIED_PAGES, MOST_RUNS

__all__ = ["Machine", "Moments"]

_LOG = logging.getLogger(__name__)
_MOST_COPIES = 3

LookT = TypeVar("LookT")


class Machine(Protocol):
    """Whoever can stop the guest."""

    def copied(self, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Moment:
        """Have pages of the RAM file copied, and return the vCPUs' state of the same moment."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Pause the guest meanwhile. Raises PauseOverError at the end if it may have run before that."""
        ...


class Moments:
    """Looks at one guest, each at one moment of it.

    A guest that was stopped can tell by its clock, and put right what is wrong before another moment is
    looked at. So after a look that needed more than one stop and then found nothing, the next one begins
    with a pause. And what comes and goes is not passed over for long because a try happens to miss it: of
    two looks in a row, one at least is at one moment.
    """

    def __init__(self, memory: GuestMemory, machine: Machine) -> None:
        self._memory = memory
        self._machine = machine
        self._was_warned = False
        self._was_spared = False

    def look(
        self,
        look: Callable[[Moment | None], LookT],
        *,
        paused: Callable[[], LookT],
        device_state: bool,
        enough: Callable[[LookT], bool] = lambda _: False,
    ) -> LookT:
        """Return what `look` finds at one moment, or `paused`, which is called while the guest is paused.

        Where `enough` says so of what the first try found, while the guest ran, that is told, unless it was
        the last time: then what seemed wrong was probably the look's own doing, and nobody need be stopped.

        `look` gets the registers of that moment, with what QEMU saves if there is `device_state`; with None,
        which is how it is tried first, it asks for those of now. It must read all that it tells from the
        memory. Raises what the two raise, and UnavailableError where nothing but a look that the guest ran in
        the middle of finds fault.
        """
        stops = 0
        was_warned, self._was_warned = self._was_warned, False
        was_spared, self._was_spared = self._was_spared, False
        if self._memory.has_copies and not was_warned:
            try:
                with self._memory.noted() as wanted:
                    found = look(None)
                if not was_spared and enough(found):
                    self._was_spared = True
                    return found
                while stops < _MOST_COPIES:
                    runs = tuple(wanted.runs())
                    if len(runs) > MOST_RUNS or sum(count for _, count in runs) > MOST_COPIED_PAGES:
                        _LOG.info("a look reads more pages than are copied: the guest is paused for it")
                        break
                    stops += 1
                    moment = self._machine.copied(runs, device_state=device_state)
                    copies = PageSet(self._memory.size // PAGE_SIZE)
                    copies.add_runs([*runs, *((page, 1) for page in moment.roots)])
                    with self._memory.copied(copies) as missed:
                        found = look(moment)
                    if not len(missed):
                        self._was_warned = stops > 1 and enough(found)
                        return found
                    wanted.add_runs(missed.runs())
                else:
                    _LOG.info("a look reads other pages each time: the guest is paused for it")
            except AffiantError as error:
                _LOG.info("no pages are copied, the guest is paused for a look: %s", error)
        found, over = self._look_paused(paused)
        if over and not enough(found):
            raise UnavailableError(f"the guest did not stand still for as long as a look took: {over}")
        self._was_warned = (stops > 0 or (bool(over) and not was_warned)) and enough(found)
        return found

    def _look_paused(self, paused: Callable[[], LookT]) -> tuple[LookT, str]:
        """Return what is found, and why the guest may have run meanwhile, or nothing."""
        try:
            with self._machine.paused():
                found = paused()
        except PauseOverError as error:
            return found, str(error)
        return found, ""
