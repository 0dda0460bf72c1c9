"""Command line of this door: `affiant launcher run` and `affiant launcher image`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.launcher.images.manifest import Manifest

__all__ = ["register"]

_SHOWN = 12


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this door's subcommands."""
    parser = subcommands.add_parser("launcher", help="the secure side of one virtual machine on this host")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run = actions.add_parser(
        "run", help="run one machine in the foreground (`affiant vm start` does it for you)"
    )
    run.add_argument("settings", type=Path, metavar="SETTINGS.json")
    run.set_defaults(run=_run)
    image = actions.add_parser("image", help="make and measure the monitor's image; print its digest")
    image.add_argument("--cache", type=Path, metavar="FOLDER", help="where images are kept")
    image.add_argument("--manifest", action="store_true", help="print each file with its SHA-256")
    image.add_argument("--json", action="store_true", help="print JSON")
    image.set_defaults(run=_image)
    authority = actions.add_parser(
        "authority",
        help="print the root certificate of this host's vTPM CA, for `affiant service trust-ek`",
        description="Prints the path of the root certificate under which this host makes TPMs; makes the "
        "authority first where there is none.",
    )
    authority.add_argument("--folder", type=Path, metavar="FOLDER", help="where the authority is kept")
    authority.set_defaults(run=_authority)


def _run(arguments: argparse.Namespace) -> int:
    from affiant.launcher.__main__ import main

    return main([str(arguments.settings)])


def _image(arguments: argparse.Namespace) -> int:
    from affiant import __version__
    from affiant.folders import images_folder
    from affiant.launcher.images.image import prepare_image
    from affiant.launcher.images.image_files import MONITOR
    from affiant.launcher.record import SECURITY_VERSION

    image = prepare_image(MONITOR, arguments.cache or images_folder())
    if arguments.json:
        document = {
            "digest": image.digest.hex(),
            "version": __version__,
            "security_version": SECURITY_VERSION,
            "folder": str(image.folder),
            "files": image.manifest.files,
            "bytes": image.manifest.size,
            "components": [
                {"name": name, "files": files, "bytes": size}
                for name, files, size in _components(image.manifest)
            ],
        }
        if arguments.manifest:
            document["manifest"] = [
                {
                    "path": entry.path,
                    "kind": entry.kind,
                    "mode": entry.mode,
                    "size": entry.size,
                    "content": entry.content,
                }
                for entry in image.manifest.entries
            ]
        print(json.dumps(document, indent=1))
        return 0
    print(f"digest    {image.digest.hex()}")
    print(f"version   {__version__}, security version {SECURITY_VERSION}")
    print(f"covers    {image.manifest.files} files, {image.manifest.size:,} bytes")
    print(f"folder    {image.folder}")
    for name, files, size in _components(image.manifest)[:_SHOWN]:
        print(f"  {size:>12,} bytes {files:>6} files  {name}")
    if arguments.manifest:
        print("".join(entry.line() for entry in image.manifest.entries), end="")
    return 0


def _authority(arguments: argparse.Namespace) -> int:
    from affiant.folders import vtpm_authority_folder
    from affiant.launcher.vtpm.authority import found_authority

    print(found_authority(arguments.folder or vtpm_authority_folder()).root_certificate)
    return 0


def _components(manifest: Manifest) -> list[tuple[str, int, int]]:
    """Return (name, files, bytes) of each part of the image, the largest first."""
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in manifest.entries:
        if entry.kind != "file":
            continue
        parts = entry.path.split("/")
        if "site-packages" in parts:
            name = parts[parts.index("site-packages") + 1].split(".")[0].split("-")[0]
            name = name if name != "__pycache__" else parts[-1].split(".")[0]
        else:
            name = {"python": "Python standard library", "lib": "shared libraries"}.get(parts[0], "programs")
        files[name] += 1
        sizes[name] += entry.size
    return [(name, files[name], size) for name, size in sizes.most_common()]
