"""`affiant inspect`: what the monitor would see of a guest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.inspect.pages import PAGES

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.inspect.look import Target

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `inspect`."""
    pages = "\n".join(f"  {name:<10} {page.summary}" for name, page in PAGES.items())
    parser = subcommands.add_parser(
        "inspect",
        help="what the monitor sees of a guest",
        description=f"Looks at a running guest from outside, and judges nothing.\n\npages:\n{pages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("page", nargs="?", choices=list(PAGES), default="overview", metavar="PAGE")
    parser.add_argument("--vm", metavar="NAME", help="a machine that `affiant vm` started")
    parser.add_argument("--ram", type=Path, metavar="FILE", help="the RAM file of another machine")
    parser.add_argument("--qmp", type=Path, metavar="SOCKET", help="its QMP socket")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="reference image of its kernel")
    parser.add_argument(
        "--below-4g", type=int, metavar="BYTES", help="RAM below 4 GiB, where it is not q35's default"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from affiant.inspect.look import look_at
    from affiant.inspect.pages import render

    look = look_at(_target(arguments), PAGES[arguments.page].facts)
    if arguments.json:
        print(json.dumps(look.to_json(), indent=2))
    else:
        from rich.console import Console

        render(look, arguments.page, Console())
    return 3 if look.reason else 0


def _target(arguments: argparse.Namespace) -> Target:
    from dataclasses import replace

    from affiant.inspect.look import Target, machine_target
    from affiant.model.errors import SetupError

    if arguments.vm is not None:
        if arguments.ram is not None or arguments.qmp is not None:
            raise SetupError("--vm already says where RAM and QMP are", hint="leave --ram and --qmp out")
        target = machine_target(arguments.vm)
        return target if arguments.reference is None else replace(target, reference=arguments.reference)
    if None in (arguments.ram, arguments.qmp, arguments.reference):
        raise SetupError("no machine is named", hint="give --vm NAME, or all of --ram, --qmp and --reference")
    try:
        size = arguments.ram.stat().st_size
    except OSError as error:
        raise SetupError(f"the RAM file {arguments.ram} cannot be read: {error.strerror}") from error
    return Target(
        str(arguments.ram), arguments.ram, arguments.qmp, arguments.reference, size, arguments.below_4g
    )
