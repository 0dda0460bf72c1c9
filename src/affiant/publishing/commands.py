"""`affiant rules`: publish rules for a fleet, signed by people who keep their keys offline."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.publishing.asking import current_time, moment, open_folder, open_signer, percentage
from affiant.publishing.key_commands import change_root, register_keys

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable

    from affiant.assertions.rollout import Rollout
    from affiant.publishing.folder import RulesFolder

__all__ = ["register"]

# Options of `publish` that say something of the rules that are named.
_ABOUT_RULES = (
    "audit",
    "enforce",
    "enforce_from",
    "percent",
    "not_before",
    "expires",
    "as_written",
    "version",
)


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `rules` with its commands."""
    rules = subcommands.add_parser("rules", help="publish rules for a fleet, signed")
    commands = rules.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--repository", type=Path, metavar="FOLDER", help="the repository (default: $AFFIANT_HOME/rules)"
    )
    register_keys(commands, common)
    _register_bundles(commands, common)

    renew = commands.add_parser(
        "renew", parents=[common], help="draft root or targets as they are, for longer"
    )
    renew.add_argument("role", metavar="ROLE", choices=("root", "targets"), help="root or targets")
    renew.set_defaults(run=_renew)
    refresh = commands.add_parser(
        "refresh",
        parents=[common],
        help="sign the timestamp anew, and the snapshot where it is due",
        description="For a timer, more often than the timestamp lasts: else monitors notice a freeze.",
    )
    refresh.set_defaults(run=_refresh)
    discard = commands.add_parser("discard", parents=[common], help="forget drafts")
    discard.set_defaults(run=_discard)
    show = commands.add_parser(
        "show",
        parents=[common],
        help="list the bundle's rules, or print one: of the draft, where there is one",
    )
    show.add_argument("rule", metavar="RULE", nargs="?", help="print this rule's source")
    show.add_argument("--fleet", metavar="NAME", help="default: the repository's own")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_show)
    status = commands.add_parser(
        "status", parents=[common], help="what is out, what waits for signatures; 1 if anything has expired"
    )
    status.add_argument("--fleet", metavar="NAME", help="default: the repository's own")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_status)


