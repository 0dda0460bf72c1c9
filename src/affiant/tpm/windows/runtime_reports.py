"""What the reports of a runtime package hold: drivers, code integrity policies, hotpatches.

DRIVER_RUNTIME_REPORT, CODE_INTEGRITY_RUNTIME_REPORT and HOTPATCH_RUNTIME_REPORT (`winnt.h` of the
Windows SDK since 10.0.26100, and Microsoft's description of `wdm.h`), little-endian, each with a header
of 8 octets: type, reserved, size. Offsets within a report count from its start. No genuine package is
public yet: the layouts are read as documented.

Fields differ in what stands behind them, although one signature covers all: digests and checksums are
the secure kernel's own work, while names are what the ordinary kernel called things. The latter are
called `untrusted_*` here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.windows.little_endian import LittleEndianReader
from affiant.tpm.windows.sipa import Sipa

__all__ = [
    "CodeIntegrityGeneration",
    "CodeIntegrityRecord",
    "CodeIntegrityReport",
    "Driver",
    "DriverReport",
    "Hotpatch",
    "HotpatchReport",
    "ReportType",
    "read_code_integrity_report",
    "read_driver_report",
    "read_hotpatch_report",
]

_DRIVER_ENTRY: Final = 56
_NAME: Final = 32
_MAXIMUM_TEXT: Final = 512
_MAXIMUM_GENERATIONS: Final = 1024
_MAXIMUM_RECORDS: Final = 8192
_CODE_INTEGRITY_HEADER: Final = 24  # sizeof, the last four octets are padding
_GENERATION_HEADER: Final = 16
_RECORD_HEADER: Final = 12
_VERSION: Final = 1
# Digest sizes by CALG identifier (`wincrypt.h`).
_DIGEST_SIZES: Final = {0x8004: 20, 0x800C: 32, 0x800D: 48, 0x800E: 64}


class ReportType(enum.IntEnum):
    """RUNTIME_REPORT_TYPE."""

    DRIVER = 0
    CODE_INTEGRITY = 1
    HOTPATCH = 2


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that was loaded since boot, perhaps gone since (`unloaded`).

    `image_digest` is the Authenticode digest and the key by which to compare with boot logs and lists:
    the same image may appear under several names. `publisher_thumbprint` is of its leaf certificate.
    Both are None where the report has none.
    """

    untrusted_name: str
    untrusted_oem_name: str
    image_hash_algorithm: int
    image_digest: bytes | None
    publisher_hash_algorithm: int
    publisher_thumbprint: bytes | None
    load_count: int
    unloaded: bool
    boot_driver: bool
    hotpatch: bool


@dataclass(frozen=True, slots=True)
class DriverReport:
    """All drivers since boot, if neither `overflowed` nor `partial`; those of the boot if so flagged."""

    drivers: tuple[Driver, ...]
    overflowed: bool
    partial: bool
    includes_boot_drivers: bool

    @property
    def is_complete(self) -> bool:
        """Whether the report itself says that it leaves nothing out (boot drivers aside)."""
        return not self.overflowed and not self.partial


@dataclass(frozen=True, slots=True)
class CodeIntegrityRecord:
    """One policy event in the vocabulary of the boot log (`Sipa`), as it came."""

    identifier: int
    payload: bytes

    @property
    def name(self) -> str:
        """The event's name for people; its number when it is unknown."""
        try:
            return Sipa(self.identifier).name
        except ValueError:
            return f"0x{self.identifier:08x}"


@dataclass(frozen=True, slots=True)
class CodeIntegrityGeneration:
    """The policies in force from `commit_time` on (the secure kernel's own clock, in its units)."""

    commit_time: int
    records: tuple[CodeIntegrityRecord, ...]


@dataclass(frozen=True, slots=True)
class CodeIntegrityReport:
    """Code integrity policies, newest generation first; `current_generation` is 1 at boot."""

    current_generation: int
    generations: tuple[CodeIntegrityGeneration, ...]


@dataclass(frozen=True, slots=True)
class Hotpatch:
    """A patched image: its PE checksum and time stamp are its identity, its name is not."""

    base_checksum: int
    base_time_date_stamp: int
    base_address: int
    image_size: int
    latest_sequence_number: int
    untrusted_name: str


@dataclass(frozen=True, slots=True)
class HotpatchReport:
    """The images that were patched while running."""

    hotpatches: tuple[Hotpatch, ...]


def read_driver_report(report: bytes) -> DriverReport:
    """Read a DRIVER_RUNTIME_REPORT, header included.

    Raises MalformedError: entries or what they point to lie outside the report, or before the entries' end.
    """
    reader = _body(report, ReportType.DRIVER)
    count, flags = reader.u16(), reader.u16()
    entries = reader.take(count * _DRIVER_ENTRY)
    first = reader.offset
    drivers = tuple(
        _read_driver(entries[start : start + _DRIVER_ENTRY], report, first)
        for start in range(0, len(entries), _DRIVER_ENTRY)
    )
    return DriverReport(drivers, bool(flags & 1), bool(flags & 2), bool(flags & 4))


