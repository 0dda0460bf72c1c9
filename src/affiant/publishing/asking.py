"""What the words of `affiant rules` mean: which folder, which key, which moment."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from affiant.publishing.folder import RulesFolder

__all__ = [
    "confirmed",
    "current_time",
    "moment",
    "new_passphrase",
    "open_folder",
    "open_signer",
    "passphrase",
    "percentage",
]

_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


def open_folder(named: Path | None) -> RulesFolder:
    """Return the repository that was named, or this host's."""
    from affiant.folders import rules_folder
    from affiant.publishing.folder import RulesFolder

    return RulesFolder(named or rules_folder())


def open_signer(path: Path, passphrase_file: Path | None) -> CryptoSigner:
    """Return the signer whose private key is in a file, and whose passphrase is there or asked for."""
    from affiant.publishing.keys import read_signer

    return read_signer(path, passphrase=passphrase(passphrase_file, path))


def passphrase(file: Path | None, key: Path) -> Callable[[], bytes]:
    """Return what tells the passphrase of `key`: a file, or a person."""
    from affiant.model.errors import SetupError

    def ask() -> bytes:
        if file is None:
            return _secret(f"passphrase of {key.name}: ")
        try:
            return file.read_bytes().rstrip(b"\n")
        except OSError as error:
            raise SetupError(f"{file} cannot be read: {error.strerror}") from None

    return ask


def new_passphrase(file: Path | None, key: Path) -> bytes:
    """Return the passphrase for a new key, which a person has to say twice. Raises SetupError."""
    from affiant.model.errors import SetupError

    secret = passphrase(file, key)()
    if file is None and _secret("once more: ") != secret:
        raise SetupError("the two passphrases differ")
    if not secret:
        raise SetupError("a passphrase is needed", hint="or --unsafe-no-passphrase")
    return secret


def confirmed(question: str) -> bool:
    """Ask a person to agree. Raises SetupError where nobody can be asked."""
    from affiant.model.errors import SetupError

    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        sys.stdout.write("\n")
        raise SetupError("nobody is there to say yes", hint="--yes signs without asking") from None


def _secret(prompt: str) -> bytes:
    from affiant.model.errors import SetupError

    try:
        # Without a terminal, getpass warns that what is typed shows, and reads standard input.
        return getpass.getpass(prompt).encode()
    except EOFError:
        sys.stderr.write("\n")
        raise SetupError(
            "there is no terminal to ask for a passphrase", hint="--passphrase-file FILE"
        ) from None


def current_time() -> int:
    """Return seconds since the epoch by this host's clock."""
    return int(time.time())


def percentage(text: str) -> int:
    """Return a number from 0 to 100. Raises `argparse.ArgumentTypeError` for anything else."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage: 0 to 100")
    return int(text)


def moment(text: str) -> int:
    """Return seconds since the epoch for `+30m`, `+12h`, `+7d`, or a date and time of ISO 8601 (UTC).

    Raises `argparse.ArgumentTypeError` for anything else.
    """
    from datetime import UTC, datetime

    if match := re.fullmatch(r"\+([0-9]{1,6})([mhd])", text):
        return current_time() + int(match[1]) * _UNITS[match[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no moment: +30m, +12h, +7d, or a date and time in UTC as in 2027-01-31T12:00"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
