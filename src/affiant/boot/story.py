"""A boot told in the order in which it happened; each sentence says whether it is proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust, command_lines
from affiant.appraisal.key_names import authority_title, entry_title, signers
from affiant.boot.text import counted, short_digest
from affiant.tpm.image_load import untrusted_image_path
from affiant.tpm.signature_database import SignatureDatabase
from affiant.tpm.uki import UkiFacts
from affiant.tpm.windows.boot import WindowsBoot
from affiant.tpm.windows.details import WindowsDetails

__all__ = ["Sentence", "tell"]

_NAMES = 6


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that happened; `proven` by quoted PCRs, or said by the log alone."""

    text: str
    proven: bool


def tell(description: BootDescription) -> Iterator[Sentence]:
    """Yield the story from the firmware to the kernel."""
    yield from _firmware(description)
    yield from _secure_boot(description)
    yield from _started(description)
    if description.windows is None:
        yield from _linux(description)
    else:
        yield from _windows(description)


def _proven(description: BootDescription, *pcrs: int) -> bool:
    return description.is_proven and description.replayed.issuperset(pcrs)


def _firmware(description: BootDescription) -> Iterator[Sentence]:
    version = description.boot.firmware_version
    name = f"Firmware {version!r}" if version else "The firmware, which names no version,"
    measured = description.fact("firmware_measured")
    if measured is not None and measured.value is True:
        text = f"{name} measured itself from its first code on, and handed over without an error."
        yield Sentence(text, measured.trust is Trust.VERIFIED)
    else:
        yield Sentence(
            f"{name} did not measure itself completely (PCR 0 to 7).", _proven(description, *range(8))
        )
    for fact, text in (
        ("firmware_debugging_disabled", "The firmware ran in its debug mode."),
        ("dma_protection_enabled", "The firmware left devices free to write to memory (DMA protection off)."),
    ):
        found = description.fact(fact)
        if found is not None and found.value is False:
            yield Sentence(text, found.trust is Trust.VERIFIED)


def _secure_boot(description: BootDescription) -> Iterator[Sentence]:
    proven = _proven(description, 7)
    facts = description.boot.secure_boot
    state = description.fact("secure_boot_enabled")
    value = None if state is None else state.value
    if value is None:
        yield Sentence("Whether Secure Boot was on was not measured.", proven)
    else:
        yield Sentence(
            f"Secure Boot was {'on' if value else 'OFF: the firmware started what it found'}.", proven
        )
    if facts.allowed is not None:
        text = f"Its db trusts {_names(facts.allowed)}"
        if facts.forbidden is not None:
            text += f"; dbx revokes {facts.forbidden.count} images and certificates"
        yield Sentence(text + ".", proven)
    if facts.platform_key is not None:
        yield Sentence(f"Its owner (PK) is {_names(facts.platform_key)}.", proven)
    if facts.unexplained:
        text = (
            f"PCR 7 holds {counted(facts.unexplained, 'measurement')} that cannot be explained: who signed"
            " what may be hidden there."
        )
        yield Sentence(text, proven)


def _started(description: BootDescription) -> Iterator[Sentence]:
    for application in description.boot.applications:
        path = untrusted_image_path(application.untrusted_data)
        where = f", said to be {path}" if path else ""
        yield Sentence(
            f"Image {short_digest(application.digest)} was started{where}.", _proven(description, 4)
        )
    used = dict.fromkeys(
        f"{authority_title(authority)} (from {authority.source.name})"
        for authority in signers(description.boot.secure_boot)
    )
    if used:
        yield Sentence(f"Vouched for by {', '.join(used)}.", _proven(description, 7))


