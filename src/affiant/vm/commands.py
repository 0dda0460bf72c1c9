"""`affiant vm ...` and `affiant report`: virtual machines on this host."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.vm.state import VmState

__all__ = ["register"]

_LONGEST_AUDIENCE = 256  # characters, as a runtime report names it
_WAIT_DEFAULT = 300.0  # seconds; an emulated boot through Secure Boot takes 20 to 60


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `vm` with its commands, and `report`."""
    vm = subcommands.add_parser("vm", help="virtual machines on this host, run under the launcher")
    commands = vm.add_subparsers(required=True, metavar="COMMAND")
    _register_start(commands)

    listing = commands.add_parser("list", help="all machines, running or not")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="one machine's paths, sizes and state")
    show.add_argument("name", metavar="NAME", help="the machine's name")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_show)

    console = commands.add_parser(
        "console",
        help="the guest's serial console; leave with Ctrl-]",
        description="Joins this terminal with the guest's console. With a pipe, types what comes in.",
    )
    console.add_argument("name", metavar="NAME", help="the machine's name")
    console.add_argument(
        "--linger",
        type=float,
        default=2.0,
        metavar="S",
        help="with a pipe: end after this many seconds of silence (default: %(default)s)",
    )
    console.set_defaults(run=_console)

    stop = commands.add_parser("stop", help="stop machines; their folders stay")
    _add_names(stop)
    stop.set_defaults(run=_stop)

    remove = commands.add_parser("rm", help="stop machines and remove their folders")
    _add_names(remove)
    remove.set_defaults(run=_remove)

    _register_report(subcommands)


