"""`affiant rules`, the part about keys: whose they are, what they sign, how they are replaced."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.publishing.asking import confirmed, current_time, new_passphrase, open_folder, open_signer
from affiant.wire.rules_path import DEFAULT_FLEET

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable

    from tuf.api.metadata import Root

__all__ = ["change_root", "register_keys"]


def register_keys(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the commands about keys."""
    init = commands.add_parser("init", parents=[common], help="make a repository, with its online keys")
    init.add_argument(
        "--fleet", default=DEFAULT_FLEET, metavar="NAME", help="whom it is for (default: %(default)s)"
    )
    init.add_argument(
        "--days",
        action="append",
        default=[],
        metavar="ROLE=N",
        help="how long metadata lasts (default: root=365 targets=180 snapshot=14 timestamp=1)",
    )
    init.set_defaults(run=_init)

    new = commands.add_parser("new-key", help="make a signer's key: FILE.pem, encrypted, and FILE.pub")
    new.add_argument("file", type=Path, metavar="FILE.pem", help="where to keep it; not in the repository")
    new.add_argument(
        "--kind", choices=("ed25519", "ml-dsa-65"), default="ed25519", help="default: %(default)s"
    )
    secret = new.add_mutually_exclusive_group()
    secret.add_argument("--passphrase-file", type=Path, metavar="FILE", help="instead of asking for it")
    secret.add_argument("--unsafe-no-passphrase", action="store_true", help="UNSAFE: do not encrypt it")
    new.set_defaults(run=_new_key)

    add = commands.add_parser("add-key", parents=[common], help="let a key sign for a role")
    add.add_argument("role", metavar="ROLE", choices=("root", "targets"), help="root or targets")
    add.add_argument("file", type=Path, metavar="FILE.pub", help="the public key")
    add.add_argument("--name", metavar="NAME", help="whose it is (default: the file's name)")
    add.add_argument("--threshold", type=int, metavar="N", help="how many of the role's keys must sign")
    add.set_defaults(run=_add_key)

    remove = commands.add_parser("remove-key", parents=[common], help="revoke a key that is lost or retired")
    remove.add_argument("role", metavar="ROLE", choices=("root", "targets"), help="root or targets")
    remove.add_argument("key", metavar="KEY", help="its owner, or how its identifier begins")
    remove.add_argument("--threshold", type=int, metavar="N", help="how many of the role's keys must sign")
    remove.set_defaults(run=_remove_key)

    rotate = commands.add_parser(
        "rotate-online", parents=[common], help="replace the keys of snapshot and timestamp"
    )
    rotate.set_defaults(run=_rotate_online)

    sign = commands.add_parser("sign", parents=[common], help="look at the drafts, and sign them")
    sign.add_argument("key", type=Path, metavar="KEY.pem", help="your private key")
    sign.add_argument("--passphrase-file", type=Path, metavar="FILE", help="instead of asking for it")
    sign.add_argument("--yes", action="store_true", help="without asking")
    sign.set_defaults(run=_sign)

    root = commands.add_parser("root", parents=[common], help="print the newest root's path and SHA-256")
    root.set_defaults(run=_root)


def _init(arguments: argparse.Namespace) -> int:
    from affiant.publishing.drafting import draft_root
    from affiant.publishing.folder import LIVES, Settings
    from affiant.publishing.online import make_online_keys

    folder = open_folder(arguments.repository)
    folder.create(Settings(arguments.fleet, LIVES | _days(arguments.days)))
    with folder.locked():
        root = draft_root(folder, now=current_time())
        make_online_keys(root.signed, folder.online)
        folder.save_draft(root)
    print(f"made {folder.path} for the fleet {arguments.fleet}")
    print("next: affiant rules new-key, then affiant rules add-key root and affiant rules add-key targets")
    return 0


