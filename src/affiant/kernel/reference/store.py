"""A folder of reference images, found by the digest of the kernel file that they describe.

A file is named by the kernel it describes: `<SHA-256 of the kernel file in hex>.reference`. The name is
for finding only; whoever loads a file checks it against what it says of itself.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from affiant.kernel.reference.image import ReferenceImage
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["ReferenceStore", "write_whole"]

_SUFFIX = ".reference"


class ReferenceStore:
    """Reference images in one folder, which is made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_for(self, kernel_file_digest: bytes) -> Path:
        """Return where the reference of a kernel file is, or would be."""
        if len(kernel_file_digest) != 32:
            raise ValueError("a kernel file digest has 32 bytes")
        return self.folder / f"{kernel_file_digest.hex()}{_SUFFIX}"

    def save(self, image: bytes) -> Path:
        """Write a reference image and return its path; readers see the old file or the new one, whole.

        Raises `MalformedError` if the bytes are no reference image, `UnavailableError` if the folder
        can't be written.
        """
        path = self.path_for(ReferenceImage.load(image).kernel_file_digest)
        write_whole(path, image)
        return path

    def find(self, kernel_file_digest: bytes) -> ReferenceImage | None:
        """Return the reference of a kernel file, or None if the folder has none.

        Guaranteed: the image says that it describes that kernel file. Raises `MalformedError` if the
        file is broken or describes another one.
        """
        path = self.path_for(kernel_file_digest)
        if not path.is_file():
            return None
        image = ReferenceImage.load(path)
        if image.kernel_file_digest != kernel_file_digest:
            raise MalformedError(f"{path} describes another kernel", hint="build the reference again")
        return image

    def paths(self) -> tuple[Path, ...]:
        """Return the files of the store in order of their names."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if path.is_file()))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it; raises `UnavailableError` if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
