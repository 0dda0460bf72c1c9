"""Files that a person hands over: read within bounds, told apart by their content."""

from __future__ import annotations

import sys
from pathlib import Path

from affiant.model.errors import MalformedError, SetupError, UnavailableError

__all__ = ["read_file"]


def read_file(path: str, *, limit: int, what: str) -> bytes:
    """Return a file's octets, `-` being standard input.

    Raises SetupError when it is not there or not readable, MalformedError over `limit` octets,
    UnavailableError when reading fails.
    """
    try:
        if path == "-":
            content = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(limit + 1)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise SetupError(f"{what}: cannot read {path}: {error.strerror}") from None
    except OSError as error:
        raise UnavailableError(f"{what}: reading {path} failed: {error.strerror}") from None
    if len(content) > limit:
        raise MalformedError(f"{what}: more than {limit} octets")
    return content
