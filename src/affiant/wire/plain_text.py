"""Texts of messages: no control character is in them.

What stands in a message comes out of hostile guests and from relays, and goes on into logs, terminals and
databases. One line break forges a line of a log, and PostgreSQL takes no text that holds a NUL: a message
with one could not be stored.
"""

from __future__ import annotations

import re

__all__ = ["has_controls", "plain"]

# All of Unicode's general category Cc; which characters it has will not change (Unicode 15.0, section 23.1).
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SPACE = re.compile(r"[\t\n\v\f\r]")


def has_controls(text: str) -> bool:
    """Tell whether a control character is in `text`, line breaks and tabs among them."""
    return not text.isprintable() and _CONTROL.search(text) is not None


def plain(text: str) -> str:
    """Return `text` as a message may hold it: as long as it was.

    Line breaks and tabs become spaces, other control characters and what has no encoding question marks.
    """
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub("?", _SPACE.sub(" ", encodable)) if has_controls(encodable) else encodable
