"""Files that must not be there yet, keys above all: nothing is written over, and no link is followed."""

from __future__ import annotations

import os
from pathlib import Path

from affiant.model.errors import SetupError

__all__ = ["write_new_file"]


def write_new_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file with these permissions, less what the umask takes. Raises `SetupError` if it is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise SetupError(f"{path} is already there", hint="remove it, or name another") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
