"""Reference images of the lab's kernels: built once for each version of the builder, and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import affiant.kernel.reference
from affiant.folders import cache_folder
from affiant.kernel.reference import ReferenceImage
from affiant.vm.kernels import GuestKernel
from affiant.vm.references import ensure_reference

__all__ = ["reference_file", "reference_of"]


def reference_of(kernel: GuestKernel) -> ReferenceImage:
    """Return the reference image of a kernel, as the builder in this checkout makes it."""
    return ReferenceImage.load(reference_file(kernel))


def reference_file(kernel: GuestKernel) -> Path:
    """Return where that image is; the files of the kernel's modules lie beside it."""
    digest = hashlib.sha256()
    for source in sorted(Path(affiant.kernel.reference.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    folder = cache_folder() / "lab-references" / digest.hexdigest()[:16]
    return ensure_reference(kernel, folder, progress=lambda _: None)
