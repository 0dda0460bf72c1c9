"""Early-launch anti-malware: the first driver, and the configuration that Windows measured for it.

Only drivers signed by Microsoft's early-launch publisher are loaded before the others (Microsoft,
"Early launch antimalware driver requirements"); the registry values of each product's key in the ELAM
hive are measured into PCR 12 (SIPAEVENT_ELAM_AGGREGATION).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from affiant.tpm.windows.little_endian import decode_utf16
from affiant.tpm.windows.microsoft import EARLY_LAUNCH_PUBLISHER
from affiant.tpm.windows.modules import LoadedModule
from affiant.tpm.windows.sipa import Sipa, SipaEvent

__all__ = ["ElamConfiguration", "elam_drivers", "read_elam_configuration"]

_MAXIMUM_NAME: Final = 1024


@dataclass(frozen=True, slots=True)
class ElamConfiguration:
    """A key of the ELAM hive and the values in it, as measured: octets whose meaning is the product's."""

    key_name: str
    measured: tuple[bytes, ...]
    policy: tuple[bytes, ...]
    configuration: tuple[bytes, ...]


def read_elam_configuration(event: SipaEvent) -> ElamConfiguration:
    """Read an ELAM_AGGREGATION; MalformedError when the name is not UTF-16."""
    names = event.all(Sipa.ELAM_KEY_NAME)
    return ElamConfiguration(
        key_name=decode_utf16(names[0].payload[:_MAXIMUM_NAME], "ELAM key name") if names else "",
        measured=_payloads(event, Sipa.ELAM_MEASURED),
        policy=_payloads(event, Sipa.ELAM_POLICY),
        configuration=_payloads(event, Sipa.ELAM_CONFIGURATION),
    )


def elam_drivers(modules: Iterable[LoadedModule]) -> tuple[LoadedModule, ...]:
    """The early-launch drivers among `modules`: accepted by the loader, signed by that publisher."""
    return tuple(
        module
        for module in modules
        if module.validated is True and module.publisher == EARLY_LAUNCH_PUBLISHER
    )


def _payloads(event: SipaEvent, identifier: Sipa) -> tuple[bytes, ...]:
    return tuple(child.payload for child in event.all(identifier))
