"""The monitor and its relay: started together, ended together, started again when one of them ends.

Both sit in sandboxes. Between them lies the courier channel, between monitor and launcher the
launcher channel; both are socket pairs, new with each start. A monitor that starts again makes new
keys and a new session; the image is the same, measured at the launcher's start and held, and so is the
launcher's side of the channel, which remembers for it what violations the one before saw.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from affiant.launcher.channel import LauncherChannel
from affiant.launcher.images.image import Image
from affiant.launcher.images.image_files import MONITOR, RELAY
from affiant.launcher.images.sandbox import NOBODY, Sandbox, start_sandboxed
from affiant.launcher.process.children import Child
from affiant.launcher.settings import LauncherSettings
from affiant.model.errors import AffiantError

__all__ = ["MonitorPair"]

_log = logging.getLogger(__name__)

_MONITOR_BYTES = (
    8 << 30
)  # address space beside the guest's RAM: libraries and arenas reserve much, use little
_RELAY_BYTES = 4 << 30
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0
_STEADY_SECONDS = 120.0


class MonitorPair:
    """Keeps the monitor alive. Its methods belong to the launcher's main thread."""

    def __init__(
        self,
        settings: LauncherSettings,
        *,
        service_root: bytes,
        rules_root: bytes | None,
        channel: LauncherChannel,
        monitor_image: Image,
        relay_image: Image,
        ram: int,
        copies: int,
        facts_key: bytes | None = None,
    ) -> None:
        """`service_root` is DER, `rules_root` a root file's content or None.

        `ram` is a descriptor of the guest's memory, `copies` of the file that copies of its pages are put
        into; both are opened for reading. `facts_key` is the operator's
        X25519 key, where kept facts are to be sealed.
        """
        self._settings = settings
        self._service_root = service_root
        self._rules_root = rules_root
        self._channel = channel
        self._images = (monitor_image.folder, relay_image.folder)
        self._ram = ram
        self._copies = copies
        self._facts_key = facts_key
        self._children: list[Child] = []
        self._server: socket.socket | None = None
        self._started = 0.0
        self._delay = _FIRST_DELAY
        self._due: float | None = None
        self.starts = 0

    @property
    def children(self) -> list[Child]:
        """Monitor and relay while they run."""
        return list(self._children)

    def start(self) -> None:
        """Start both. Raises `SetupError` or `UnavailableError` when a sandbox cannot be made."""
        self._due = None
        self._prepare_passport_folder()
        courier_relay, courier_monitor = socket.socketpair()
        launcher_end, monitor_end = socket.socketpair()
        with courier_relay, courier_monitor, monitor_end:
            try:
                self._children.append(self._start_relay(courier_relay.fileno()))
                self._children.append(self._start_monitor(monitor_end.fileno(), courier_monitor.fileno()))
            except BaseException:
                launcher_end.close()
                self.stop()
                raise
        self._server = launcher_end
        threading.Thread(
            target=self._channel.serve, args=(launcher_end,), name="launcher channel", daemon=True
        ).start()
        self._started = time.monotonic()
        self.starts += 1

    def stop(self) -> None:
        """End both and remove the relay's socket."""
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server = None
        while self._children:
            self._children.pop().stop()
        self._settings.passport_socket.unlink(missing_ok=True)

    def tend(self) -> None:
        """End both when one has ended, and start them again after a while: soon first, then each minute."""
        now = time.monotonic()
        if ended := [child for child in self._children if child.exit_code() is not None]:
            for child in ended:
                _log.warning("the %s ended (%s): %s", child.name, child.exit_code(), child.last_words())
            self.stop()
            steady = now - self._started > _STEADY_SECONDS
            self._delay = _FIRST_DELAY if steady else min(self._delay * 2, _LONGEST_DELAY)
            self._due = now + self._delay
        elif self._due is not None and now >= self._due:
            try:
                self.start()
            except AffiantError as error:
                # Without a monitor the guest is worth nothing to a relying party, and runs on.
                self._delay = min(self._delay * 2, _LONGEST_DELAY)
                self._due = time.monotonic() + self._delay
                _log.warning("monitor and relay cannot be started, again in %d s: %s", self._delay, error)

    def _start_relay(self, courier: int) -> Child:
        passport = self._settings.passport_socket
        sandbox = Sandbox(
            self._images[1],
            RELAY.entry,
            (
                *("--courier-fd", str(courier), "--service", str(self._settings.service)),
                *("--socket", f"/passports/{passport.name}"),
                *(("--rules", self._settings.rules) if self._settings.rules else ()),
            ),
            memory_bytes=_RELAY_BYTES,
            writable=((passport.parent, "/passports"),),
            descriptors=(courier,),
            network=True,
        )
        return start_sandboxed("relay", sandbox, log=self._log_file("relay"))

    def _start_monitor(self, launcher: int, courier: int) -> Child:
        sandbox = Sandbox(
            self._images[0],
            MONITOR.entry,
            (
                *("--ram-fd", str(self._ram), "--copies-fd", str(self._copies)),
                *("--launcher-fd", str(launcher), "--courier-fd", str(courier)),
                *("--settings", self._monitor_settings()),
            ),
            memory_bytes=2 * self._settings.memory_bytes + _MONITOR_BYTES,  # RAM, and copies of its pages
            read_only=((self._settings.references, "/references"),),
            descriptors=(self._ram, self._copies, launcher, courier),
        )
        return start_sandboxed("monitor", sandbox, log=self._log_file("monitor"))

    def _monitor_settings(self) -> str:
        """Return the settings that `affiant.monitor` reads: the guest's shape and the pinned roots."""
        settings: dict[str, object] = {
            "memory_bytes": self._settings.memory_bytes,
            "below_4g_bytes": self._settings.below_4g_bytes,
            "service_root": base64.b64encode(self._service_root).decode(),
            "references": "/references",
        }
        if self._rules_root is not None:
            settings["rules_root"] = base64.b64encode(self._rules_root).decode()
            settings["fleet"] = self._settings.fleet
            settings["rules_interval_ms"] = self._settings.rules_interval_ms
        if self._settings.keep_facts:
            settings["keep_facts_ms"] = self._settings.keep_facts_seconds * 1_000
            settings["facts_key"] = base64.b64encode(self._facts_key or b"").decode()
        return json.dumps(settings)

    def _prepare_passport_folder(self) -> None:
        folder = self._settings.passport_socket.parent
        folder.mkdir(mode=0o755, exist_ok=True)
        self._settings.passport_socket.unlink(missing_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)

    def _log_file(self, name: str) -> Path:
        return self._settings.state_folder / f"{name}.log"
