"""The names that files of a rules repository have: what a relay asks for, and a service gives out."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["DEFAULT_FLEET", "FLEET", "RULES_PREFIX", "TIMESTAMP_PATH", "is_immutable", "is_rules_path"]

RULES_PREFIX: Final = "/v1/rules"
"""Where the service gives out the repository, unless an operator names another web server."""

TIMESTAMP_PATH: Final = "metadata/timestamp.json"
"""The one file that is written over; every other has a version or a digest in its name."""

FLEET: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a fleet may be called, as a whole."""

DEFAULT_FLEET: Final = "default"

_VERSIONED = re.compile(
    r"metadata/[1-9][0-9]{0,8}\.(?:root|snapshot|targets)\.json"
    rf"|targets/[0-9a-f]{{64}}\.{FLEET.pattern}\.rules"
)


def is_rules_path(path: str) -> bool:
    """Tell whether a repository may have a file of this name; no other is ever asked for or given out."""
    return path == TIMESTAMP_PATH or is_immutable(path)


def is_immutable(path: str) -> bool:
    """Tell whether the file of this name never changes."""
    return _VERSIONED.fullmatch(path) is not None
