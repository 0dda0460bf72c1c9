"""What the launcher says of itself: `status.json` in the state folder, whole at any moment, no secrets."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["StatusFile"]


class StatusFile:
    """A JSON object whose fields change one by one; may be called from any thread.

    Fields: `ready` (QEMU runs and, where there is a service, the monitor was started), `state`
    (`starting`, `firmware`, `launched`, `running` without a TPM or a service, `ended`), `since`
    (seconds since the epoch of the last change of `state`), `generation`, `image` (hex), `pids` by
    name, `monitor_starts`, `attestation` (why there is none, or empty), `refused` (what of the
    guest's TPM use was refused, with counts).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {"ready": False, "state": "starting", "since": int(time.time())}
        self.update()

    def update(self, **fields: Any) -> None:
        """Change fields and write the file.

        A function is called for its value, when no other thread can change the file any more: what was
        true before, and is not now, is then written by nobody over what is.
        """
        with self._lock:
            if self._fields["state"] == "ended":
                return  # for good: a thread that is late, as the TPM's may be, knows less
            fields = {name: value() if callable(value) else value for name, value in fields.items()}
            if fields.get("state", self._fields["state"]) != self._fields["state"]:
                self._fields["since"] = int(time.time())
            self._fields |= fields
            scratch = self._path.with_suffix(".new")
            scratch.write_text(json.dumps(self._fields, indent=1) + "\n", encoding="utf-8")
            scratch.replace(self._path)
