"""SIPA events: what the data of a Windows event holds, nested.

Each is a 32-bit identifier, a 32-bit size and that many octets (`wbcl.h` of the Windows SDK,
TCG_PCClientTaggedEventStruct). An identifier with bit 30 set is an aggregation: its octets are more
events. Bit 31 marks what Windows doesn't measure by itself.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError

__all__ = ["AGGREGATIONS", "MAXIMUM_DEPTH", "MAXIMUM_NODES", "Sipa", "SipaEvent", "read_sipa_events"]

MAXIMUM_DEPTH: Final = 8
"""How deep aggregations may nest; Windows nests three."""
MAXIMUM_NODES: Final = 32768
"""Events, nested ones included, in the data of one event of the log."""

_HEADER: Final = struct.Struct("<II")
_NUMBER_SIZES: Final = (1, 2, 4, 8)


class Sipa(enum.IntEnum):
    """The identifiers that are read here; there are more, and those are skipped."""

    TRUST_BOUNDARY = 0x40010001
    ELAM_AGGREGATION = 0x40010002
    LOADED_MODULE_AGGREGATION = 0x40010003
    TRUST_POINT_AGGREGATION = 0xC0010004
    KSR_AGGREGATION = 0x40010005
    KSR_SIGNED_MEASUREMENT_AGGREGATION = 0x40010006

    BOOT_COUNTER = 0x00020002
    TRANSFER_CONTROL = 0x00020003
    APPLICATION_RETURN = 0x00020004
    BITLOCKER_UNLOCK = 0x00020005
    EVENT_COUNTER = 0x00020006
    COUNTER_ID = 0x00020007
    MOR_BIT_NOT_CANCELABLE = 0x00020008
    APPLICATION_SVN = 0x00020009
    SVN_CHAIN_STATUS = 0x0002000A
    MOR_BIT_API_STATUS = 0x0002000B
    IDK_GENERATION_STATUS = 0x0002000C

    BOOT_DEBUGGING = 0x00040001
    BOOT_REVOCATION_LIST = 0x00040002

    OS_KERNEL_DEBUG = 0x00050001
    CODE_INTEGRITY = 0x00050002
    TEST_SIGNING = 0x00050003
    DATA_EXECUTION_PREVENTION = 0x00050004
    SAFE_MODE = 0x00050005
    WINPE = 0x00050006
    OS_DEVICE = 0x00050008
    SYSTEM_ROOT = 0x00050009
    HYPERVISOR_LAUNCH_TYPE = 0x0005000A
    HYPERVISOR_PATH = 0x0005000B
    HYPERVISOR_IOMMU_POLICY = 0x0005000C
    HYPERVISOR_DEBUG = 0x0005000D
    DRIVER_LOAD_POLICY = 0x0005000E
    SI_POLICY = 0x0005000F
    HYPERVISOR_MMIO_NX_POLICY = 0x00050010
    HYPERVISOR_MSR_FILTER_POLICY = 0x00050011
    VSM_LAUNCH_TYPE = 0x00050012
    OS_REVOCATION_LIST = 0x00050013
    SMT_STATUS = 0x00050014
    VSM_IDK_INFO = 0x00050020
    FLIGHT_SIGNING = 0x00050021
    PAGEFILE_ENCRYPTION_ENABLED = 0x00050022
    VSM_IDKS_INFO = 0x00050023
    HIBERNATION_DISABLED = 0x00050024
    DUMPS_DISABLED = 0x00050025
    DUMP_ENCRYPTION_ENABLED = 0x00050026
    LSAISO_CONFIG = 0x00050028
    SBCP_INFO = 0x00050029
    HYPERVISOR_BOOT_DMA_PROTECTION = 0x00050030

    NO_AUTHORITY = 0x00060001
    AUTHORITY_PUBLIC_KEY = 0x00060002

    FILE_PATH = 0x00070001
    IMAGE_SIZE = 0x00070002
    HASH_ALGORITHM_ID = 0x00070003
    AUTHENTICODE_HASH = 0x00070004
    AUTHORITY_ISSUER = 0x00070005
    AUTHORITY_SERIAL = 0x00070006
    IMAGE_BASE = 0x00070007
    AUTHORITY_PUBLISHER = 0x00070008
    AUTHORITY_SHA1_THUMBPRINT = 0x00070009
    IMAGE_VALIDATED = 0x0007000A
    MODULE_SVN = 0x0007000B

    QUOTE = 0x80080001
    QUOTE_SIGNATURE = 0x80080002
    AIK_ID = 0x80080003
    AIK_PUBLIC_DIGEST = 0x80080004

    ELAM_KEY_NAME = 0x00090001
    ELAM_CONFIGURATION = 0x00090002
    ELAM_POLICY = 0x00090003
    ELAM_MEASURED = 0x00090004

    VBS_VSM_REQUIRED = 0x000A0001
    VBS_SECURE_BOOT_REQUIRED = 0x000A0002
    VBS_IOMMU_REQUIRED = 0x000A0003
    VBS_MMIO_NX_REQUIRED = 0x000A0004
    VBS_MSR_FILTERING_REQUIRED = 0x000A0005
    VBS_MANDATORY_ENFORCEMENT = 0x000A0006
    VBS_HVCI_POLICY = 0x000A0007
    VBS_MICROSOFT_BOOT_CHAIN_REQUIRED = 0x000A0008

    DRTM_STATE_AUTH = 0x000C0001
    DRTM_SMM_LEVEL = 0x000C0002
    DRTM_AMD_SMM_HASH = 0x000C0003
    DRTM_AMD_SMM_SIGNER_KEY = 0x000C0004


AGGREGATIONS: Final = frozenset(
    {
        Sipa.TRUST_BOUNDARY,
        Sipa.ELAM_AGGREGATION,
        Sipa.LOADED_MODULE_AGGREGATION,
        Sipa.TRUST_POINT_AGGREGATION,
        Sipa.KSR_AGGREGATION,
        Sipa.KSR_SIGNED_MEASUREMENT_AGGREGATION,
    }
)
"""The aggregations whose content is read; an unknown one is skipped whole, like any unknown event."""


@dataclass(frozen=True, slots=True)
class SipaEvent:
    """One event as decoded, trusted as far as the octets were; `children` only in an aggregation."""

    identifier: int
    payload: bytes
    children: tuple[SipaEvent, ...] = ()

    @property
    def name(self) -> str:
        """The event's name for people; its number when it is unknown."""
        try:
            return Sipa(self.identifier).name
        except ValueError:
            return f"0x{self.identifier:08x}"

    @property
    def number(self) -> int | None:
        """The payload as an integer; None when its size is none of 1, 2, 4 or 8."""
        return int.from_bytes(self.payload, "little") if len(self.payload) in _NUMBER_SIZES else None

    def all(self, identifier: int) -> tuple[SipaEvent, ...]:
        """The direct children of that identifier."""
        return tuple(child for child in self.children if child.identifier == identifier)

    def walk(self) -> Iterator[SipaEvent]:
        """This event and all below it, in the order of the log."""
        yield self
        for child in self.children:
            yield from child.walk()


def read_sipa_events(data: bytes) -> tuple[SipaEvent, ...]:
    """Read the tagged events that fill `data`; nothing about them is verified.

    Raises MalformedError: an event that ends early, nesting deeper than 8, more than 32768 events.
    """
    return _read(data, 1, [0])


def _read(data: bytes, depth: int, count: list[int]) -> tuple[SipaEvent, ...]:
    if depth > MAXIMUM_DEPTH:
        raise MalformedError(f"Windows event: nested deeper than {MAXIMUM_DEPTH}")
    events: list[SipaEvent] = []
    offset = 0
    while offset < len(data):
        count[0] += 1
        if count[0] > MAXIMUM_NODES:
            raise MalformedError(f"Windows event: more than {MAXIMUM_NODES} events in one")
        if offset + _HEADER.size > len(data):
            raise MalformedError(f"Windows event: {len(data) - offset} octets where an event should be")
        identifier, size = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size
        if size > len(data) - offset:
            raise MalformedError(f"Windows event 0x{identifier:08x} of {size} octets ends early")
        payload = data[offset : offset + size]
        children = _read(payload, depth + 1, count) if identifier in AGGREGATIONS else ()
        events.append(SipaEvent(identifier, payload, children))
        offset += size
    return tuple(events)
