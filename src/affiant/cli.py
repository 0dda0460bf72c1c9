"""The `affiant` command: finds the door that a subcommand belongs to, and tells errors to people.

Each door has a module `commands` with `register(subcommands)`; it imports what it runs only when
it runs, so that a base install (no extras) can verify passports.

Exit codes, for every subcommand: 0 done or accepted; 1 refused, violated or not as expected;
2 unusable input or usage; 3 something outside Affiant failed and trying again may help; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from affiant import __version__
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["build_parser", "main"]

# In the order in which `affiant --help` lists them.
_DOORS = (
    "demo",
    "vm",
    "inspect",
    "relying_party",
    "boot",
    "trial",
    "publishing",
    "kernel",
    "service",
    "launcher",
    "relay",
)


_DESCRIPTION = "Runtime attestation for Linux virtual machines."
_EPILOG = "exit codes: 0 done or accepted; 1 refused; 2 unusable input or usage; 3 something outside failed"


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line; building it imports no optional dependency."""
    parser = argparse.ArgumentParser(prog="affiant", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"affiant {__version__}")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for door in _DOORS:
        importlib.import_module(f"affiant.{door}.commands").register(subcommands)
    completion = subcommands.add_parser(
        "completion",
        help="print a shell's completion of this command",
        description="Prints a completion script: source <(affiant completion bash)",
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=_completion)
    _tell_themselves(parser)
    return parser


def _tell_themselves(parser: argparse.ArgumentParser) -> None:
    """Let each parser say that it was the one: the words it does not know are told with its own usage."""
    parser.set_defaults(parser=parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _tell_themselves(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; errors become one line and a hint."""
    arguments, unknown = build_parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # so that a reader that has left is met here
    except UnavailableError as error:
        return _tell(error, 3)
    except AffiantError as error:
        return _tell(error, 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("affiant"):
            raise
        print(f"error: this command needs the Python package {error.name!r}", file=sys.stderr)
        print("hint: pip install 'affiant[monitor,service]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`affiant verify ... | head`); say nothing more there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(), shell=arguments.shell))
    return 0


def _tell(error: AffiantError, code: int) -> int:
    print(f"error: {_printable(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"hint: {_printable(error.hint)}", file=sys.stderr)
    return code


def _printable(text: str) -> str:
    """A relay's or a guest's words may be in a message: none of them reaches the terminal as a command."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


if __name__ == "__main__":
    sys.exit(main())
