"""Where Affiant keeps its files on this host.

- the cache, what can be fetched or made again: $AFFIANT_CACHE, else $XDG_CACHE_HOME/affiant, else
  ~/.cache/affiant;
- the home, state of virtual machines, references, the CA of the vTPMs: $AFFIANT_HOME, else for root
  /var/lib/affiant, else $XDG_DATA_HOME/affiant or ~/.local/share/affiant.

The RAM of a running guest lies in /dev/shm, because it is memory.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = [
    "cache_folder",
    "home_folder",
    "images_folder",
    "references_folder",
    "rules_folder",
    "service_folder",
    "vtpm_authority_folder",
]


def cache_folder() -> Path:
    """Return the cache folder, absolute; it may not exist yet."""
    if named := os.environ.get("AFFIANT_CACHE"):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "affiant"


def home_folder() -> Path:
    """Return the folder of lasting state, absolute; it may not exist yet."""
    if named := os.environ.get("AFFIANT_HOME"):
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/affiant")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share").absolute() / "affiant"


def vtpm_authority_folder() -> Path:
    """Return the folder of this host's CA for virtual TPMs; the launcher makes it."""
    return home_folder() / "vtpm-ca"


def references_folder() -> Path:
    """Return the folder with this host's reference images."""
    return home_folder() / "references"


def service_folder() -> Path:
    """Return the folder of an attestation service on this host: its keys and database."""
    return home_folder() / "service"


def rules_folder() -> Path:
    """Return the folder of a rules repository on this host; `public` in it is what is given out."""
    return home_folder() / "rules"


def images_folder() -> Path:
    """Return the folder of measured monitor images; they can be made again from the installation."""
    return cache_folder() / "images"