def _register_start(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    start = commands.add_parser("start", help="start a machine")
    start.add_argument("name", metavar="NAME", help="what the machine is called")
    start.add_argument("--kernel", type=Path, metavar="DEB|VMLINUZ", help="default: Debian's cloud kernel")
    start.add_argument(
        "--suite", metavar="SUITE", help="Debian suite of the default kernel, e.g. trixie or sid"
    )
    start.add_argument("--initrd", type=Path, metavar="FILE", help="default: a small busybox system")
    start.add_argument("--disk", type=Path, metavar="IMAGE", help="a raw disk image, or qcow2 by its suffix")
    start.add_argument("--memory", default="1G", metavar="SIZE", help="default: %(default)s")
    start.add_argument("--cpus", type=int, default=2, metavar="N", help="default: %(default)s")
    start.add_argument(
        "--secure-boot",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="firmware with Microsoft's keys that enforces signatures (default: yes)",
    )
    start.add_argument("--tpm", action=argparse.BooleanOptionalAction, default=True, help="default: yes")
    start.add_argument(
        "--direct", action="store_true", help="boot the kernel without firmware: quick, nothing is measured"
    )
    start.add_argument("--append", default="", metavar="WORDS", help="more of the kernel's command line")
    start.add_argument("--service", metavar="URL", help="the attestation service")
    start.add_argument("--service-root", type=Path, metavar="PEM", help="its root certificate")
    start.add_argument(
        "--rules-root", type=Path, metavar="FILE", help="take rules published under this root file"
    )
    start.add_argument("--rules", metavar="URL", help="their repository (default: the service's)")
    start.add_argument(
        "--fleet",
        default="default",
        metavar="NAME",
        help="the fleet whose rules judge it (default: %(default)s)",
    )
    start.add_argument(
        "--rules-interval",
        type=int,
        default=5,
        metavar="S",
        help="ask for newer rules every S seconds, and when the service tells of some (default: %(default)s)",
    )
    start.add_argument(
        "--debug-monitor", action="store_true", help="a monitor that may be inspected: its level suffers"
    )
    start.add_argument(
        "--keep-facts",
        type=int,
        default=0,
        metavar="N",
        help="keep the last N records of what the monitor saw, for rules written later (default: none)",
    )
    start.add_argument(
        "--keep-facts-seconds",
        type=int,
        default=600,
        metavar="S",
        help="make a record so often (default: %(default)s), and at each new violation",
    )
    start.add_argument(
        "--facts-key",
        type=Path,
        metavar="PEM",
        help="seal them to this public key: affiant assertions facts-key",
    )
    start.add_argument("--wait", action="store_true", help="until the guest's shell is ready")
    start.add_argument("--json", action="store_true", help="print the machine's state as JSON")
    start.set_defaults(run=_start)


def _register_report(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    report = subcommands.add_parser(
        "report",
        help="ask a machine for a passport over your nonce",
        description="Asks a machine for a passport. It is evidence: check it with `affiant verify`.",
    )
    report.add_argument("--vm", required=True, metavar="NAME", help="the machine")
    report.add_argument("--nonce", required=True, metavar="HEX", help="32 bytes of your own, 64 hex digits")
    report.add_argument(
        "--audience", default="", metavar="NAME", help="who you are, as the passport shall say"
    )
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    report.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds to wait for a session of a booting machine",
    )
    report.set_defaults(run=_report)


def _add_names(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("names", nargs="*", default=[], metavar="NAME", help="machines")
    group.add_argument("--all", action="store_true", help="every machine there is")


def _start(arguments: argparse.Namespace) -> int:
    from affiant.vm.interruption import end_on_signals
    from affiant.vm.machine import parse_memory
    from affiant.vm.ready import wait_for_guest
    from affiant.vm.start import VmRequest, start_machine
    from affiant.vm.stop import stop_machine

    request = VmRequest(
        name=arguments.name,
        kernel=arguments.kernel,
        suite=arguments.suite,
        initrd=arguments.initrd,
        disk=arguments.disk,
        memory_bytes=parse_memory(arguments.memory),
        cpus=arguments.cpus,
        firmware=not arguments.direct,
        secure_boot=arguments.secure_boot,
        tpm=arguments.tpm,
        append=arguments.append,
        service=arguments.service,
        service_root=arguments.service_root,
        rules_root=arguments.rules_root,
        rules=arguments.rules,
        fleet=arguments.fleet,
        rules_interval_ms=1_000 * arguments.rules_interval,
        debug=arguments.debug_monitor,
        keep_facts=arguments.keep_facts,
        keep_facts_seconds=arguments.keep_facts_seconds,
        facts_key=arguments.facts_key,
    )
    with end_on_signals():
        state = start_machine(request, progress=_tell)
        if arguments.wait:
            _tell("waiting for the guest")
            try:
                wait_for_guest(state, timeout=_WAIT_DEFAULT)
            except (KeyboardInterrupt, SystemExit):
                stop_machine(state.name)  # interrupted: as if it had not been started
                raise
    _print_state(state, as_json=arguments.json)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from affiant.model.errors import AffiantError
    from affiant.vm.state import VmState, list_machines

    rows = []
    for name in list_machines():
        try:
            rows.append(VmState.load(name).to_json())
        except AffiantError as error:
            rows.append({"name": name, "state": "unusable", "error": str(error)})
    if arguments.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print("none; next: affiant vm start NAME")
    for row in [] if arguments.json else rows:
        kernel, memory = row.get("kernel_release", ""), row.get("memory_bytes", 0) >> 20
        print(f"{row['name']:<20} {row['state']:<12} {memory:>6} MiB  {kernel}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from affiant.vm.state import VmState

    _print_state(VmState.load(arguments.name), as_json=arguments.json)
    return 0


def _console(arguments: argparse.Namespace) -> int:
    from affiant.vm.console import join_console
    from affiant.vm.state import VmState

    join_console(VmState.load(arguments.name).console_socket, linger=arguments.linger)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from affiant.vm.state import list_machines
    from affiant.vm.stop import stop_machine

    for name in list_machines() if arguments.all else arguments.names:
        print(f"{name}: {'stopped' if stop_machine(name) else 'was not running'}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from affiant.vm.state import list_machines
    from affiant.vm.stop import remove_machine

    for name in list_machines() if arguments.all else arguments.names:
        remove_machine(name)
        print(f"{name}: removed")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from affiant.model.errors import SetupError
    from affiant.vm.report import NONCE_SIZE, ask_for_passport
    from affiant.vm.state import VmState

    try:
        nonce = bytes.fromhex(arguments.nonce)
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_SIZE:
        raise SetupError(
            f"a nonce is {NONCE_SIZE} bytes, written as {2 * NONCE_SIZE} hex digits",
            hint="for example from: openssl rand -hex 32",
        )
    if len(arguments.audience) > _LONGEST_AUDIENCE or not arguments.audience.isprintable():
        raise SetupError(f"an audience has up to {_LONGEST_AUDIENCE} printable characters")
    if arguments.output is None and sys.stdout.isatty():
        raise SetupError(
            "a passport is binary and not for a terminal", hint="write it to a file with -o FILE"
        )
    state = VmState.load(arguments.vm)
    if not state.running:
        raise SetupError(
            f"the virtual machine {state.name!r} is not running", hint=f"affiant vm start {state.name}"
        )
    if state.service is None:
        raise SetupError(
            f"{state.name!r} runs without an attestation service, so nothing vouches for it",
            hint="start it with --service URL --service-root PEM",
        )
    passport = ask_for_passport(
        state.passport_socket, nonce=nonce, audience=arguments.audience, wait=arguments.wait
    )
    if arguments.output:
        arguments.output.write_bytes(passport)
    else:
        sys.stdout.buffer.write(passport)
    return 0


def _print_state(state: VmState, *, as_json: bool) -> None:
    values = state.to_json()
    if as_json:
        print(json.dumps(values, indent=1))
        return
    for name, value in values.items():
        if value not in (None, [], {}, ""):
            print(f"{name:<18} {value}")


def _tell(step: str) -> None:
    print(f"... {step}", file=sys.stderr)