def _read_driver(entry: bytes, report: bytes, first: int) -> Driver:
    reader = LittleEndianReader(entry, "driver report: entry")
    name = _inline_text(reader.take(_NAME))
    image_algorithm, publisher_algorithm = reader.u16(), reader.u16()
    image_offset, publisher_offset = reader.u32(), reader.u32()
    loads, oem_size, oem_offset, flags = reader.u16(), reader.u16(), reader.u32(), reader.u16()
    if oem_size > _MAXIMUM_TEXT:
        raise MalformedError(f"driver report: OEM name of {oem_size} octets")
    return Driver(
        untrusted_name=name,
        untrusted_oem_name=_inline_text(_at(report, oem_offset, oem_size, first) if oem_size else b""),
        image_hash_algorithm=image_algorithm,
        image_digest=_digest(report, image_algorithm, image_offset, first),
        publisher_hash_algorithm=publisher_algorithm,
        publisher_thumbprint=_digest(report, publisher_algorithm, publisher_offset, first),
        load_count=loads,
        unloaded=bool(flags & 1),
        boot_driver=bool(flags & 2),
        hotpatch=bool(flags & 4),
    )


def _digest(report: bytes, algorithm: int, offset: int, first: int) -> bytes | None:
    if not algorithm or not offset:
        return None
    size = _DIGEST_SIZES.get(algorithm)
    if size is None:
        raise MalformedError(f"driver report: unknown hash algorithm 0x{algorithm:04x}")
    return _at(report, offset, size, first)


def _at(report: bytes, offset: int, size: int, first: int) -> bytes:
    if not first <= offset <= len(report) - size:
        raise MalformedError(f"driver report: {size} octets at {offset} are outside of it")
    return report[offset : offset + size]


def read_code_integrity_report(report: bytes) -> CodeIntegrityReport:
    """Read a CODE_INTEGRITY_RUNTIME_REPORT, header included.

    Raises MalformedError: another version, sizes that do not nest, more than 1024 generations or 8192
    records, octets left over.
    """
    reader = _body(report, ReportType.CODE_INTEGRITY)
    current, count = reader.u64(), reader.u32()
    reader.take(_CODE_INTEGRITY_HEADER - reader.offset)
    if count > _MAXIMUM_GENERATIONS:
        raise MalformedError(f"code integrity report: {count} generations")
    generations: list[CodeIntegrityGeneration] = []
    records_left = _MAXIMUM_RECORDS
    for _ in range(count):
        generation = _read_generation(reader, records_left)
        records_left -= len(generation.records)
        generations.append(generation)
    reader.finish()
    return CodeIntegrityReport(current, tuple(generations))


def _read_generation(reader: LittleEndianReader, records_left: int) -> CodeIntegrityGeneration:
    size = _versioned_size(reader, _GENERATION_HEADER)
    commit_time = reader.u64()
    inner = LittleEndianReader(reader.take(size - _GENERATION_HEADER), "code integrity report: generation")
    records: list[CodeIntegrityRecord] = []
    while inner.remaining:
        if len(records) >= records_left:
            raise MalformedError(f"code integrity report: more than {_MAXIMUM_RECORDS} records")
        record_size = _versioned_size(inner, _RECORD_HEADER)
        identifier = inner.u32()
        records.append(CodeIntegrityRecord(identifier, inner.take(record_size - _RECORD_HEADER)))
    return CodeIntegrityGeneration(commit_time, tuple(records))


def _versioned_size(reader: LittleEndianReader, minimum: int) -> int:
    version, _, size = reader.u16(), reader.u16(), reader.u32()
    if version != _VERSION or size < minimum:
        raise MalformedError(f"code integrity report: version {version} of {size} octets")
    return size


def read_hotpatch_report(report: bytes) -> HotpatchReport:
    """Read a HOTPATCH_RUNTIME_REPORT, header included; MalformedError when the entries do not fill it."""
    reader = _body(report, ReportType.HOTPATCH)
    count, _, _ = reader.u16(), reader.u16(), reader.u32()
    hotpatches = tuple(
        Hotpatch(
            base_checksum=reader.u32(),
            base_time_date_stamp=reader.u32(),
            base_address=reader.u64(),
            image_size=reader.u32(),
            latest_sequence_number=reader.u32(),
            untrusted_name=_inline_text(reader.take(_NAME)),
        )
        for _ in range(count)
    )
    reader.finish()
    return HotpatchReport(hotpatches)


def _body(report: bytes, expected: ReportType) -> LittleEndianReader:
    reader = LittleEndianReader(report, f"{expected.name.lower().replace('_', ' ')} report")
    kind, _, size = reader.u16(), reader.u16(), reader.u32()
    if kind != expected or size != len(report):
        raise MalformedError(f"{expected.name.lower()} report: type {kind} of {size} octets")
    return reader


def _inline_text(octets: bytes) -> str:
    """UTF-8 up to the first zero; what is not UTF-8 is shown escaped, since names only inform."""
    return octets.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
