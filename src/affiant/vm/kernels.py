"""Which kernel a guest boots: the file that is measured, and the modules that belong to it."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError
from affiant.vm.packages import Package, PackageCache

__all__ = ["DEFAULT_KERNEL", "GuestKernel", "debian_kernel", "kernel_from_file"]

DEFAULT_KERNEL = "linux-image-cloud-amd64"

_MODULE_LIMIT = 64 << 20  # bytes of one unpacked module; the largest in Debian have a few MiB
_DEB_MAGIC = b"!<arch>\n"


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel to boot. `modules` is None where only the kernel file is at hand."""

    release: str  # as `uname -r` will say, or the file's name where it cannot be told
    vmlinuz: Path
    modules: Path | None  # the folder lib/modules/RELEASE
    packages: tuple[Path, ...]  # the .deb files that it came from: kernel, modules, configuration

    @property
    def reference_source(self) -> Path:
        """The file from which a reference image is built: the package, else the kernel file."""
        return self.packages[0] if self.packages else self.vmlinuz

    @property
    def modules_package(self) -> Path | None:
        """The second package, where a distribution ships modules apart from the kernel."""
        return self.packages[1] if len(self.packages) > 1 else None

    @property
    def configuration_package(self) -> Path | None:
        """The third package, where a distribution ships the kernel's configuration apart."""
        return self.packages[2] if len(self.packages) > 2 else None

    def module_chain(self, *names: str) -> list[tuple[str, bytes]]:
        """Return (name, contents) of modules and what they depend on, in the order of loading.

        Contents are unpacked (signature kept). A name that is built into the kernel, or that this
        kernel does not have, is left out: what is needed differs between kernels.
        """
        chain: dict[str, bytes] = {}
        for name in names:
            self._add_with_dependencies(_canonical(name), chain, depth=0)
        return list(chain.items())

    def _add_with_dependencies(self, name: str, chain: dict[str, bytes], *, depth: int) -> None:
        if name in chain or depth > 16 or self.modules is None:
            return
        found = [
            path
            for path in sorted(self.modules.glob("kernel/**/*.ko*"))
            if _canonical(path.name.partition(".ko")[0]) == name
        ]
        if not found:
            return
        contents = _unpacked(found[0])
        for dependency in _dependencies(contents):
            self._add_with_dependencies(dependency, chain, depth=depth + 1)
        chain[name] = contents


def debian_kernel(
    cache: PackageCache, name: str = DEFAULT_KERNEL, *, suite: str | None = None, refresh: bool = False
) -> GuestKernel:
    """Return the kernel of a Debian package (meta packages resolved), fetched and unpacked.

    Raises what `PackageCache.fetch` raises.
    """
    image = cache.fetch(name, suite=suite, refresh=refresh)
    release = image.name.removeprefix("linux-image-")
    root = cache.unpack(image.path, sha256=image.sha256)
    packages: list[Package] = [image]
    roots = [root]
    if _find_vmlinuz(root) is None:
        # Since 7.x the image package is empty and depends on one for the kernel, one for modules; both of
        # them depend on one that holds the configuration.
        packages = [
            cache.fetch(f"linux-{part}-{release}", suite=image.suite)
            for part in ("binary", "modules", "base")
        ]
        roots = [cache.unpack(package.path, sha256=package.sha256) for package in packages]
    return _kernel_in(roots, tuple(package.path for package in packages), release)


def kernel_from_file(path: Path, cache: PackageCache) -> GuestKernel:
    """Return the kernel in a .deb file, or a kernel file (vmlinuz) itself.

    Raises SetupError when it is neither.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(0x206)
    except OSError as error:
        raise SetupError(f"cannot read the kernel: {error}") from error
    path = path.absolute()
    if magic.startswith(_DEB_MAGIC):
        return _kernel_in([cache.unpack(path)], (path,), None)
    # The boot protocol's header magic, Documentation/arch/x86/boot.rst.
    if magic[0x202:0x206] != b"HdrS":
        raise SetupError(
            f"{path} is neither a Debian package nor an x86 kernel (bzImage)",
            hint="name a linux-image-*.deb or a vmlinuz",
        )
    release = path.name.removeprefix("vmlinuz-")
    modules = path.parent.parent / "lib" / "modules" / release
    return GuestKernel(release, path, modules if modules.is_dir() else None, ())


def _kernel_in(roots: list[Path], packages: tuple[Path, ...], release: str | None) -> GuestKernel:
    vmlinuz = next((found for root in roots if (found := _find_vmlinuz(root))), None)
    if vmlinuz is None:
        raise SetupError(
            f"{packages[0].name} holds no kernel file",
            hint="name the package with the kernel itself (linux-image-* or linux-binary-*)",
        )
    release = release or vmlinuz.name.removeprefix("vmlinuz-")
    modules = None
    for root in roots:
        for folder in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
            if (folder / "kernel").is_dir():
                modules = folder
    return GuestKernel(release, vmlinuz, modules, packages)


def _find_vmlinuz(root: Path) -> Path | None:
    for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"):
        if found := sorted(root.glob(pattern)):
            return found[0]
    return None


def _unpacked(path: Path) -> bytes:
    packed = path.read_bytes()
    if path.suffix == ".xz":
        unpacked = lzma.LZMADecompressor().decompress(packed, max_length=_MODULE_LIMIT)
    elif path.suffix == ".ko":
        unpacked = packed
    else:
        raise SetupError(f"modules packed as {path.suffix} are not supported ({path.name})")
    return unpacked


def _dependencies(module: bytes) -> list[str]:
    """Return the names in the module's .modinfo, where strings are NUL-terminated key=value pairs."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    names = match[1].decode("ascii", "replace") if match else ""
    return [_canonical(name) for name in names.split(",") if name]


def _canonical(name: str) -> str:
    return name.replace("-", "_")
