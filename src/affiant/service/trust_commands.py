"""`affiant service trust-ek`, `reference` and `monitor`: what the service accepts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.service.command_line import now, storage

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register_trust"]


def register_trust(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add `trust-ek`, `reference` and `monitor`."""
    anchor = commands.add_parser(
        "trust-ek", parents=[common], help="trust TPMs whose endorsement certificate leads to this CA"
    )
    anchor.add_argument("certificate", type=Path, metavar="CERT.pem", help="one or more CA certificates")
    anchor.set_defaults(run=_trust_endorsement)
    _register_reference(commands, common)
    _register_monitor(commands, common)


def _register_reference(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    reference = commands.add_parser("reference", help="kernels that are known")
    actions = reference.add_subparsers(required=True, metavar="COMMAND")
    add = actions.add_parser("add", parents=[common], help="register a kernel")
    add.add_argument(
        "file", type=Path, metavar="FILE", help="a reference image, or `affiant reference show --json` of one"
    )
    for option, words in (
        ("--locks-down", "this kernel turns lockdown on by itself under Secure Boot"),
        ("--verifies-modules", "this kernel then refuses unsigned modules"),
    ):
        add.add_argument(
            option,
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{words} (default: what the reference image says)",
        )
    add.set_defaults(run=_add_reference)
    image = actions.add_parser(
        "add-image",
        parents=[common],
        help="register a unified kernel image of a known kernel",
        description="Registers a unified kernel image of a kernel that is known: the file as it is booted.",
    )
    image.add_argument("file", type=Path, metavar="IMAGE.efi", help="the image, signed")
    image.add_argument(
        "--addon",
        type=Path,
        action="append",
        default=[],
        metavar="ADDON.efi",
        help="an add-on that may be read beside it; once for each",
    )
    image.set_defaults(run=_add_image)
    listing = actions.add_parser("list", parents=[common], help="all known kernels")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_list_references)


def _register_monitor(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    monitor = commands.add_parser("monitor", help="monitors that are accepted")
    actions = monitor.add_subparsers(required=True, metavar="COMMAND")
    accept = actions.add_parser("accept", parents=[common], help="accept a monitor image")
    accept.add_argument("digest", type=_digest, metavar="DIGEST", help="see `affiant launcher image`")
    accept.add_argument("--version", required=True, metavar="V", help="the version that its record names")
    accept.add_argument("--svn", type=int, default=1, metavar="N", help="its security version (default: 1)")
    accept.set_defaults(run=_accept_monitor)
    listing = actions.add_parser("list", parents=[common], help="all accepted monitors")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_list_monitors)


def _trust_endorsement(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.pem_file import read_authorities
    from affiant.service.trust_store import trust_endorsement_root

    authorities = read_authorities(arguments.certificate)
    with transaction(storage(arguments)) as connection:
        for subject, der in authorities:
            digest = trust_endorsement_root(connection, der, now=now())
            print(f"{digest.hex()}  {subject}")
    return 0


def _add_reference(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.reference_file import read_reference_file
    from affiant.service.trust_store import add_reference

    value = read_reference_file(
        arguments.file, locks_down=arguments.locks_down, verifies_modules=arguments.verifies_modules
    )
    with transaction(storage(arguments)) as connection:
        add_reference(connection, value, now=now())
    print(f"{value.kernel.hex()}  {value.release}")
    if not (value.locks_down and value.verifies_modules):
        print("level 4 is out of reach: not known to lock down and verify modules under Secure Boot")
    return 0


def _add_image(arguments: argparse.Namespace) -> int:
    from affiant.model.errors import SetupError
    from affiant.service.database import transaction
    from affiant.service.reference_file import read_image_file
    from affiant.service.trust_store import add_unified_image, all_references

    image = read_image_file(arguments.file)
    addons = [read_image_file(path) for path in arguments.addon]
    if image.kernel is None:
        raise SetupError(f"{arguments.file} holds no kernel", hint="an add-on is given with --addon")
    for path, addon in zip(arguments.addon, addons, strict=True):
        if addon.kernel is not None:
            raise SetupError(f"{path} is no add-on: it holds a kernel", hint="register it by itself")
    with transaction(storage(arguments)) as connection:
        known = [value for value in all_references(connection) if value.kernel == image.kernel]
        if not known:
            raise SetupError(
                f"the kernel in {arguments.file} is not known: {image.kernel.hex()}",
                hint="register it first: affiant service reference add",
            )
        for one in (image, *addons):
            add_unified_image(
                connection, one.authenticode, kernel=image.kernel, addon=one.kernel is None, now=now()
            )
    for one in (image, *addons):
        what = "add-on" if one.kernel is None else known[0].release
        print(f"{one.authenticode.hex()}  {what}")
    return 0


def _list_references(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.rows import show_rows
    from affiant.service.trust_store import all_references

    with transaction(storage(arguments)) as connection:
        values = all_references(connection)
    rows = [
        {
            "release": value.release,
            "kernel": value.kernel.hex(),
            "reference": value.reference.hex(),
            "locks_down": value.locks_down,
            "verifies_modules": value.verifies_modules,
            "unified_images": sorted(digest.hex() for digest in value.unified_images),
            "addons": sorted(digest.hex() for digest in value.addons),
        }
        for value in values
    ]
    columns = ["release", "kernel", "reference", "locks_down", "verifies_modules"]
    return show_rows(rows, as_json=arguments.json, columns=columns)


def _accept_monitor(arguments: argparse.Namespace) -> int:
    from affiant.appraisal.policy import AcceptedMonitor
    from affiant.service.database import transaction
    from affiant.service.trust_store import accept_monitor

    monitor = AcceptedMonitor(arguments.digest, arguments.version, arguments.svn)
    with transaction(storage(arguments)) as connection:
        accept_monitor(connection, monitor, now=now())
    return 0


def _list_monitors(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.rows import show_rows
    from affiant.service.trust_store import accepted_monitor_set

    with transaction(storage(arguments)) as connection:
        monitors = sorted(accepted_monitor_set(connection))
    rows = [
        {"image": monitor.image.hex(), "version": monitor.version, "svn": monitor.security_version}
        for monitor in monitors
    ]
    return show_rows(rows, as_json=arguments.json)


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise argparse.ArgumentTypeError("a digest is 64 hexadecimal digits")
    return digest
