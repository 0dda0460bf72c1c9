"""The service's log: one JSON object for each line, on standard error."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["JsonLines", "log_to_stderr"]


class JsonLines(logging.Formatter):
    """Writes time, level and message, and what the caller gave as `extra={"fields": {...}}`.

    Text from clients stands inside JSON strings, so that it cannot begin a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send everything from level INFO on to standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
