"""`affiant reference`: build, show and list reference images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.kernel.reference import ReferenceImage
    from affiant.kernel.reference.store import ReferenceStore

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `reference build`, `reference show` and `reference list`."""
    text = "what a kernel must look like in memory"
    parser = subcommands.add_parser("reference", help=text, description=f"Reference images: {text}.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = actions.add_parser("build", help="build the reference image of a kernel")
    build.add_argument("path", type=Path, metavar="PATH", help="a Debian package (.deb) or a vmlinuz")
    build.add_argument(
        "--modules",
        type=Path,
        metavar="DEB",
        help="the package with the modules, where they are packaged apart",
    )
    build.add_argument(
        "--configuration",
        type=Path,
        metavar="DEB",
        help="the package with the kernel's configuration, where it is packaged apart",
    )
    build.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write it (default: the store)"
    )
    build.add_argument("--json", action="store_true", help="print the result as JSON")
    build.set_defaults(run=_build)

    show = actions.add_parser("show", help="show what a reference image holds")
    show.add_argument("file", type=Path, metavar="FILE", help="a reference image")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(run=_show)

    listing = actions.add_parser("list", help="list the reference images of the store")
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    listing.set_defaults(run=_list)


def _build(arguments: argparse.Namespace) -> int:
    from affiant.kernel.reference import ReferenceImage, build_reference
    from affiant.kernel.reference.build import build_module_files
    from affiant.kernel.reference.module_files import module_files_beside
    from affiant.kernel.reference.store import write_whole

    data = build_reference(
        arguments.path,
        modules=arguments.modules,
        configuration=arguments.configuration,
        progress=_progress(),
    )
    image = ReferenceImage.load(data)
    if arguments.output is None:
        path = _store().save(data)
    else:
        path = arguments.output
        write_whole(path, data)
    files = build_module_files(arguments.path, modules=arguments.modules)
    if files is not None:
        write_whole(module_files_beside(path), files)
    if arguments.json:
        print(json.dumps({"path": str(path), **_summary(image)}, indent=2))
    else:
        print(f"{image.release}: {len(data) / 1e6:.1f} MB in {path}")
        print(f"reference    {image.digest.hex()}")
        print(f"kernel file  {image.kernel_file_digest.hex()}")
    _warn(image)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from affiant.kernel.reference import ReferenceImage

    image = ReferenceImage.load(arguments.file)
    if arguments.json:
        print(json.dumps(_details(image), indent=2))
        return 0
    for name, value in _summary(image).items():
        print(f"{name.replace('_', ' '):20} {'-' if value is None else value}")
    print(f"{'types':20} {len(image.types) if image.btf else 0}")
    print("\nsections")
    for section in image.sections:
        access = f"{'w' if section.writable else '-'}{'x' if section.executable else '-'}"
        print(f"  {section.name:30} {section.load_address:#x} {section.size:10} {access}")
    print("\npatch sites")
    for name, count in _sites_by_class(image).items():
        print(f"  {name:30} {count:10}")
    _warn(image)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from affiant.kernel.reference import ReferenceImage
    from affiant.model.errors import EvidenceError

    rows: list[dict[str, Any]] = []
    broken = False
    for path in _store().paths():
        try:
            rows.append({"path": str(path), **_summary(ReferenceImage.load(path))})
        except EvidenceError as error:
            broken = True
            print(f"error: {path}: {error}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(
                f"{row['release']:40} kernel {row['kernel_file_digest'][:16]} reference {row['digest'][:16]}"
            )
            print(f"  {row['path']}")
        if not rows and not broken:
            print("no reference images yet; build one with: affiant reference build PATH")
    return 2 if broken else 0


def _store() -> ReferenceStore:

    from affiant.folders import references_folder
    from affiant.kernel.reference.store import ReferenceStore

    return ReferenceStore(references_folder())


def _progress() -> Any:
    """Return a function that rewrites one line of a terminal; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(step: str, done: float) -> None:
        end = "\r\033[K" if done >= 1.0 else ""
        print(f"\r\033[K{done:4.0%} {step}", end=end, file=sys.stderr, flush=True)

    return tell


def _summary(image: ReferenceImage) -> dict[str, Any]:
    package, authenticode = image.package, image.authenticode_digest
    return {
        "release": image.release,
        "banner": image.banner,
        "package": None if package is None else f"{package.name} {package.version} {package.architecture}",
        "digest": image.digest.hex(),
        "kernel_file_digest": image.kernel_file_digest.hex(),
        "authenticode_digest": None if authenticode is None else authenticode.hex(),
        "build_id": image.build_id.hex(),
        "symbols": len(image.symbols),
        "relocations": sum(
            len(places)
            for places in (
                image.relocations.absolute64,
                image.relocations.absolute32,
                image.relocations.inverse32,
            )
        ),
        "sites": len(image.sites),
        "modules": len(image.modules),
        "locks_down": image.metadata.locks_down,
        "verifies_modules": image.metadata.verifies_modules,
        "unknown_sections": ", ".join(image.metadata.unknown_sections) or None,
    }


def _details(image: ReferenceImage) -> dict[str, Any]:
    sections = [
        {
            "name": section.name,
            "address": f"{section.load_address:#x}",
            "size": section.size,
            "stored": bool(section.data),
            "writable": section.writable,
            "executable": section.executable,
        }
        for section in image.sections
    ]
    tables = [
        {"name": table.name, "class": table.kind.name.lower(), "layout": table.layout, "entries": table.count}
        for table in image.tables
    ]
    return {
        **_summary(image),
        "types": len(image.types) if image.btf else 0,
        "sections": sections,
        "sites_by_class": _sites_by_class(image),
        "tables": tables,
    }


def _sites_by_class(image: ReferenceImage) -> dict[str, int]:
    from affiant.kernel.reference import SiteClass

    kinds = image.sites["kind"]
    return {kind.name.lower().replace("_", "-"): int((kinds == int(kind)).sum()) for kind in SiteClass}


def _warn(image: ReferenceImage) -> None:
    if image.metadata.unknown_sections:
        names = ", ".join(image.metadata.unknown_sections)
        print(f"warning: sections that this version does not know: {names}", file=sys.stderr)
        print("hint: if they list patch sites, live text will differ there and be reported", file=sys.stderr)
