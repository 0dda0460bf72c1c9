"""What systemd-boot and systemd-stub measured: unified kernel images and what was added to them.

systemd-stub extends PCR 11 with each section of the unified kernel image (its name in ASCII with a
final zero, then its content), PCR 12 with command lines, credentials and add-ons, PCR 13 with system
extensions (systemd's TPM2 PCR measurements; UAPI.5 Unified Kernel Image). The log holds the names and
the command lines, not the contents. In user space systemd goes on extending PCR 11
(`affiant.tpm.cel`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from affiant.tpm.binding import Binding, BoundEvent
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements

__all__ = ["MeasuredPart", "Section", "UkiFacts", "read_uki"]

_IMAGE_PCR: Final = 11
_CONFIGURATION_PCR: Final = 12
_EXTENSION_PCR: Final = 13
_TAG: Final = struct.Struct("<II")  # EV_EVENT_TAG: identifier and size
_MAXIMUM_NAME: Final = 512  # octets of a description that is shown
_MAXIMUM_COMMAND_LINE: Final = 1 << 16

# Names of PE sections that systemd-stub measures (UAPI.5, "UKI PE sections").
_SECTIONS: Final = frozenset(
    {b".linux", b".osrel", b".cmdline", b".initrd", b".ucode", b".splash", b".dtb", b".dtbauto", b".hwids"}
    | {b".efifw", b".uname", b".sbat", b".pcrpkey", b".profile"}
)


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the image: its name and the digest of its content, both proven."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class MeasuredPart:
    """Something that was measured whole: only the digest is proven.

    `untrusted_tag` is the identifier of a tagged event, None for others; `untrusted_name` what the log
    calls it.
    """

    digest: bytes
    untrusted_tag: int | None
    untrusted_name: str


@dataclass(frozen=True, slots=True)
class UkiFacts:
    """What PCR 11, 12 and 13 prove of a unified kernel image; empty where they were not replayed.

    `sections`: name and content, in measured order. `after_sections`: covered strings in PCR 11 after
    them, such as the boot phases that systemd measures. `unexplained`: measurements of PCR 11 that are
    neither; any number but zero may hide a section. `command_lines`: strings in PCR 12 that were
    passed beside the image (a command line inside it is the section `.cmdline`). `additions`: everything
    else in PCR 12 (credentials, device trees, initial RAM disks), `extensions`: everything in PCR 13.
    """

    sections: tuple[Section, ...]
    after_sections: tuple[str, ...]
    unexplained: int
    command_lines: tuple[str, ...]
    additions: tuple[MeasuredPart, ...]
    extensions: tuple[MeasuredPart, ...]

    def section(self, name: str) -> bytes | None:
        """The digest of the only section with that name, None when there is none or more than one."""
        digests = [section.digest for section in self.sections if section.name == name]
        return digests[0] if len(digests) == 1 else None


def read_uki(measurements: Measurements) -> UkiFacts:
    """Read what systemd's boot loader and stub measured.

    When it returns,

    - a section is a name that a digest of PCR 11 covers and the digest that follows it there, and
      nothing but sections came before it;
    - every command line is text that a digest of PCR 12 covers;
    - each measurement of PCR 12 and 13 that is not a separator is told, in its order.
    """
    sections: list[Section] = []
    strings: list[str] = []
    unexplained = 0
    events = iter([bound for bound in measurements.of(_IMAGE_PCR) if not bound.is_separator])
    for bound in events:
        # The stub measures all sections before anybody else runs: what comes later only looks like one.
        name = None if strings or unexplained else _section_name(bound)
        if name is not None and (content := next(events, None)) is not None:
            sections.append(Section(name, content.digest))
        elif (text := _printable(bound)) is not None:
            strings.append(text)
        else:
            unexplained += 1
    command_lines: list[str] = []
    additions: list[MeasuredPart] = []
    for bound in measurements.of(_CONFIGURATION_PCR):
        line = _command_line(bound)
        if line is not None:
            command_lines.append(line)
        elif not bound.is_separator:
            additions.append(_part(bound))
    return UkiFacts(
        tuple(sections),
        tuple(strings),
        unexplained,
        tuple(command_lines),
        tuple(additions),
        tuple(_part(bound) for bound in measurements.of(_EXTENSION_PCR) if not bound.is_separator),
    )


def _section_name(bound: BoundEvent) -> str | None:
    """The section whose name was measured here.

    Decided by what was hashed. A log that holds the name in another way (as ASCII) says the same.
    """
    if bound.covered is None or bound.binding not in (Binding.NAME, Binding.DATA):
        return None
    name = bound.covered.removesuffix(b"\0")
    return name.decode("ascii") if name in _SECTIONS else None


def _printable(bound: BoundEvent) -> str | None:
    if not bound.covered or not bound.covered.isascii():
        return None
    text = bound.covered.decode("ascii")
    return text if text.isprintable() else None


def _command_line(bound: BoundEvent) -> str | None:
    """The text of a command line: UTF-16, and a digest that covers it."""
    covered = bound.covered
    if not covered or len(covered) % 2 or len(covered) > _MAXIMUM_COMMAND_LINE or bound.is_separator:
        return None
    if bound.event.untrusted_type == EventType.EVENT_TAG:
        return None
    try:
        return covered.decode("utf-16-le").removesuffix("\0")
    except UnicodeDecodeError:
        return None


def _part(bound: BoundEvent) -> MeasuredPart:
    data, tag = bound.event.untrusted_data, None
    if bound.event.untrusted_type == EventType.EVENT_TAG and len(data) >= _TAG.size:
        tag, _ = _TAG.unpack_from(data)
        data = data[_TAG.size :]
    data = data[:_MAXIMUM_NAME]
    # systemd describes in UTF-16, the kernel's EFI stub in ASCII.
    wide = len(data) % 2 == 0 and not any(data[1::2])
    text = data.decode("utf-16-le" if wide else "utf-8", "backslashreplace")
    return MeasuredPart(bound.digest, tag, text.rstrip("\0"))