def _new_key(arguments: argparse.Namespace) -> int:
    from affiant.publishing.keys import make_key

    secret = None
    if not arguments.unsafe_no_passphrase:
        secret = new_passphrase(arguments.passphrase_file, arguments.file)
    key = make_key(arguments.file, kind=arguments.kind, passphrase=secret)
    public = arguments.file.with_suffix(".pub")
    print(f"wrote {arguments.file}, which is yours alone, and {public}, key {key.keyid[:8]}")
    return 0


def _add_key(arguments: argparse.Namespace) -> int:
    from affiant.publishing.keys import key_name, read_public_key
    from affiant.publishing.roles import add_key

    key = read_public_key(arguments.file, name=arguments.name or arguments.file.stem)
    return change_root(
        arguments,
        lambda root: add_key(root, arguments.role, key, threshold=arguments.threshold),
        f"{key_name(key)} signs for {arguments.role}",
    )


def _remove_key(arguments: argparse.Namespace) -> int:
    from affiant.publishing.drafting import draft_targets
    from affiant.publishing.roles import find_key, remove_key

    def change(root: Root) -> None:
        key = find_key(root, arguments.role, arguments.key)
        remove_key(root, arguments.role, key, threshold=arguments.threshold)

    code = change_root(arguments, change, f"{arguments.key} no longer signs for {arguments.role}")
    folder = open_folder(arguments.repository)
    if arguments.role == "targets" and folder.published() is not None:
        with folder.locked():
            draft_targets(folder, now=current_time())
        print("the targets are drafted anew, too: what the key has signed is to be signed by the others")
    return code


def _rotate_online(arguments: argparse.Namespace) -> int:
    from affiant.publishing.online import make_online_keys

    folder = open_folder(arguments.repository)
    return change_root(
        arguments,
        lambda root: make_online_keys(root, folder.draft),
        "snapshot and timestamp have new keys",
    )


def change_root(arguments: argparse.Namespace, change: Callable[[Root], None], done: str) -> int:
    """Draft the next root with one change, and say so."""
    from affiant.publishing.drafting import draft_root

    folder = open_folder(arguments.repository)
    with folder.locked():
        root = draft_root(folder, now=current_time())
        change(root.signed)
        folder.save_draft(root)
    print(f"{done} in the draft of root {root.signed.version}; next: affiant rules sign, by its signers")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    from affiant.publishing.signing import sign
    from affiant.publishing.telling import draft_lines, status_of

    folder = open_folder(arguments.repository)
    with folder.locked():
        latest, draft = folder.latest_root(), folder.drafted()
        status = status_of(folder, fleet=folder.settings().fleet, now=current_time())
        print("\n".join(draft_lines(status["draft"])))
        if not arguments.yes and not confirmed("sign? [y/N] "):
            print("not signed")
            return 1
        roles = sign(draft, latest, open_signer(arguments.key, arguments.passphrase_file))
        for metadata in (draft.root, draft.targets):
            if metadata is not None:
                folder.save_draft(metadata)
        print(f"signed: {', '.join(roles)}; next: affiant rules publish, when all have signed")
    return 0


def _root(arguments: argparse.Namespace) -> int:
    from affiant.model.errors import SetupError
    from affiant.publishing.telling import status_of

    folder = open_folder(arguments.repository)
    root = status_of(folder, fleet=folder.settings().fleet, now=current_time())["root"]
    if root is None:
        raise SetupError("no root was published yet", hint="affiant rules publish")
    print(root["path"])
    print(root["sha256"])
    return 0


def _days(stated: list[str]) -> dict[str, int]:
    from affiant.model.errors import SetupError
    from affiant.publishing.folder import LIVES

    days = {}
    for one in stated:
        role, _, number = one.partition("=")
        if role not in LIVES or not number.isdigit() or not 0 < int(number) < 10_000:
            raise SetupError(f"{one!r} is no life of metadata", hint="for example --days timestamp=2")
        days[role] = int(number)
    return days
