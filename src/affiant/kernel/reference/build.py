"""Build a reference image from a kernel as the distribution ships it, offline and reproducibly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from affiant.kernel.reference.authenticode import authenticode_digest
from affiant.kernel.reference.bzimage import read_bzimage
from affiant.kernel.reference.container import Part, PartKind, encode_container
from affiant.kernel.reference.decompress import decompress
from affiant.kernel.reference.elf import read_elf
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.reference.kallsyms import KallsymsEntry, decode_kallsyms
from affiant.kernel.reference.kernel_config import (
    CONFIG_PATH,
    CodePolicy,
    configured_release,
    read_config,
)
from affiant.kernel.reference.linked import LinkedKernel, linked_kernel
from affiant.kernel.reference.metadata import Metadata, encode_metadata
from affiant.kernel.reference.module_files import pack_module_files
from affiant.kernel.reference.modules import ModuleEntry, build_id, encode_modules, read_module
from affiant.kernel.reference.package import (
    PackageName,
    is_package,
    package_files,
    package_name,
    read_bounded,
)
from affiant.kernel.reference.patch_tables import find_sites, unknown_sections
from affiant.kernel.reference.relocations import split_relocations
from affiant.kernel.reference.symbols import encode_symbols
from affiant.model.errors import MalformedError, SetupError

__all__ = ["Progress", "build_module_files", "build_reference"]

Progress = Callable[[str, float], None]
"""Told what is being done and which part of the whole is done already, 0.0 to 1.0."""

_MAX_KERNEL = 256 << 20
_DEFAULT_ALIGNMENT = 0x200000  # CONFIG_PHYSICAL_ALIGN of x86-64 distribution kernels
_KERNEL_PATH = re.compile(r"boot/vmlinuz-[^/]+|(usr/)?lib/modules/[^/]+/vmlinuz")
_MODULE_PATH = re.compile(r"(usr/)?lib/modules/[^/]+/.+\.ko(\.xz|\.zst|\.gz)?")
_WANTED = re.compile(f"{_KERNEL_PATH.pattern}|{_MODULE_PATH.pattern}|{CONFIG_PATH.pattern}")
# Needed at the end of decompression only, and zero in the file.
_DROPPED_SECTIONS = frozenset({".init.scratch"})


def build_reference(
    path: Path,
    *,
    modules: Path | None = None,
    configuration: Path | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Return the reference image of a kernel: of a `.deb`, a `vmlinuz`, or its decompressed payload.

    `modules` and `configuration`: packages with the modules, and with the kernel's configuration, for
    distributions that ship them apart. Guaranteed: the same files give the same bytes, whatever their
    names; nothing of the clock or of this machine enters. A configuration counts only if it is of the
    kernel's release, and its package of the same version as the kernel's. The result passes
    `ReferenceImage.load`.

    Raises `MalformedError` when a file is not what it claims to be, `SetupError` when it holds no kernel
    that a reference can be made of, `UnavailableError` when it can't be read.
    """
    tell = progress or (lambda step, done: None)
    tell("reading the package", 0.0)
    package, kernel_file, entries, configurations = _read(read_bounded(path), tell)
    if configuration is not None:
        configurations = configurations | _read_configuration(read_bounded(configuration), package)
    if modules is not None:
        entries = [*entries, *_read_modules(read_bounded(modules), tell)]
    tell("unpacking the kernel", 0.5)
    alignment, payload = _unpack(kernel_file)
    elf = read_elf(payload)
    kernel = linked_kernel(elf)
    if len(payload) - elf.end < 8:
        raise SetupError(
            "this kernel has no relocation table, so its text cannot be told from its neighbours'",
            hint="give the compressed kernel (vmlinuz) or the distribution's package",
        )
    relocations = split_relocations(memoryview(payload)[elf.end :])
    tell("reading symbols", 0.6)
    rodata = kernel.section(".rodata")
    symbols = decode_kallsyms(
        rodata.data, address=rodata.load_address, text=kernel.section(".text").load_address
    )
    named = _by_name(symbols)
    tell("finding patch sites", 0.8)
    sites = find_sites(kernel, named)
    banner = _banner(kernel, named)
    release = banner.split(" ")[2]
    policy = _policy(configurations, release)
    authenticode = authenticode_digest(kernel_file)
    metadata = Metadata(
        release=release,
        banner=banner,
        kernel_file_digest=hashlib.sha256(kernel_file).hexdigest(),
        authenticode_digest=None if authenticode is None else authenticode.hex(),
        build_id=build_id(elf),
        alignment=alignment,
        package=package,
        tables=sites.tables,
        unknown_sections=unknown_sections(kernel),
        locks_down=None if policy is None else policy.locks_down,
        verifies_modules=None if policy is None else policy.verifies_modules,
    )
    tell("writing the reference", 0.9)
    derived: dict[str, bytes] = {
        "metadata": encode_metadata(metadata),
        "modules": encode_modules(entries),
        "relocations.absolute32": relocations.absolute32.astype("<u8").tobytes(),
        "relocations.absolute64": relocations.absolute64.astype("<u8").tobytes(),
        "relocations.inverse32": relocations.inverse32.astype("<u8").tobytes(),
        "sites": sites.sites.tobytes(),
        **encode_symbols(symbols, kernel),
    }
    if any(kernel.find(name) for name in derived):
        raise MalformedError("a kernel section has the name of a part of the reference image")
    image = encode_container([*_data_parts(derived), *_section_parts(kernel)])
    ReferenceImage.load(image)  # what can't be loaded must not be handed out
    tell("done", 1.0)
    return image


