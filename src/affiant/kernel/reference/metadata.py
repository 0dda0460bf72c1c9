"""What a reference image says about itself: one small JSON part, read strictly."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from affiant.kernel.reference.package import PackageName
from affiant.kernel.reference.sites import LAYOUTS, PatchTable, SiteClass
from affiant.model.errors import MalformedError

__all__ = ["Metadata", "decode_metadata", "encode_metadata"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BUILD_ID = re.compile(r"([0-9a-f]{2}){0,64}")
_MAX_LENGTH = 1 << 20
_MAX_TEXT = 512
_MAX_ENTRIES = 1 << 21


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a reference says about itself. Digests are SHA-256 in hex; `None` where there is none.

    `kernel_file_digest`: of the kernel file, which GRUB measures into PCR 9. `authenticode_digest`: of
    the same file as a PE image, which firmware measures into PCR 4. `alignment`: what a KASLR slide is
    a multiple of. `unknown_sections`: parts of the kernel that no rule of this builder knows, which may
    list patch sites that are not among the reference's. `locks_down`, `verifies_modules`: see
    `affiant.kernel.reference.kernel_config`; `None` where the package has no configuration.
    """

    release: str
    banner: str
    kernel_file_digest: str
    authenticode_digest: str | None
    build_id: str
    alignment: int
    package: PackageName | None
    tables: tuple[PatchTable, ...]
    unknown_sections: tuple[str, ...]
    locks_down: bool | None = None
    verifies_modules: bool | None = None


def encode_metadata(metadata: Metadata) -> bytes:
    """Return the metadata as JSON with sorted keys."""
    return json.dumps(asdict(metadata), sort_keys=True, separators=(",", ":")).encode("ascii")


def decode_metadata(data: bytes | memoryview) -> Metadata:
    """Read what `encode_metadata` wrote.

    Guaranteed: every field has its type and form: digests are 64 hex digits, texts printable and at most
    512 characters, the alignment a power of two from 4 KiB to 16 MiB, each table of a class and layout
    that this version knows. Raises `MalformedError` for anything else, another spelling included.
    """
    if len(data) > _MAX_LENGTH:
        raise MalformedError("the reference image's metadata is too long")
    try:
        raw = json.loads(bytes(data))
        package = raw.pop("package")
        metadata = Metadata(
            package=None if package is None else PackageName(**package),
            tables=tuple(
                PatchTable(**{**table, "kind": SiteClass(table["kind"])}) for table in raw.pop("tables")
            ),
            unknown_sections=tuple(raw.pop("unknown_sections")),
            **raw,
        )
        canonical = encode_metadata(metadata) == bytes(data)
        valid = _valid(metadata) and all(_valid_table(table) for table in metadata.tables)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedError(f"the reference image's metadata is broken: {error}") from error
    if not canonical or not valid:
        raise MalformedError("the reference image's metadata is broken")
    return metadata


def _valid(metadata: Metadata) -> bool:
    digests = [metadata.kernel_file_digest]
    if metadata.authenticode_digest is not None:
        digests.append(metadata.authenticode_digest)
    alignment = metadata.alignment
    return (
        all(_is_text(text) for text in (metadata.release, metadata.banner, *metadata.unknown_sections))
        and all(_DIGEST.fullmatch(digest) for digest in digests)
        and _BUILD_ID.fullmatch(metadata.build_id) is not None
        and type(alignment) is int
        and 1 << 12 <= alignment <= 1 << 24
        and alignment & (alignment - 1) == 0
        and (metadata.package is None or metadata.package.is_valid())
        and all(word in (None, True, False) for word in (metadata.locks_down, metadata.verifies_modules))
        and not any(type(word) is int for word in (metadata.locks_down, metadata.verifies_modules))
    )


def _valid_table(table: PatchTable) -> bool:
    return (
        _is_text(table.name)
        and table.layout in ("", *LAYOUTS)
        and type(table.kind) is SiteClass
        and type(table.address) is int
        and 0 <= table.address < 1 << 64
        and type(table.count) is int
        and 0 <= table.count <= _MAX_ENTRIES
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isascii() and value.isprintable()
