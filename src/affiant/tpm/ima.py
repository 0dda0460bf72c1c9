"""Linux IMA's measurement list: which files a running kernel measured, as PCR 10 proves it.

The binary list (`/sys/kernel/security/integrity/ima/binary_runtime_measurements`) is a sequence of
entries: PCR, template digest, template name, template data (Documentation/security/IMA-templates.rst
and security/integrity/ima/ima_fs.c of Linux). Its integers have the byte order of the machine; here
they are little-endian, IMA's canonical form.

What is measured is the template *data*: field after field, each with its length. The template's
name is not, so it may lie about what a third field is; digest and path are the first two fields of
every template that is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import PCR_COUNT
from affiant.tpm.ima_template import (
    LEGACY_TEMPLATE,
    TEMPLATES,
    AcceptedFiles,
    ImaMeasurement,
    legacy_data,
    legacy_end,
    read_measurement,
)
from affiant.tpm.quote import VerifiedQuote

__all__ = [
    "IMA_PCR",
    "ImaList",
    "VerifiedImaList",
    "expected_boot_aggregate",
    "parse_ima_list",
    "replay_ima_list",
    "unproven_prefix",
]

IMA_PCR: Final = 10
"""The PCR that IMA extends unless a kernel is configured otherwise."""

_MAXIMUM_LIST: Final = 1 << 26
_MAXIMUM_TEMPLATE_NAME: Final = 255
_STRIDE: Final = 128  # few enough to stay in the processor's cache
_U32: Final = struct.Struct("<I")
_BOOT_AGGREGATE: Final = "boot_aggregate"


@dataclass(frozen=True, slots=True)
class ImaList:
    """Unverified: a decoded list, in columns, since lists have 100,000 entries and more.

    Entry number n is `pcrs[n]`, `digests[n]` (its template digest, of `algorithm`), `templates[n]` and
    `data[n]` (its template data).
    """

    pcrs: tuple[int, ...]
    digests: tuple[bytes, ...]
    templates: tuple[bytes, ...]
    data: tuple[bytes, ...]
    algorithm: HashAlgorithm


@dataclass(frozen=True, slots=True)
class VerifiedImaList:
    """The measurements that a quoted PCR contains; made by `replay_ima_list` alone.

    `count` entries of the list's beginning are proven; places are counted from 0 over the whole list.
    `extended_with` is the hash that proves their data: the bank's, or SHA-1 on kernels before 5.8,
    which is weak. `violations` are the places of entries in which the kernel says that it could not
    know what was read (a file was open for writing): nothing else about them is proven. `unread` are
    the places of entries that were measured and whose template is unknown here: any may hide a file.
    `not_yet_quoted` counts the entries after the proven ones: measured later, or invented.
    """

    bank: HashAlgorithm
    pcr: int
    extended_with: HashAlgorithm
    count: int
    violations: frozenset[int]
    unread: frozenset[int]
    not_yet_quoted: int
    _list: ImaList = field(repr=False)
    _prefix: int = field(repr=False)

    def measurements(self) -> Iterator[ImaMeasurement]:
        """Each measurement in order, without violations and those of unknown templates.

        Raises MalformedError for one that is not as its template says.
        """
        for place in range(self._prefix):
            if self._is_proven(place):
                yield self._measurement(place)

    def unaccepted(self, accepted: AcceptedFiles) -> tuple[ImaMeasurement, ...]:
        """The measurements that are not among the accepted, in order; violations and unread are apart."""
        data, known = self._list.data[: self._prefix], accepted.template_digests
        strange = [place for place, one in enumerate(data) if one not in known]
        measurements = (self._measurement(place) for place in strange if self._is_proven(place))
        return tuple(
            one for one in measurements if (one.algorithm, one.digest, one.path) not in accepted.files
        )

    def _is_proven(self, place: int) -> bool:
        mine = self._list.pcrs[place] == self.pcr
        return mine and place not in self.violations and place not in self.unread

    def _measurement(self, place: int) -> ImaMeasurement:
        return read_measurement(place, self._list.templates[place], self._list.data[place])

    def violation_names(self) -> tuple[str, ...]:
        """What the list says about the violations: unproven, since a violation covers no data."""
        return tuple(
            _untrusted_name(self._list.templates[place], self._list.data[place])
            for place in sorted(self.violations)
        )

    def boot_aggregates(self) -> tuple[tuple[str, bytes], ...]:
        """Algorithm and digest of each boot aggregate; kexec adds one to the list that it carries over."""
        return tuple(
            (measurement.algorithm, measurement.digest)
            for measurement in self.measurements()
            if measurement.path == _BOOT_AGGREGATE
        )


def parse_ima_list(octets: bytes, *, algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> ImaList:
    """Read a whole binary list; nothing about it is verified.

    `algorithm` is that of the template digests: SHA-1, or the one in the name of the newer files
    (`binary_runtime_measurements_sha256`).

    Raises MalformedError: over 64 MiB, an entry that ends early, a template's name over 255 octets, a
    PCR that does not exist.
    """
    size = len(octets)
    if size > _MAXIMUM_LIST:
        raise MalformedError(f"IMA list of {size} octets is longer than {_MAXIMUM_LIST}")
    # Four flat lists: tuples for each entry would keep the garbage collector busy.
    pcrs: list[int] = []
    digests: list[bytes] = []
    templates: list[bytes] = []
    entries: list[bytes] = []
    add_pcr, add_digest, add_template, add = pcrs.append, digests.append, templates.append, entries.append
    offset, before_name = 0, _U32.size + algorithm.digest_size
    while offset < size:
        # A run of entries of one template: their heads are read at once, and the name in each is checked.
        template = _template_at(octets, offset + before_name, len(entries))
        name, is_legacy = _U32.pack(len(template)) + template, template == LEGACY_TEMPLATE
        read, head_size = _head(algorithm, len(name))
        try:
            while offset < size:
                pcr, digest, its_name, data_size = read(octets, offset)
                if its_name != name:
                    break
                start = offset + head_size
                if is_legacy:
                    start -= _U32.size
                    offset = legacy_end(octets, start)
                else:
                    offset = start + data_size
                add_pcr(pcr)
                add_digest(digest)
                add_template(template)
                add(octets[start:offset])
        except struct.error:
            # Fewer octets are left than this template's head has: an entry of a shorter name may fit.
            if _template_at(octets, offset + before_name, len(entries)) == template:
                raise _ends_early(len(entries)) from None
    if offset > size:
        raise _ends_early(len(entries) - 1)
    if pcrs and max(pcrs) >= PCR_COUNT:
        place = next(place for place, pcr in enumerate(pcrs) if pcr >= PCR_COUNT)
        raise MalformedError(f"IMA list: entry {place} is for PCR {pcrs[place]}")
    return ImaList(tuple(pcrs), tuple(digests), tuple(templates), tuple(entries), algorithm)


def replay_ima_list(
    measured: ImaList, quote: VerifiedQuote, *, pcr: int = IMA_PCR, accepted: AcceptedFiles | None = None
) -> VerifiedImaList:
    """Replay a list onto the quoted value of `pcr`.

    The list grows while the quote is made, so the quoted value may be that of a prefix. `accepted`
    changes nothing of the result: it spares the hashes that it holds already.

    When it returns,

    - the quote's signed selection has `pcr`;
    - extending zeros with what each entry of the prefix measures gives the quoted value;
    - the returned entries are those of the prefix for `pcr`, none left out, added, changed or reordered;
    - an entry is a violation exactly if the kernel extended ones for it: a measurement whose data was
      changed is none, and the replay fails.

    An empty prefix proves that IMA measured nothing. Raises ForgedError when no prefix leads there.
    """
    quoted = quote.pcrs.get(pcr)
    if quoted is None:
        raise ForgedError(f"IMA list: the quote's signed selection lacks PCR {pcr}")
    if accepted is not None and accepted.bank is not quote.bank:
        raise ValueError("the accepted files are hashed for another bank")
    known = accepted.template_digests if accepted is not None else _NOTHING
    violations = _violations(measured)
    found = _reaching(measured, violations, quote.bank, pcr, quoted, known)
    if found is None:
        raise ForgedError(f"IMA list: no part of it replays to the quoted value of PCR {pcr}")
    extended_with, prefix = found
    return _verified(measured, violations, quote.bank, pcr, extended_with, prefix)


def unproven_prefix(
    measured: ImaList, value: bytes, *, bank: HashAlgorithm, pcr: int = IMA_PCR
) -> int | None:
    """How many entries of the list lead to a value of `pcr` that nobody signed, None if no number does.

    A number shows a list that was not mixed up with another, and proves nothing.
    """
    found = _reaching(measured, _violations(measured), bank, pcr, value, _NOTHING)
    return None if found is None else found[1]


def expected_boot_aggregate(
    pcrs: Mapping[int, bytes], *, bank: HashAlgorithm, bank_has_grub: bool = True
) -> bytes:
    """The boot aggregate that IMA measures first if Linux found the firmware's PCRs (of `bank`) to be `pcrs`.

    Linux hashes PCR 0 to 7, and since 5.8 also 8 and 9 unless the bank is SHA-1; `bank_has_grub` is
    False for older kernels. ValueError when one of these PCRs is missing.
    """
    last = 10 if bank_has_grub and bank is not HashAlgorithm.SHA1 else 8
    if missing := sorted(set(range(last)) - pcrs.keys()):
        raise ValueError(f"there is no value of PCR {missing[0]}")
    return bank.digest(b"".join(pcrs[index] for index in range(last)))


_NOTHING: Final[Mapping[bytes, bytes]] = MappingProxyType({})


def _reaching(
    measured: ImaList,
    violations: Sequence[int],
    bank: HashAlgorithm,
    pcr: int,
    value: bytes,
    known: Mapping[bytes, bytes],
) -> tuple[HashAlgorithm, int] | None:
    """With which hash of the data, and after how many entries, the list leads to `value`."""
    hasher = bank.constructor
    extends = _extends(measured, violations, bank, known, lambda data: hasher(data).digest())
    prefix = _proven_prefix(measured, extends, bank, pcr, value)
    if prefix is not None:
        return bank, prefix
    if bank is not HashAlgorithm.SHA1 and measured.algorithm is HashAlgorithm.SHA1:
        # Quirk ima-sha1-padded: before Linux 5.8 each bank got the SHA-1 template digest, padded. Then that
        # is what was measured, so it is made again from the data that it must cover.
        sha1 = HashAlgorithm.SHA1
        padding = bank.digest_size
        extends = _extends(
            measured, violations, bank, _NOTHING, lambda data: sha1.digest(data).ljust(padding, b"\0")
        )
        prefix = _proven_prefix(measured, extends, bank, pcr, value)
        if prefix is not None:
            return sha1, prefix
    return None


def _extends(
    measured: ImaList,
    violations: Sequence[int],
    bank: HashAlgorithm,
    known: Mapping[bytes, bytes],
    digest: Callable[[bytes], bytes],
) -> list[bytes]:
    """What each entry extends its PCR with: a digest of its data, or ones for a violation."""
    whole: Sequence[bytes] = measured.data
    if LEGACY_TEMPLATE in measured.templates:
        whole = [
            legacy_data(data) if template == LEGACY_TEMPLATE else data
            for template, data in zip(measured.templates, measured.data, strict=True)
        ]
    extends = [known.get(data) or digest(data) for data in whole] if known else list(map(digest, whole))
    ones = b"\xff" * bank.digest_size
    for place in violations:
        extends[place] = ones
    return extends


def _violations(measured: ImaList) -> list[int]:
    zeros = bytes(measured.algorithm.digest_size)
    if zeros not in measured.digests:
        return []
    return [place for place, digest in enumerate(measured.digests) if digest == zeros]


def _proven_prefix(
    measured: ImaList, extends: Sequence[bytes], bank: HashAlgorithm, pcr: int, quoted: bytes
) -> int | None:
    """How many entries lead to the quoted value, None if no number does."""
    hasher, state = bank.constructor, bytes(bank.digest_size)
    if state == quoted:
        return 0
    places: Sequence[int] = range(len(extends))
    if measured.pcrs.count(pcr) != len(extends):
        places = [place for place, its_pcr in enumerate(measured.pcrs) if its_pcr == pcr]
        extends = [extends[place] for place in places]
    for start in range(0, len(extends), _STRIDE):
        # Values on the way are looked through afterwards: comparing at each step would cost a tenth more.
        states = [state := hasher(state + extended).digest() for extended in extends[start : start + _STRIDE]]
        if quoted in states:
            return places[start + states.index(quoted)] + 1
    return None


def _verified(
    measured: ImaList,
    all_violations: Sequence[int],
    bank: HashAlgorithm,
    pcr: int,
    extended_with: HashAlgorithm,
    prefix: int,
) -> VerifiedImaList:
    mine, templates = measured.pcrs[:prefix], measured.templates[:prefix]
    violations = frozenset(place for place in all_violations if place < prefix and mine[place] == pcr)
    unread: frozenset[int] = frozenset()
    if not set(templates) <= TEMPLATES.keys():
        unread = frozenset(
            place
            for place, template in enumerate(templates)
            if template not in TEMPLATES and mine[place] == pcr and place not in violations
        )
    count, later = mine.count(pcr), len(measured.data) - prefix
    return VerifiedImaList(bank, pcr, extended_with, count, violations, unread, later, measured, prefix)


def _untrusted_name(template: bytes, data: bytes) -> str:
    try:
        return read_measurement(0, template, data).path
    except MalformedError:
        return ""


@lru_cache(maxsize=512)
def _head(algorithm: HashAlgorithm, name_size: int) -> tuple[Callable[[bytes, int], tuple[Any, ...]], int]:
    """Reads an entry's head: PCR, digest, name with its size, size of what follows; and its octets."""
    head = struct.Struct(f"<I{algorithm.digest_size}s{name_size}sI")
    return head.unpack_from, head.size


def _template_at(octets: bytes, offset: int, index: int) -> bytes:
    """The name of the template of entry number `index`, whose size is at `offset`."""
    start = offset + _U32.size
    if start > len(octets):
        raise _ends_early(index)
    (name_size,) = _U32.unpack_from(octets, offset)
    if name_size > _MAXIMUM_TEMPLATE_NAME:
        raise MalformedError(f"IMA list: entry {index} has a name of {name_size} octets")
    if start + name_size > len(octets):
        raise _ends_early(index)
    return octets[start : start + name_size]


def _ends_early(index: int) -> MalformedError:
    return MalformedError(f"IMA list: ends inside entry {index}")
