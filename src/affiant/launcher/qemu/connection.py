"""The launcher's own connection to QEMU: registers, device state, copies, pause and resume (QMP, `qemu.qmp`).

The guest can make QEMU slow, and its events many: every question has a time-out, events are read
and dropped as they come. After a question that QEMU did not answer in time, further ones are
`UnavailableError` until it has.

QEMU writes its device state (all that migration would carry beside RAM, system call registers among
it) on `xen-save-devices-state`, which has nothing to do with Xen: it stops the guest, flushes its disks
as every pause does, writes to a file that we hand over, and lets the guest run on. RAM is neither
saved nor written, nothing is migrated, no disk is given up (`live` false). As with a pause, whoever
listens to QEMU's events sees STOP and RESUME.

A guest that an operator stopped is neither stopped nor let run on here. QEMU does not count stops: one that
an operator asks for while the guest stands still for us anyway (milliseconds) changes nothing, and is over
when ours is. Who must be sure asks `query-status` after it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError

from affiant.launcher.qemu.hurry import Hurry
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.launcher.qemu.state_file import StateFile
from affiant.model.errors import UnavailableError
from affiant.wire.launcher_requests import LONGEST_STREAM, Copied, MachineState

__all__ = ["PAUSE_SECONDS", "QemuMonitor"]

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.25
"""The guest runs again after this time, whoever forgot to resume it."""

_ANSWER_SECONDS = 10.0
_GOODBYE_SECONDS = 2.0
# Each time that QEMU fails to write its state it leaks a descriptor and a buffer.
_MOST_STATE_FAILURES = 8
_CPU_HEADER = re.compile(r"^CPU#(\d{1,5})\r?$", re.MULTILINE)
_QUIET_EVENTS = frozenset({"STOP", "RESUME", "RTC_CHANGE"})

ResultT = TypeVar("ResultT")


class QemuMonitor:
    """One QMP connection; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._client = QMPClient("launcher")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="QMP", daemon=True)
        self._turn = threading.Lock()
        self._unanswered: concurrent.futures.Future[Any] | None = None
        self._events: asyncio.Task[None] | None = None
        self._wake_up: asyncio.TimerHandle | None = None
        self._has_overslept = False
        self._closed = False
        self._state_file: StateFile | None = None
        self._state_file_name = ""
        self._state_failures = 0
        self._hurry = Hurry()
        self._thread.start()

    def connect(self, path: Path, *, timeout: float, alive: Callable[[], bool]) -> None:
        """Connect as soon as QEMU listens on `path`.

        Raises `UnavailableError` after `timeout` seconds, or when `alive` says that QEMU is gone.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not alive():
                raise UnavailableError("QEMU ended at its start")
            if path.exists():
                try:
                    return self._ask(self._connect(path), max(0.1, deadline - time.monotonic()))
                except UnavailableError:
                    if time.monotonic() > deadline:
                        raise
            elif time.monotonic() > deadline:
                raise UnavailableError(f"QEMU does not listen on {path}")
            time.sleep(0.02)

    def registers(self) -> tuple[str, ...]:
        """Return QEMU's `info registers` listing of each vCPU, by number; the guest is not paused for it."""
        return self._ask(self._registers())

    def machine_state(self) -> MachineState:
        """Return register listings and device state of one moment, for which the guest is stopped.

        A guest that `pause` stopped, or someone else, stays stopped. The state is cut after
        `LONGEST_STREAM` bytes: processors come first.
        """
        return self._ask(self._machine_state())

    def copy(self, copies: PageCopies, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Copied:
        """Copy pages while the guest is stopped, and return all vCPUs of that moment.

        It is stopped for QEMU's work and for the bare copying, which go on side by side; not for anybody to
        be asked or told. A guest that `pause` stopped, or someone else, stays stopped. Raises `SetupError`
        for pages that the guest does not have.
        """
        return self._ask(self._copy(copies, runs, device_state))

    def pause(self) -> None:
        """Stop all vCPUs, for `PAUSE_SECONDS` at most. A guest that does not run stays as it is."""
        self._ask(self._pause())

    def resume(self) -> bool:
        """Let the guest run on, if `pause` stopped it and it does not run yet.

        Returns whether it stood still since: False if it runs on by itself, after `PAUSE_SECONDS`.
        """
        return self._ask(self._resume())

    def quit(self) -> None:
        """Ask QEMU to end itself; raises nothing when it does not answer."""
        with contextlib.suppress(UnavailableError):
            self._ask(self._execute("quit"), 1.0)

    def close(self) -> None:
        """Close the connection and end its thread."""
        if self._closed:
            return
        self._closed = True
        ending = asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError, QMPError, OSError, EOFError):
            ending.result(_GOODBYE_SECONDS)
        if self._state_file is not None:
            self._state_file.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GOODBYE_SECONDS)

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_the_rest())
        self._loop.close()

    def _ask(self, question: Coroutine[Any, Any, ResultT], timeout: float = _ANSWER_SECONDS) -> ResultT:
        """Run a question in the connection's thread. One at a time: QEMU answers in order anyway."""
        if self._closed or not self._turn.acquire(timeout=timeout):
            question.close()
            raise UnavailableError("QEMU does not answer")
        try:
            if self._unanswered is not None and not self._unanswered.done():
                question.close()
                raise UnavailableError("QEMU has not answered an earlier question yet")
            self._unanswered = future = asyncio.run_coroutine_threadsafe(question, self._loop)
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            raise UnavailableError("QEMU does not answer") from None
        except concurrent.futures.CancelledError:
            raise UnavailableError("the connection to QEMU was closed") from None
        except (QMPError, OSError, EOFError) as error:
            raise UnavailableError(f"QEMU does not answer: {error}") from error
        finally:
            self._turn.release()

    # -- in the connection's thread

    async def _connect(self, path: Path) -> None:
        await self._client.connect(str(path))
        self._events = asyncio.create_task(self._read_events())

    async def _disconnect(self) -> None:
        if self._wake_up is not None:
            await self._resume()
        if self._events is not None:
            self._events.cancel()
        await self._client.disconnect()

    async def _read_events(self) -> None:
        async for event in self._client.events:
            name = str(event.get("event"))
            if name not in _QUIET_EVENTS:
                _log.info("QEMU: %s", name)

    async def _execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        return await self._client.execute(command, arguments)

    async def _human_monitor(self, line: str) -> str:
        return str(await self._execute("human-monitor-command", {"command-line": line}))

    async def _registers(self) -> tuple[str, ...]:
        text = await self._human_monitor("info registers -a")
        headers = list(_CPU_HEADER.finditer(text))
        if not headers or [int(header[1]) for header in headers] != list(range(len(headers))):
            raise UnavailableError("QEMU's register listing does not name its vCPUs")
        ends = [header.start() for header in headers[1:]] + [len(text)]
        return tuple(
            text[header.start() : end].replace("\r\n", "\n").strip() + "\n"
            for header, end in zip(headers, ends, strict=True)
        )

    async def _machine_state(self) -> MachineState:
        file = await self._emptied_file()
        # All at once: QEMU answers in order, and the guest is stopped for its work alone. It runs on
        # whatever fails.
        ran, stop = self._stop() if await self._is_ours_to_stop() else _not_stopped()
        listing = asyncio.ensure_future(self._registers())
        save = asyncio.ensure_future(self._save())
        cont = asyncio.ensure_future(self._continue(ran))
        answers = await asyncio.gather(ran, stop, listing, save, cont, return_exceptions=True)
        try:
            self._raise_failure(answers, saved=True)
            return MachineState(_bounded(listing.result()), file.written(LONGEST_STREAM))
        finally:
            file.empty()

    async def _copy(
        self, copies: PageCopies, runs: tuple[tuple[int, int], ...], device_state: bool
    ) -> Copied:
        copies.prepare(runs)
        file = await self._emptied_file() if device_state else None
        ours = await self._is_ours_to_stop()
        with self._hurry():
            ran, stop = self._stop() if ours else _not_stopped()
            listing = asyncio.ensure_future(self._registers())
            save = asyncio.ensure_future(self._save() if device_state else _nothing())
            try:
                await stop
                copies.take(runs)  # while QEMU lists and saves
                roots = copies.take_roots(await listing)
            finally:
                # QEMU answers in order: the guest runs on when all else is done, whatever failed.
                cont = asyncio.ensure_future(self._continue(ran))
                answers = await asyncio.gather(ran, stop, listing, save, cont, return_exceptions=True)
                stream = b"" if file is None else file.written(LONGEST_STREAM)
                if file is not None:
                    file.empty()
        self._raise_failure(answers, saved=device_state)
        return Copied(_bounded(listing.result()), stream, roots)

    async def _save(self) -> object:
        save = {"filename": self._state_file_name, "live": False}
        return await self._execute("xen-save-devices-state", save)

    async def _emptied_file(self) -> StateFile:
        """Return the file that QEMU is to write its device state to."""
        if self._state_failures >= _MOST_STATE_FAILURES:
            raise UnavailableError("QEMU failed to write its device state too often")
        file = await self._handed_over_file()
        file.empty()
        return file

    def _raise_failure(self, answers: Sequence[object], *, saved: bool) -> None:
        if failure := next((answer for answer in answers if isinstance(answer, BaseException)), None):
            self._state_failures += saved
            raise failure

    async def _is_ours_to_stop(self) -> bool:
        """Tell whether the guest runs: what `pause` or an operator stopped stays so."""
        return self._wake_up is None and await self._status() == "running"

    def _stop(self) -> tuple[asyncio.Future[bool], asyncio.Future[object]]:
        """Stop a guest that ran a moment ago; the first result tells whether it is ours to let run on.

        An operator may have stopped it since: asked again right before our `stop`, QEMU tells. A guest that
        fell asleep (ACPI S3) since is ours as well: QEMU from 9.0 on stops that one too, and `cont` lets it
        sleep on; before, neither does anything to it.
        """
        ran = asyncio.ensure_future(self._runs_or_sleeps())
        return ran, asyncio.ensure_future(self._execute("stop"))

    async def _continue(self, ran: asyncio.Future[bool]) -> None:
        """Let a guest run on that `_stop` stopped."""
        await asyncio.wait([ran])
        if ran.cancelled() or ran.exception() or ran.result():
            await self._execute("cont")

    async def _runs_or_sleeps(self) -> bool:
        return await self._status() in ("running", "suspended")

    async def _status(self) -> object:
        status = await self._execute("query-status")
        return status.get("status") if isinstance(status, dict) else None

    async def _handed_over_file(self) -> StateFile:
        if self._state_file is None:
            file = StateFile()
            try:
                self._client.send_fd_scm(file.descriptor)
                added = await self._execute("add-fd")
            except BaseException:
                file.close()
                raise
            number = added.get("fdset-id") if isinstance(added, dict) else None
            self._state_file, self._state_file_name = file, f"/dev/fdset/{number}"
        return self._state_file

    async def _pause(self) -> None:
        self._has_overslept = False
        if self._wake_up is None:
            if not await self._is_ours_to_stop():
                return
            ran, stop = self._stop()
            await asyncio.gather(ran, stop)
            if not ran.result():
                return
        else:
            self._wake_up.cancel()
        self._wake_up = self._loop.call_later(PAUSE_SECONDS, self._overslept)

    def _overslept(self) -> None:
        _log.warning("the guest was paused for %d ms: it runs again", round(PAUSE_SECONDS * 1000))
        self._has_overslept = True
        asyncio.ensure_future(self._resume())  # noqa: RUF006  it is over at once, and nobody waits for it

    async def _resume(self) -> bool:
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
            await self._execute("cont")
        return not self._has_overslept


async def _nothing() -> None:
    """Stand for a command that is not needed."""


def _not_stopped() -> tuple[asyncio.Future[bool], asyncio.Future[object]]:
    """Stand for `_stop` where the guest is not ours to stop, nor to let run on."""
    loop = asyncio.get_running_loop()
    ran: asyncio.Future[bool] = loop.create_future()
    stop: asyncio.Future[object] = loop.create_future()
    ran.set_result(False)
    stop.set_result(None)
    return ran, stop


def _bounded(listings: tuple[str, ...]) -> tuple[str, ...]:
    if sum(map(len, listings)) > LONGEST_STREAM:
        raise UnavailableError("the registers of so many vCPUs do not fit into one answer")
    return listings


async def _cancel_the_rest() -> None:
    """Cancel questions that were never answered, and wait until they have ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
