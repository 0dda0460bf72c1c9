"""What one entry of an IMA list measured: digest and path, out of the template data.

Template data is field after field, each with its length (Documentation/security/IMA-templates.rst of
Linux). It is measured; the template's name is not, so it may lie about what a third field is. Digest and
path are the first two fields of every template that is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm

__all__ = [
    "LEGACY_TEMPLATE",
    "TEMPLATES",
    "AcceptedFiles",
    "ImaMeasurement",
    "accept_files",
    "legacy_data",
    "legacy_end",
    "read_measurement",
]

LEGACY_TEMPLATE: Final = b"ima"
"""The template whose entries have no length of their own."""
_LEGACY_DIGEST: Final = 20
_LEGACY_NAME: Final = 256  # IMA_EVENT_NAME_LEN_MAX and a zero: the hash covers the padding
_U32: Final = struct.Struct("<I")
TEMPLATES: Final = {
    b"ima": "",
    b"ima-ng": "",
    b"ima-ngv2": "",
    b"ima-sig": "signature",
    b"ima-sigv2": "signature",
    b"ima-modsig": "signature",
    b"evm-sig": "signature",
    b"ima-buf": "buffer",
    b"d-ng|n-ng": "",
    b"d-ng|n-ng|sig": "signature",
    b"d-ng|n-ng|buf": "buffer",
}
"""Templates with a digest and a path at their beginning, and what their third field is said to be."""


class ImaMeasurement(NamedTuple):
    """One file, buffer or key that PCR 10 proves to have been measured.

    `place` is its place in the list, counted from 0. `algorithm` and `digest` are of the content, `path`
    is what the kernel called it (`boot_aggregate`, a path, the name of a buffer). `third` is the field
    after them, None where the template has none: its octets are proven, and not that it is the
    `signature` or `buffer` that the template's name calls it (`untrusted_role`). A buffer is one
    where it hashes to `digest`.
    """

    place: int
    algorithm: str
    digest: bytes
    path: str
    third: bytes | None
    untrusted_role: str


@dataclass(frozen=True, slots=True)
class AcceptedFiles:
    """Files that somebody expects to be measured; made by `accept_files` alone.

    `files` holds (algorithm, digest, path). `template_digests` maps what a kernel measures for such a file
    under `ima-ng` to its digest in `bank`: hashed once here instead of in every list.
    """

    bank: HashAlgorithm
    files: frozenset[tuple[str, bytes, str]]
    template_digests: Mapping[bytes, bytes] = field(repr=False)


def accept_files(
    files: Iterable[tuple[str, bytes, str]], *, bank: HashAlgorithm = HashAlgorithm.SHA256
) -> AcceptedFiles:
    """Make a set of expected files out of (algorithm such as `sha256`, digest, path)."""
    known = frozenset(files)
    digests = {}
    for algorithm, digest, path in known:
        fields = (algorithm.encode() + b":\0" + digest, path.encode("utf-8", "surrogateescape") + b"\0")
        data = b"".join(_U32.pack(len(one)) + one for one in fields)
        digests[data] = bank.digest(data)
    return AcceptedFiles(bank, known, digests)


def read_measurement(place: int, template: bytes, data: bytes) -> ImaMeasurement:
    """Read the fields of an entry whose template is one of `TEMPLATES`.

    Raises MalformedError when the data is not as the template says.
    """
    if template == LEGACY_TEMPLATE:
        name = data[_LEGACY_DIGEST + 4 :]
        return ImaMeasurement(place, "sha1", data[:_LEGACY_DIGEST], _text(name.rstrip(b"\0")), None, "")
    try:
        (size,) = _U32.unpack_from(data)
        end = 4 + size
        algorithm, _, digest = data[4:end].partition(b"\0")
        (size,) = _U32.unpack_from(data, end)
        start = end + 4
        end = start + size
        if end > len(data) or not algorithm:
            raise _malformed(place)
        path = data[start:end]
        third = None
        if end < len(data):
            (size,) = _U32.unpack_from(data, end)
            third = data[end + 4 : end + 4 + size]
            if len(third) != size:
                raise _malformed(place)
    except struct.error:
        raise _malformed(place) from None
    return ImaMeasurement(
        place, _algorithm_name(algorithm), digest, _text(path), third, TEMPLATES.get(template, "")
    )


def _algorithm_name(prefix: bytes) -> str:
    """`sha256` out of `sha256:`, or out of `ima:sha256:` and `verity:sha256:` of the newer field.

    A digest of fs-verity is of a tree and not of the content, so that prefix stays.
    """
    name = prefix.removesuffix(b":").removeprefix(b"ima:")
    return name.decode("ascii", "replace")


def _text(name: bytes) -> str:
    return name.removesuffix(b"\0").decode("utf-8", "surrogateescape")


def legacy_end(octets: bytes, start: int) -> int:
    """Where the data of an entry of template `ima` ends, which has no length of its own."""
    (name_size,) = _U32.unpack_from(octets, start + _LEGACY_DIGEST)
    if name_size >= _LEGACY_NAME:
        raise MalformedError(f"IMA list: a name of {name_size} octets")
    end: int = start + _LEGACY_DIGEST + 4 + name_size
    return end


def legacy_data(data: bytes) -> bytes:
    """What the template digest of template `ima` covers: digest, and name padded with zeros."""
    return data[:_LEGACY_DIGEST] + data[_LEGACY_DIGEST + 4 :].ljust(_LEGACY_NAME, b"\0")


def _malformed(place: int) -> MalformedError:
    return MalformedError(f"IMA list: entry {place} is not as its template says")
