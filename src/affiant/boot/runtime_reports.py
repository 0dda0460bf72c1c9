"""A package of runtime reports explained: what a secure kernel says of the Windows kernel beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from affiant.appraisal.boot_facts import Trust
from affiant.boot.text import printable
from affiant.model.errors import ForgedError
from affiant.tpm.windows.identity_key import IdentityKey
from affiant.tpm.windows.runtime_package import (
    UnverifiedRuntimePackage,
    VerifiedRuntimePackage,
    parse_runtime_report_package,
    verify_runtime_report_package,
)
from affiant.tpm.windows.runtime_reports import (
    CodeIntegrityReport,
    Driver,
    DriverReport,
    HotpatchReport,
    ReportType,
    read_code_integrity_report,
    read_driver_report,
    read_hotpatch_report,
)

__all__ = [
    "RuntimeExplanation",
    "explain_runtime_reports",
    "is_runtime_package",
    "runtime_reports_as_json",
    "runtime_reports_page",
]

_MAGIC: Final = (0x52545250).to_bytes(4, "little")  # RUNTIME_REPORT_PACKAGE_MAGIC of `winnt.h`
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class RuntimeExplanation:
    """A package's reports with what is proven of them; a report that was not in the package is None.

    `refused` says why the package is forged, `unproven` what is missing to prove it; unless one of them is
    set, signature, nonce and digests were verified (`verify_runtime_report_package`).
    """

    nonce: bytes
    drivers: DriverReport | None
    code_integrity: CodeIntegrityReport | None
    hotpatches: HotpatchReport | None
    unknown_types: tuple[int, ...]
    refused: str | None
    unproven: str

    @property
    def trust(self) -> Trust:
        """Whether the reports are proven; names in them never are."""
        verified = self.refused is None and not self.unproven
        return Trust.VERIFIED if verified else Trust.UNTRUSTED


def is_runtime_package(content: bytes) -> bool:
    """Tell a package of runtime reports by its magic; nothing else about it is looked at."""
    return content.startswith(_MAGIC)


def explain_runtime_reports(
    package: bytes, *, identity_key: IdentityKey | None, nonce: bytes | None
) -> RuntimeExplanation:
    """Verify a package of runtime reports as far as it can be, and explain it.

    Without the nonce that was asked with, a package is of any time since the machine has its key; so both
    key and nonce are needed. Raises MalformedError; ValueError for a nonce that is not of 32 octets.
    """
    parsed = parse_runtime_report_package(package)
    if identity_key is None or nonce is None:
        parts = {"the machine's identity key": identity_key, "the nonce": nonce}
        missing = " and ".join(name for name, part in parts.items() if part is None)
        return _as_told(parsed, None, f"not verified, not given: {missing}")
    try:
        verified = verify_runtime_report_package(package, identity_key=identity_key, expected_nonce=nonce)
    except ForgedError as error:
        return _as_told(parsed, str(error), "")
    return _as_verified(verified)


def _as_verified(package: VerifiedRuntimePackage) -> RuntimeExplanation:
    return RuntimeExplanation(
        nonce=package.nonce,
        drivers=package.drivers,
        code_integrity=package.code_integrity,
        hotpatches=package.hotpatches,
        unknown_types=package.unknown_types,
        refused=None,
        unproven="",
    )


def _as_told(package: UnverifiedRuntimePackage, refused: str | None, unproven: str) -> RuntimeExplanation:
    """What unverified reports say, for people."""
    reports = package.reports
    drivers = reports.get(ReportType.DRIVER)
    code_integrity = reports.get(ReportType.CODE_INTEGRITY)
    hotpatches = reports.get(ReportType.HOTPATCH)
    return RuntimeExplanation(
        nonce=package.nonce,
        drivers=None if drivers is None else read_driver_report(drivers),
        code_integrity=None if code_integrity is None else read_code_integrity_report(code_integrity),
        hotpatches=None if hotpatches is None else read_hotpatch_report(hotpatches),
        unknown_types=tuple(sorted(reports.keys() - set(ReportType))),
        refused=refused,
        unproven=unproven,
    )


def runtime_reports_as_json(explanation: RuntimeExplanation) -> dict[str, Any]:
    """Return the JSON object.

    One signature covers all; names are untrusted all the same, since the ordinary kernel gave them.
    """
    trust = explanation.trust.value
    drivers = explanation.drivers
    return {
        "kind": "runtime_reports",
        "trust": trust,
        "refused": explanation.refused,
        "unproven": explanation.unproven or None,
        "nonce": explanation.nonce.hex(),
        "facts": {
            "driver_list_complete": {
                "value": None if drivers is None else drivers.is_complete,
                "trust": trust,
                "source": "no driver report" if drivers is None else "the driver report's flags",
            }
        },
        "drivers": None
        if drivers is None
        else {
            "includes_boot_drivers": {"value": drivers.includes_boot_drivers, "trust": trust},
            "list": [_driver(driver, trust) for driver in drivers.drivers],
        },
        "code_integrity": _code_integrity(explanation.code_integrity, trust),
        "hotpatches": _hotpatches(explanation.hotpatches, trust),
        "unknown_types": list(explanation.unknown_types),
    }


def _driver(driver: Driver, trust: str) -> dict[str, Any]:
    return {
        "trust": trust,
        "image_digest": None if driver.image_digest is None else driver.image_digest.hex(),
        "publisher_thumbprint": (
            None if driver.publisher_thumbprint is None else driver.publisher_thumbprint.hex()
        ),
        "load_count": driver.load_count,
        "unloaded": driver.unloaded,
        "boot_driver": driver.boot_driver,
        "hotpatch": driver.hotpatch,
        "name": _untrusted(driver.untrusted_name),
        "oem_name": _untrusted(driver.untrusted_oem_name),
    }


def _code_integrity(report: CodeIntegrityReport | None, trust: str) -> dict[str, Any] | None:
    if report is None:
        return None
    return {
        "trust": trust,
        "current_generation": report.current_generation,
        "generations": [
            {
                "commit_time": generation.commit_time,
                "records": [
                    {"name": record.name, "payload": record.payload.hex()} for record in generation.records
                ],
            }
            for generation in report.generations
        ],
    }


def _hotpatches(report: HotpatchReport | None, trust: str) -> list[dict[str, Any]] | None:
    if report is None:
        return None
    return [
        {
            "trust": trust,
            "base_checksum": patch.base_checksum,
            "base_time_date_stamp": patch.base_time_date_stamp,
            "base_address": patch.base_address,
            "image_size": patch.image_size,
            "latest_sequence_number": patch.latest_sequence_number,
            "name": _untrusted(patch.untrusted_name),
        }
        for patch in report.hotpatches
    ]


def _untrusted(value: str) -> dict[str, str]:
    return {"value": value, "trust": Trust.UNTRUSTED.value}


def runtime_reports_page(explanation: RuntimeExplanation) -> Iterator[str]:
    """Yield the lines of a page for people, all of them printable."""
    yield "Runtime reports of a Windows kernel"
    yield ""
    if explanation.refused is not None:
        yield f"REFUSED: {explanation.refused}"
        yield "Below is what the reports say all the same. Believe none of it."
    elif explanation.unproven:
        yield f"NOTHING IS PROVEN: {explanation.unproven}"
    else:
        yield "VERIFIED: signed by the secure kernel whose identity key you named, for the nonce expected."
        yield "Names are what the ordinary kernel called things: go by digests."
    yield ""
    yield f"  it answers     {explanation.nonce.hex()}"
    yield from _driver_lines(explanation.drivers)
    yield from _code_integrity_lines(explanation.code_integrity)
    yield from _hotpatch_lines(explanation.hotpatches)
    if explanation.unknown_types:
        types = ", ".join(map(str, explanation.unknown_types))
        yield f"  and reports of types that are not read here: {types}"


def _driver_lines(report: DriverReport | None) -> Iterator[str]:
    if report is None:
        yield "  drivers        not reported"
        return
    complete = "the report leaves none out" if report.is_complete else "INCOMPLETE, some are left out"
    boot = "with" if report.includes_boot_drivers else "without"
    yield f"  drivers        {len(report.drivers)}, {complete}, {boot} those of the boot"
    for driver in report.drivers[:_SHOWN]:
        digest = "no digest" if driver.image_digest is None else driver.image_digest.hex()
        gone = ", unloaded" if driver.unloaded else ""
        name = printable(driver.untrusted_name, limit=60)
        yield f"    {digest}  said to be {name}, loaded {driver.load_count} times{gone}"
    if len(report.drivers) > _SHOWN:
        yield f"    and {len(report.drivers) - _SHOWN} more (--json shows them)"


def _code_integrity_lines(report: CodeIntegrityReport | None) -> Iterator[str]:
    if report is None:
        yield "  policies       not reported"
        return
    yield f"  policies       generation {report.current_generation} is in force (1 is the boot's)"
    for generation in report.generations[:_SHOWN]:
        names = ", ".join(record.name for record in generation.records[:_SHOWN])
        yield f"    committed at {generation.commit_time}: {printable(names or 'nothing', limit=600)}"
    if len(report.generations) > _SHOWN:
        yield f"    and {len(report.generations) - _SHOWN} more (--json shows them)"


def _hotpatch_lines(report: HotpatchReport | None) -> Iterator[str]:
    if report is None:
        yield "  hotpatches     not reported"
        return
    yield f"  hotpatches     {len(report.hotpatches)} images patched while they ran"
    for patch in report.hotpatches[:_SHOWN]:
        name = printable(patch.untrusted_name, limit=60)
        identity = f"checksum 0x{patch.base_checksum:08x}, time stamp 0x{patch.base_time_date_stamp:08x}"
        yield f"    {identity}, patch {patch.latest_sequence_number}, said to be {name}"
    if len(report.hotpatches) > _SHOWN:
        yield f"    and {len(report.hotpatches) - _SHOWN} more (--json shows them)"
