"""The reference image of the kernel that a machine boots: built once, found by the kernel's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from affiant.model.errors import EvidenceError
from affiant.vm.kernels import GuestKernel

__all__ = ["ensure_reference"]


def ensure_reference(kernel: GuestKernel, folder: Path, *, progress: Callable[[str], None]) -> Path:
    """Return the reference image of `kernel` in `folder`, building it the first time (some seconds).

    The files of its modules lie beside it, if its package has any.

    A file that is there and broken, or of an older format, is built again. Raises what
    `affiant.kernel.reference.build_reference` raises.
    """
    # Imported here: it brings numpy, which listing or stopping machines does not need.
    from affiant.kernel.reference import build_reference
    from affiant.kernel.reference.build import build_module_files
    from affiant.kernel.reference.module_files import module_files_beside
    from affiant.kernel.reference.store import ReferenceStore, write_whole

    store = ReferenceStore(folder)
    with kernel.vmlinuz.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    path = store.path_for(digest)
    try:
        known = store.find(digest) is not None
    except EvidenceError:
        known = False
    if not known:
        progress("building the reference image of this kernel, once")
        store.save(
            build_reference(
                kernel.reference_source,
                modules=kernel.modules_package,
                configuration=kernel.configuration_package,
            )
        )
    if not known or not module_files_beside(path).is_file():
        files = build_module_files(kernel.reference_source, modules=kernel.modules_package)
        if files is not None:
            write_whole(module_files_beside(path), files)
    return path
