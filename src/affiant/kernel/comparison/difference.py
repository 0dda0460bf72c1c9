"""What comparing code finds: bytes that differ, what is wrong at patch sites, and who registered there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Hook", "Verdict"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A run of `length` bytes that nothing explains; the first 64 bytes of it are shown.

    At a patch site, `site` is its class, `reason` says what is wrong, and `allowed` are the forms that may
    stand there. `culprit` is an address outside of the kernel image that the code leads to, 0 if none.
    """

    address: int
    length: int
    expected: bytes
    found: bytes
    site: str = ""
    reason: str = ""
    allowed: tuple[bytes, ...] = ()
    culprit: int = 0


@dataclass(frozen=True, slots=True)
class Hook:
    """Something that the kernel was told to call: `via` is kprobe, ftrace or bpf; addresses."""

    via: str
    address: int
    handler: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look at the sites of a region found.

    `wrong` are sites that hold what they must not; `passing` those in a state that a healthy kernel is
    in for moments. `sites` counts the sites of each class that were judged, in this look or before.
    `unreadable` says why rules could not be asked: what they guard is not established.
    """

    wrong: tuple[Difference, ...]
    passing: tuple[Difference, ...]
    hooks: tuple[Hook, ...]
    sites: Mapping[str, int]
    unreadable: tuple[str, ...]
    probed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
