"""Words of a log for a terminal: whatever could move its cursor or pass for another line is replaced.

JSON escapes it by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

__all__ = ["counted", "json_text", "printable", "ranges", "short_digest"]


def printable(text: str, *, limit: int = 300) -> str:
    """Return `text` without anything that is not printable, and no longer than `limit`."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:limit])
    return shown + ("..." if len(text) > limit else "")


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ranges(pcrs: Iterable[int]) -> str:
    """Return indices as people write them: `0-9, 14`."""
    found: list[list[int]] = []
    for pcr in sorted(pcrs):
        if found and pcr == found[-1][1] + 1:
            found[-1][1] = pcr
        else:
            found.append([pcr, pcr])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found) or "none"


def short_digest(digest: bytes) -> str:
    """Return the beginning of a digest, enough to find it again."""
    return digest.hex()[:16] + ".."


def json_text(document: object) -> str:
    """Return a JSON document for machines, in ASCII."""
    return json.dumps(document, indent=2)
