"""The table of all techniques; a family's rows stand in its own file."""

from __future__ import annotations

from typing import Final

from lab.tamper.bpf import BPF_TECHNIQUES
from lab.tamper.data import DATA_TECHNIQUES
from lab.tamper.executable import EXECUTABLE_TECHNIQUES
from lab.tamper.loaded import LOADED_TECHNIQUES
from lab.tamper.modules import MODULE_TECHNIQUES
from lab.tamper.monitor import MONITOR_TECHNIQUES
from lab.tamper.pages import PAGE_TECHNIQUES
from lab.tamper.processes import PROCESS_TECHNIQUES
from lab.tamper.processors import PROCESSOR_TECHNIQUES
from lab.tamper.sites import SITE_TECHNIQUES
from lab.tamper.switches import SWITCH_TECHNIQUES
from lab.tamper.technique import Technique
from lab.tamper.text import TEXT_TECHNIQUES

__all__ = ["TECHNIQUES"]

TECHNIQUES: Final[tuple[Technique, ...]] = (
    *TEXT_TECHNIQUES,
    *SITE_TECHNIQUES,
    *MODULE_TECHNIQUES,
    *PAGE_TECHNIQUES,
    *EXECUTABLE_TECHNIQUES,
    *BPF_TECHNIQUES,
    *PROCESSOR_TECHNIQUES,
    *DATA_TECHNIQUES,
    *SWITCH_TECHNIQUES,
    *PROCESS_TECHNIQUES,
    *LOADED_TECHNIQUES,
    *MONITOR_TECHNIQUES,
)
"""Every way to tamper that the lab knows; names are unique."""