def build_module_files(path: Path, *, modules: Path | None = None) -> bytes | None:
    """Return the archive of a package's module files, to lie beside its reference; None if it has none.

    Raises what `build_reference` raises.
    """
    found: list[tuple[ModuleEntry, bytes]] = []
    for package in (path, modules):
        data = b"" if package is None else read_bounded(package)
        if is_package(data):
            files = package_files(data, _MODULE_PATH)
            found += [(read_module(file.path, file.data), file.data) for file in files]
    return pack_module_files(found) if found else None


def _read(
    data: bytes, tell: Progress
) -> tuple[PackageName | None, bytes, list[ModuleEntry], dict[str, bytes]]:
    """Return the package's name, its kernel file, its modules' entries and its configurations by path."""
    if not is_package(data):
        return None, data, [], {}
    kernels: list[bytes] = []
    configurations: dict[str, bytes] = {}
    modules: list[ModuleEntry] = []
    for file in package_files(data, _WANTED):
        if _KERNEL_PATH.fullmatch(file.path):
            kernels.append(file.data)
        elif CONFIG_PATH.fullmatch(file.path):
            configurations[file.path] = file.data
        else:
            modules.append(read_module(file.path, file.data))
            tell("reading modules", min(0.05 + len(modules) / 4000, 0.45))
    name = package_name(data)
    if len(kernels) != 1:
        raise SetupError(
            f"package {name.name} holds {len(kernels)} kernels",
            hint="a meta package holds none: give the package that it depends on (linux-image-VERSION, or "
            "linux-binary-VERSION where modules are packaged apart)",
        )
    return name, kernels[0], modules, configurations


def _read_configuration(data: bytes, kernel: PackageName | None) -> dict[str, bytes]:
    """Return the configurations of a package that was built together with the kernel's."""
    if not is_package(data):
        raise SetupError("the configuration must come as a Debian package")
    name = package_name(data)
    own = "a kernel without a package" if kernel is None else f"{kernel.name} {kernel.version}"
    if kernel is None or (name.version, name.architecture) != (kernel.version, kernel.architecture):
        # Options may change from one build of a release to the next, and this one would vouch for the other.
        raise SetupError(
            f"{name.name} {name.version} does not belong to {own}",
            hint="give packages of one version (linux-binary-VERSION and linux-base-VERSION)",
        )
    return {file.path: file.data for file in package_files(data, CONFIG_PATH)}


def _policy(configurations: Mapping[str, bytes], release: str) -> CodePolicy | None:
    """Return what the kernel's configuration says; None where it has none, or it is open which is its own."""
    own = [data for path, data in configurations.items() if configured_release(path) == release]
    return read_config(own[0]) if len(own) == 1 else None


def _read_modules(data: bytes, tell: Progress) -> list[ModuleEntry]:
    if not is_package(data):
        raise SetupError("the modules must come as a Debian package")
    modules: list[ModuleEntry] = []
    for file in package_files(data, _MODULE_PATH):
        modules.append(read_module(file.path, file.data))
        tell("reading modules", min(0.05 + len(modules) / 4000, 0.45))
    return modules


def _unpack(kernel_file: bytes) -> tuple[int, bytes]:
    """Return the alignment of the kernel's address, and the ELF file with its relocation table."""
    if kernel_file.startswith(b"\x7fELF"):
        return _DEFAULT_ALIGNMENT, kernel_file
    image = read_bzimage(kernel_file)
    return image.alignment, decompress(image.payload, limit=_MAX_KERNEL)


def _by_name(symbols: Sequence[KallsymsEntry]) -> Mapping[str, list[int]]:
    named: dict[str, list[int]] = {}
    for symbol in symbols:
        named.setdefault(symbol.name, []).append(symbol.address)
    return named


def _banner(kernel: LinkedKernel, named: Mapping[str, Sequence[int]]) -> str:
    found = named.get("linux_banner", ())
    if len(found) != 1:
        raise MalformedError("the kernel has no linux_banner")
    section = next((part for part in kernel.sections if part.holds(found[0])), None)
    if section is None:
        raise MalformedError("the kernel's linux_banner lies in no section")
    start = found[0] - section.load_address
    text = bytes(section.data[start : start + 512]).split(b"\0")[0].rstrip(b"\n")
    if not text.isascii() or not text.decode("ascii").isprintable() or not text.startswith(b"Linux version "):
        raise MalformedError("the kernel's linux_banner is not a version text")
    return text.decode("ascii")


def _data_parts(derived: Mapping[str, bytes]) -> list[Part]:
    return [Part(name=name, kind=PartKind.DATA, data=derived[name]) for name in sorted(derived)]


def _section_parts(kernel: LinkedKernel) -> list[Part]:
    return [
        Part(
            name=section.name,
            kind=PartKind.SECTION,
            data=section.data,
            address=section.address,
            load_address=section.load_address,
            size=section.size,
            writable=section.writable,
            executable=section.executable,
        )
        for section in kernel.sections
        if section.name not in _DROPPED_SECTIONS
    ]
