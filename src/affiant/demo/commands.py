"""`affiant demo`: the whole chain in one command."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.demo.story import DemoSettings, Step, Teller
    from affiant.vm.state import VmState

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`."""
    demo = subcommands.add_parser(
        "demo",
        help="attest a real virtual machine, tamper with it, see it refused",
        description="Boots a virtual machine through Secure Boot under the launcher, attests it while it "
        "runs, tampers with its kernel in memory, and shows how a relying party refuses it.",
        epilog="exit code: 0 the chain held, 2 a link did not behave as it must, 3 something was missing",
    )
    demo.add_argument("--name", default="demo", metavar="NAME", help="of the machine (default: %(default)s)")
    demo.add_argument("--keep", action="store_true", help="leave everything running, and say what to try")
    demo.add_argument("--json", action="store_true", help="print steps, times and decisions as JSON")
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from affiant.demo.screen import Screen
    from affiant.demo.story import DemoSettings, Teller, run_demo
    from affiant.vm.interruption import end_on_signals

    settings = DemoSettings(name=arguments.name, keep=arguments.keep)
    told = sys.stderr if arguments.json else sys.stdout
    screen = Screen(told)
    teller = Teller(begin=screen.begin, note=screen.note, end=screen.end, show=screen.show)
    started = time.monotonic()
    try:
        with end_on_signals():
            state = run_demo(settings, teller)
    finally:
        screen.close()
    seconds = time.monotonic() - started
    if arguments.json:
        print(json.dumps(_as_json(teller, state, seconds), indent=1))
    else:
        screen.summarise(teller.steps, seconds)
    if settings.keep:
        _say_what_to_try(settings, state, teller, told)
    return 0


def _as_json(teller: Teller, state: VmState, seconds: float) -> dict[str, Any]:
    from affiant.relying_party.page import as_json

    return {
        "vm": state.name,
        "kernel": state.kernel_release,
        "acceleration": state.acceleration,
        "seconds": round(seconds, 3),
        "steps": [_step_json(step) for step in teller.steps],
        "passports": [
            {
                "label": shown.label,
                "nonce": shown.nonce.hex(),
                "passport": shown.passport.hex(),
                **as_json(shown.verified, shown.decision),
            }
            for shown in teller.passports
        ],
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "title": step.title,
        "proved": step.proved,
        "seconds": round(step.seconds, 3),
        "command": step.command,
    }


def _say_what_to_try(settings: DemoSettings, state: VmState, teller: Teller, told: Any) -> None:
    root = settings.service_folder / "root.pem"
    healthy = teller.passports[0]
    # A runtime report is valid for five minutes, which the reader may need to get here.
    then = datetime.fromtimestamp(healthy.verified.verified_at, UTC).isoformat()
    affiant = _how_we_were_called()
    print(
        f"""
Everything is still running. Try:
  {affiant} report --vm {state.name} --nonce $(openssl rand -hex 32 | tee nonce) -o passport
  {affiant} verify passport --root {root} --nonce $(cat nonce)
  {affiant} verify {state.folder / "passport.cbor"} --root {root} --nonce {healthy.nonce.hex()} --now {then}
  {affiant} inspect --vm {state.name}
  {affiant} vm console {state.name}        (leave with Ctrl-])
  {affiant} service sessions --folder {settings.service_folder}
  {affiant} vm stop {state.name}; kill {_service_pid(settings)}""",
        file=told,
    )


def _how_we_were_called() -> str:
    """Return what to type for this very program: after `make demo` its folder is not in PATH."""
    own = Path(sys.argv[0])
    if own.name != "affiant":
        return f"{sys.executable} -m affiant.cli"
    found = shutil.which("affiant")
    return "affiant" if found and Path(found).samefile(own) else str(own)


def _service_pid(settings: DemoSettings) -> int:
    return int(json.loads((settings.service_folder / "ready.json").read_text())["pid"])