def _linux(description: BootDescription) -> Iterator[Sentence]:
    boot = description.boot
    shim, grub, uki = boot.shim, boot.grub, boot.uki
    if shim.sbat_level is not None:
        level = " ".join(shim.sbat_level.split())
        yield Sentence(f"shim ran at revocation level {level!r}.", _proven(description, 7))
    if shim.validation_disabled is not None:
        text = "switched OFF" if shim.validation_disabled else "on"
        yield Sentence(f"shim's validation was {text}.", _proven(description, 7))
    if shim.mok_measurements:
        if shim.owner_keys_absent:
            text = "shim knew no key of a machine owner."
        else:
            text = f"shim's list of owner keys is {short_digest(shim.mok_measurements[0].digest)}."
        yield Sentence(text, _proven(description, 7, 14))
    if grub.files:
        text = f"The boot loader read {counted(len(grub.files), 'file')} (PCR 9)."
        yield Sentence(text, _proven(description, 9))
    if grub.strings:
        lost = f", and {grub.unexplained} that the log does not tell" if grub.unexplained else ""
        yield Sentence(f"GRUB ran {counted(len(grub.strings), 'command')}{lost}.", _proven(description, 8))
    if uki.sections:
        names = ", ".join(section.name for section in uki.sections)
        yield Sentence(f"A unified kernel image was started, with {names}.", _proven(description, 11))
    yield from _beside_image(uki, description)
    lines = command_lines(boot)
    if lines is None:
        for line in uki.command_lines:
            yield Sentence(f"systemd-stub was given, beside the image: {line}", _proven(description, 12))
        yield Sentence("Which command line the kernel got cannot be told.", _proven(description, 8))
    for line in lines or ():
        proven = _proven(description, *((11, 12) if uki.command_lines else (8,)))
        yield Sentence(f"The kernel's command line was: {line}", proven)


def _beside_image(uki: UkiFacts, description: BootDescription) -> Iterator[Sentence]:
    """What systemd-stub took from outside the image; the names are the log's own."""
    for parts, pcr in ((uki.additions, 12), (uki.extensions, 13)):
        for part in parts[:_NAMES]:
            text = f"Beside it {short_digest(part.digest)} was taken, said to be {part.untrusted_name!r}."
            yield Sentence(text, _proven(description, pcr))
        if len(parts) > _NAMES:
            text = f"And {len(parts) - _NAMES} more into PCR {pcr} (--json shows them)."
            yield Sentence(text, _proven(description, pcr))


def _windows(description: BootDescription) -> Iterator[Sentence]:
    windows, details = description.windows, description.details
    complete = windows.complete_pcrs if isinstance(windows, WindowsBoot) else frozenset()
    if details is None:
        return
    yield Sentence(f"Windows loaded {counted(len(details.modules), 'module')} before it ran.", 13 in complete)
    for driver in details.elam_drivers:
        text = f"First of the drivers was the early-launch anti-malware {driver.file_name}."
        yield Sentence(text, 13 in complete)
    if details.boot_counter is not None:
        yield Sentence(f"It was boot number {details.boot_counter} of this TPM.", 12 in complete)
    for name, good, bad in _WINDOWS:
        fact = description.fact(name)
        if fact is not None and fact.value is not None:
            yield Sentence(good if fact.value else bad, fact.trust is Trust.VERIFIED)
    yield from _identity(details, 12 in complete)


def _identity(details: WindowsDetails, proven: bool) -> Iterator[Sentence]:
    key = details.signing_key
    if key is not None:
        text = f"The secure kernel's identity key (IDKS) is RSA-{key.bits}, {key.modulus:x}"[:90] + ".."
        yield Sentence(text, proven)


_WINDOWS = (
    ("cold_boot", "It was started, not resumed.", "It was RESUMED from hibernation."),
    (
        "vbs_enabled",
        "The secure kernel ran beside it (VBS), by a hypervisor signed as Windows'.",
        "Nothing ran beside the kernel that it cannot reach (VBS off).",
    ),
    (
        "hvci_enabled",
        "The hypervisor let the kernel run signed code only (HVCI).",
        "The kernel itself decided what code it ran (HVCI off).",
    ),
    ("test_signing_disabled", "Test-signed drivers were refused.", "Test-signed drivers were ACCEPTED."),
    (
        "kernel_debugging_disabled",
        "No debugger could attach to the kernel.",
        "The kernel was open to a DEBUGGER.",
    ),
    ("boot_debugging_disabled", "Nor to the loader.", "The loader was open to a DEBUGGER."),
    ("drtm_launched", "A dynamic launch took the firmware out of the chain.", "There was no dynamic launch."),
)


def _names(database: SignatureDatabase) -> str:
    names = list(dict.fromkeys(entry_title(entry) for entry in database.entries()))
    if not names:
        return "nobody"
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
