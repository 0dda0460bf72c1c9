"""What a way of tampering is, and the kernels that it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from affiant.model.outcome import Outcome
from lab.live_guest import LiveGuest

__all__ = ["SUITES", "Tamper", "Technique"]

SUITES: Final = ("bookworm", "trixie", "sid")
"""The Debian suites whose kernels are supported: 6.1, 6.12 and 7.x."""

Tamper = Callable[[LiveGuest], AbstractContextManager[str]]
"""Changes a guest while its block lasts; yields the beginning of the subject that must be found."""


@dataclass(frozen=True, slots=True)
class Technique:
    """One way to tamper with a guest, and what must be said of it.

    `rule` must tell it in a finding whose subject begins as `tamper` yields it. Where `outcome` is
    `INCONCLUSIVE`, the technique blinds the rule, and what is yielded must stand in the reason.
    `site` is the class of patch site that the fact `kernel_text` must name, "" outside of such sites.
    `about` says what was done, as a sentence; `attack` is the id in MITRE ATT&CK, "" where none fits.
    It is tried on the kernels of `suites`, each of which it must work on. With `recorded`, the facts
    that it leads to are kept beside the rule, which is then tested on them without a guest.
    """

    family: str
    name: str
    rule: str
    about: str
    tamper: Tamper
    attack: str = "T1014"
    suites: tuple[str, ...] = SUITES
    site: str = ""
    outcome: Outcome = Outcome.VIOLATED
    recorded: bool = False
