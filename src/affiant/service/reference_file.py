"""Reference images as the service registers them: digests and properties, never their content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affiant.appraisal.reference_value import ReferenceValue
from affiant.model.errors import MalformedError, SetupError

if TYPE_CHECKING:
    from affiant.kernel.reference.unified_image import UnifiedFile

__all__ = ["read_image_file", "read_reference_file"]

_LARGEST_JSON = 1 << 20
_LONGEST_RELEASE = 200


def read_reference_file(
    path: Path, *, locks_down: bool | None, verifies_modules: bool | None
) -> ReferenceValue:
    """Return the reference value of a reference image, or of what `affiant reference show --json` says.

    `locks_down` and `verifies_modules` are the operator's word; None leaves it to the file, and what
    neither tells counts as no. Reading an image itself takes the `monitor` extra; the JSON does not.
    Raises MalformedError or SetupError.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LARGEST_JSON + 1)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror or error}") from error
    fields = _from_json(start) if start.lstrip()[:1] == b"{" else _from_image(path)
    try:
        kernel, reference = bytes.fromhex(fields["kernel_file_digest"]), bytes.fromhex(fields["digest"])
        authenticode = fields.get("authenticode_digest")
        release = fields["release"]
        value = ReferenceValue(
            kernel=kernel,
            authenticode=None if authenticode is None else bytes.fromhex(authenticode),
            reference=reference,
            release=release,
            locks_down=_told(locks_down, fields.get("locks_down")),
            verifies_modules=_told(verifies_modules, fields.get("verifies_modules")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(f"{path}: no reference image's description: {error!r}") from error
    digests = [kernel, reference, *([value.authenticode] if value.authenticode is not None else [])]
    if any(len(digest) != 32 for digest in digests) or not isinstance(release, str):
        raise MalformedError(f"{path}: no reference image's description: a digest or the release is wrong")
    if not 1 <= len(release) <= _LONGEST_RELEASE or not release.isprintable():
        raise MalformedError(f"{path}: the kernel's release is no text of 1 to {_LONGEST_RELEASE} characters")
    return value


def read_image_file(path: Path) -> UnifiedFile:
    """Return what a unified kernel image holds, or an add-on of one, as it is booted.

    It takes the `monitor` extra. Raises MalformedError, SetupError or UnavailableError.
    """
    from affiant.kernel.reference.package import read_bounded
    from affiant.kernel.reference.unified_image import read_unified_file

    try:
        return read_unified_file(read_bounded(path))
    except MalformedError as error:
        raise MalformedError(f"{path}: {error}") from error


def _from_json(content: bytes) -> dict[str, Any]:
    if len(content) > _LARGEST_JSON:
        raise MalformedError(f"a description of more than {_LARGEST_JSON} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedError("the description of a reference image is a JSON object")
    return fields


def _from_image(path: Path) -> dict[str, Any]:
    # Imported here: reading images takes what the service itself does not need.
    from affiant.kernel.reference import ReferenceImage

    image = ReferenceImage.load(path)
    authenticode = image.authenticode_digest
    return {
        "kernel_file_digest": image.kernel_file_digest.hex(),
        "authenticode_digest": None if authenticode is None else authenticode.hex(),
        "digest": image.digest.hex(),
        "release": image.release,
        "locks_down": image.metadata.locks_down,
        "verifies_modules": image.metadata.verifies_modules,
    }


def _told(operator: bool | None, file: object) -> bool:
    if operator is not None:
        return operator
    if file is not None and not isinstance(file, bool):
        raise ValueError("a property of the kernel is neither true nor false")
    return file is True
