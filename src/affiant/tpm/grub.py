"""What GRUB measured: the files it read, the commands it ran, the kernel command line.

GRUB extends PCR 9 with every file that it opens (the digest of its content; the log has the path),
and PCR 8 with every command and kernel command line (the string; the log puts `grub_cmd: ` or
`kernel_cmdline: ` before it). Paths and those prefixes are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.tpm.binding import BoundEvent
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import Measurements

__all__ = ["GrubFacts", "MeasuredFile", "read_grub"]

_COMMAND_PCR: Final = 8
_FILE_PCR: Final = 9
# Commands that put something in memory to be booted: Linux, and whatever may stand in its place.
_LOADERS: Final = frozenset(
    {"linux", "linuxefi", "linux16", "chainloader", "multiboot", "multiboot2", "kfreebsd", "knetbsd"}
    | {"kopenbsd", "xnu_kernel", "xnu_kernel64", "plan9", "ntldr", "freedos", "truecrypt", "pxechainloader"}
)
_PASS_ON: Final = frozenset({"!", "time"})  # words before a command that run it all the same
_TAG_HEADER: Final = 8  # EV_EVENT_TAG: identifier and size, both of 32 bits
_MAXIMUM_PATH: Final = 512
_NV_INDEX_MADE: Final = b"nvpcr-init:"  # systemd's TPM2 PCR measurements, "PCR 9, NvPCR Initializations"


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """The digest of a file's content (plain hash of the octets), and where the log says it was.

    Linux' EFI stub adds its initrd and load options to the same PCR, with a tag instead of a path.
    """

    digest: bytes
    untrusted_path: str


@dataclass(frozen=True, slots=True)
class GrubFacts:
    """What PCR 8 and PCR 9 prove.

    `strings`: everything measured into PCR 8, in order, commands and command lines alike.
    `load_commands`: those that load a kernel. `command_lines`: the string after each of these,
    and every string that is the arguments of one: a superset of the command lines of kernels
    that were really loaded. `unexplained`: measurements of PCR 8 whose string the log lacks; any
    number but zero may hide a command.
    `files`: the files measured into PCR 9, in order; among them is every kernel that GRUB loaded.
    """

    strings: tuple[str, ...]
    load_commands: tuple[str, ...]
    command_lines: tuple[str, ...]
    unexplained: int
    files: tuple[MeasuredFile, ...]

    @property
    def command_line(self) -> str | None:
        """The kernel's command line, when nothing else could have been it; None otherwise.

        That takes one load command, nothing unexplained, and one candidate. It begins with the
        kernel's path, as GRUB passes it on (BOOT_IMAGE).
        """
        if self.unexplained or len(self.load_commands) != 1 or len(self.command_lines) != 1:
            return None
        return self.command_lines[0]


def read_grub(measurements: Measurements) -> GrubFacts:
    """Read GRUB's facts out of PCR 8 and PCR 9.

    When it returns,

    - each of `strings` is covered by a digest of PCR 8, and none that is covered is left out;
    - a command line is one by its place or by its content, not because the log says so;
    - each digest of `files` is in PCR 9, in that order; `untrusted_path` is the log's word. What systemd
      measures there later is no file.
    """
    strings: list[str] = []
    unexplained = 0
    for bound in measurements.of(_COMMAND_PCR):
        if bound.is_separator:
            continue
        text = _text(bound)
        if text is None:
            unexplained += 1
        else:
            strings.append(text)
    loads = {
        position: words
        for position, text in enumerate(strings)
        if (words := _load_arguments(text)) is not None
    }
    return GrubFacts(
        strings=tuple(strings),
        load_commands=tuple(strings[position] for position in loads),
        command_lines=_command_lines(strings, loads),
        unexplained=unexplained,
        files=tuple(
            MeasuredFile(bound.digest, _path(bound))
            for bound in measurements.of(_FILE_PCR)
            if not bound.is_separator and not _is_of_systemd(bound)
        ),
    )


def _is_of_systemd(bound: BoundEvent) -> bool:
    """Whether systemd measured that it made an NV index that acts as a PCR: text, which no kernel is."""
    return bound.covered is not None and bound.covered.startswith(_NV_INDEX_MADE)


def _text(bound: BoundEvent) -> str | None:
    if bound.covered is None:
        return None
    return bound.covered.removesuffix(b"\0").decode("utf-8", "backslashreplace")


def _load_arguments(text: str) -> list[str] | None:
    """The arguments of a load command, None for any other string."""
    words = text.split()
    while words and words[0] in _PASS_ON:
        del words[0]
    return words[1:] if words and words[0] in _LOADERS else None


def _command_lines(strings: list[str], loads: dict[int, list[str]]) -> tuple[str, ...]:
    """What may have been the command line of a loaded kernel.

    A load that succeeds is followed, in PCR 8, by the command line it made of its arguments (with
    quotes around words that hold spaces). One that fails is followed by any other command, so the
    string after a load is taken only as a candidate; and since GRUB measures unknown commands too,
    a harmless line planted as one must not pass for the real one: it comes after no load.
    """
    found: dict[str, None] = {}
    for position, arguments in loads.items():
        following = strings[position + 1] if position + 1 < len(strings) else ""
        same = _unquote(following).split() == _unquote(" ".join(arguments)).split()
        found[following if same else " ".join(arguments)] = None
    return tuple(found)


def _unquote(text: str) -> str:
    return text.replace('"', "").replace("\\", "").replace("'", "")


def _path(bound: BoundEvent) -> str:
    data = bound.event.untrusted_data
    if bound.event.untrusted_type == EventType.EVENT_TAG:
        data = data[_TAG_HEADER:]
    return data[:_MAXIMUM_PATH].removesuffix(b"\0").decode("utf-8", "backslashreplace")