def _register_bundles(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    signing = argparse.ArgumentParser(add_help=False)
    signing.add_argument("--fleet", metavar="NAME", help="default: the repository's own")
    signing.add_argument("--key", type=Path, metavar="KEY.pem", help="sign the draft at once")
    signing.add_argument("--passphrase-file", type=Path, metavar="FILE", help="that of --key")
    signing.add_argument("--version", type=int, metavar="N", help="of the bundle (default: the next)")
    signing.add_argument("--json", action="store_true", help="for programs")

    publish = commands.add_parser(
        "publish",
        parents=[common, signing],
        help="put rules into the next bundle, and give out what is signed; 1 if signatures are missing",
        description="Drafts the next bundle from the last one, with these rules put in or rolled out; "
        "without rules, goes on with the draft. The first bundle begins with the library.",
    )
    publish.add_argument(
        "rules", metavar="RULE", nargs="*", help="a .star file, or a rule of the bundle to roll out further"
    )
    mode = publish.add_mutually_exclusive_group()
    mode.add_argument("--audit", action="store_true", help="tell violations, let nobody refuse for them")
    mode.add_argument("--enforce", action="store_true", help="enforce, whatever the script says")
    publish.add_argument(
        "--as-written",
        action="store_true",
        help="forget how they were rolled out: everywhere, as the script says",
    )
    publish.add_argument("--enforce-from", metavar="TIME", type=moment, help="enforce from then on")
    publish.add_argument("--percent", metavar="N", type=percentage, help="judge on this share of the fleet")
    publish.add_argument(
        "--not-before", metavar="TIME", type=moment, help="judge from then on: +12h, 2027-01-31"
    )
    publish.add_argument("--expires", metavar="TIME", type=moment, help="judge no longer then")
    library = publish.add_mutually_exclusive_group()
    library.add_argument(
        "--library", action="store_true", help="take the library's rules of this installation"
    )
    library.add_argument("--without-library", action="store_true", help="begin the first bundle without them")
    publish.set_defaults(run=_publish)

    withdraw = commands.add_parser(
        "withdraw", parents=[common, signing], help="take a rule out of the bundle"
    )
    withdraw.add_argument("rule", metavar="RULE", help="its name")
    withdraw.add_argument("--reason", required=True, metavar="TEXT", help="why, for whoever reads the bundle")
    withdraw.set_defaults(run=_withdraw)


def _publish(arguments: argparse.Namespace) -> int:
    from affiant.assertions.bundle import library_file
    from affiant.assertions.bundle_file import BundleFile
    from affiant.kernel.facts.registry import FACTS
    from affiant.model.errors import SetupError
    from affiant.publishing.bundles import next_bundle, put_rules
    from affiant.publishing.drafting import bundles_of, draft_bundle, read_rules

    folder = open_folder(arguments.repository)
    with folder.locked():
        fleet = arguments.fleet or folder.settings().fleet
        out, waiting = bundles_of(folder, fleet)
        base = waiting or out
        if arguments.rules or arguments.library or base is None:
            files = [Path(rule) for rule in arguments.rules if rule.endswith(".star")]
            named = [rule for rule in arguments.rules if not rule.endswith(".star")]
            sources, missing = read_rules(files, known_facts=FACTS)
            for problem in missing:
                print(f"warning: {problem}", file=sys.stderr)
            if base is None:
                base = BundleFile(fleet, 1, () if arguments.without_library else library_file().rules)
            elif arguments.library:
                gone = {one.name for one in base.withdrawn}
                library = {rule.name: rule.source for rule in library_file().rules if rule.name not in gone}
                base = put_rules(base, library)
            rules = put_rules(base, sources, named, _rollout(arguments))
            bundle = next_bundle(fleet, rules, former=out, version=arguments.version)
            draft_bundle(folder, bundle, now=current_time())
        elif any(getattr(arguments, option) for option in _ABOUT_RULES):
            raise SetupError("no rule is named", hint="name those that are to be rolled out")
        return _finish(folder, arguments, fleet)


def _withdraw(arguments: argparse.Namespace) -> int:
    from affiant.model.errors import SetupError
    from affiant.publishing.bundles import next_bundle, withdraw_rule
    from affiant.publishing.drafting import bundles_of, draft_bundle

    folder = open_folder(arguments.repository)
    with folder.locked():
        fleet = arguments.fleet or folder.settings().fleet
        out, waiting = bundles_of(folder, fleet)
        base = waiting or out
        if base is None:
            raise SetupError("nothing was published yet", hint="affiant rules publish")
        bundle = withdraw_rule(base, arguments.rule, arguments.reason)
        draft_bundle(
            folder, next_bundle(fleet, bundle, former=out, version=arguments.version), now=current_time()
        )
        return _finish(folder, arguments, fleet)


def _finish(folder: RulesFolder, arguments: argparse.Namespace, fleet: str) -> int:
    """Sign the drafts where a key was given, give out what is complete, and tell what came of it."""
    from affiant.publishing.release import release
    from affiant.publishing.signing import sign
    from affiant.publishing.telling import draft_lines, status_of

    if arguments.key is not None:
        latest, draft = folder.latest_root(), folder.drafted()
        sign(draft, latest, open_signer(arguments.key, arguments.passphrase_file))
        for metadata in (draft.root, draft.targets):
            if metadata is not None:
                folder.save_draft(metadata)
    waiting = status_of(folder, fleet=fleet, now=current_time())["draft"]
    made = release(folder, now=current_time())
    status = status_of(folder, fleet=fleet, now=current_time())
    if arguments.json:
        print(json.dumps({"published": [] if made is None else list(made.roles)} | status, indent=2))
    elif made is not None:
        if waiting["bundle"] is not None and "targets" in made.roles:
            print("\n".join(draft_lines(waiting | {"signatures": []})).replace("draft: ", "", 1))
        print(f"published: {', '.join(made.roles)}")
    left = draft_lines(status["draft"])
    if left and not arguments.json:
        print("\n".join(left))
    if made is None and not left and not arguments.json:
        print("there is nothing to publish")
    return 1 if left or made is None else 0


def _renew(arguments: argparse.Namespace) -> int:
    from affiant.publishing.drafting import draft_targets

    if arguments.role == "root":
        return change_root(arguments, lambda _: None, "it lasts longer")
    folder = open_folder(arguments.repository)
    with folder.locked():
        draft_targets(folder, now=current_time())
    print("the targets are drafted anew; next: affiant rules sign, by their signers")
    return 0


def _refresh(arguments: argparse.Namespace) -> int:
    from affiant.publishing.release import refresh

    folder = open_folder(arguments.repository)
    with folder.locked():
        made = refresh(folder, now=current_time())
    print("signed anew: " + ", ".join(path.rpartition("/")[2] for path in made.paths))
    return 0


def _discard(arguments: argparse.Namespace) -> int:
    from affiant.publishing.drafting import discard

    folder = open_folder(arguments.repository)
    with folder.locked():
        discard(folder)
    print("all drafts are forgotten")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from affiant.assertions.near_names import near_names
    from affiant.model.errors import SetupError
    from affiant.publishing.bundles import told_rollout
    from affiant.publishing.drafting import bundles_of

    folder = open_folder(arguments.repository)
    out, waiting = bundles_of(folder, arguments.fleet or folder.settings().fleet)
    bundle = waiting or out
    if bundle is None:
        raise SetupError("nothing was published yet", hint="affiant rules publish")
    rules = {rule.name: rule for rule in bundle.rules}
    if arguments.rule is not None and arguments.rule not in rules:
        hint = near_names(arguments.rule, rules)
        raise SetupError(f"the bundle has no rule {arguments.rule!r}", hint=hint)
    chosen = [rule for name, rule in rules.items() if arguments.rule in (None, name)]
    if arguments.json:
        print(
            json.dumps([asdict(rule) | {"rollout": told_rollout(rule.rollout)} for rule in chosen], indent=2)
        )
    elif arguments.rule is not None:
        print(chosen[0].source, end="")
    else:
        for rule in chosen:
            print(f"{rule.name}: {told_rollout(rule.rollout)}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from affiant.publishing.telling import status_lines, status_of

    folder = open_folder(arguments.repository)
    status = status_of(folder, fleet=arguments.fleet or folder.settings().fleet, now=current_time())
    print(json.dumps(status, indent=2) if arguments.json else "\n".join(status_lines(status)))
    return 1 if status["expired"] else 0


def _rollout(arguments: argparse.Namespace) -> Callable[[Rollout], Rollout]:
    """Return what the options make of a rule's roll-out: what they do not speak of stays."""
    from affiant.assertions.rollout import EVERYWHERE
    from affiant.model.outcome import Mode

    stated = {
        name: getattr(arguments, name)
        for name in ("enforce_from", "percent", "not_before", "expires")
        if getattr(arguments, name) is not None
    }
    if arguments.audit or arguments.enforce:
        stated = {"enforce_from": None} | stated | {"mode": Mode.AUDIT if arguments.audit else Mode.ENFORCE}
    return lambda former: replace(EVERYWHERE if arguments.as_written else former, **stated)
