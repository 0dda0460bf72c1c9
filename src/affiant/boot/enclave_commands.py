"""`affiant enclave`: reports that a secure kernel signed, of an enclave or of the kernel beside it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from affiant.boot.text import json_text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.tpm.windows.identity_key import IdentityKey

__all__ = ["register_enclave"]

_ENDING: Final = "exit code: 0 explained, 1 refused (forged evidence), 2 unusable input or usage"
_LARGEST_REPORT: Final = 1 << 22  # what the readers of packages take at most


def register_enclave(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `enclave`."""
    enclave = subcommands.add_parser(
        "enclave", help="explain a VBS enclave's attestation report, or a Windows kernel's runtime reports"
    )
    actions = enclave.add_subparsers(dest="action", required=True, metavar="ACTION")
    explain = actions.add_parser(
        "explain",
        help="who signed a report, and what it says",
        description="Explain the report package of a VBS enclave (EnclaveGetAttestationReport), or of a "
        "running kernel (GetRuntimeAttestationReport); which of them it is, the file tells.",
        epilog=_ENDING,
    )
    explain.add_argument("report", metavar="FILE", help="the report package; - reads standard input")
    key = explain.add_mutually_exclusive_group()
    key.add_argument("--identity-key", metavar="FILE", help="the machine's IDKS, a public key (PEM or DER)")
    key.add_argument(
        "--certificate", metavar="FILE", help="a certificate over the IDKS that you trust (PEM or DER)"
    )
    explain.add_argument(
        "--enclave-data",
        type=_enclave_data,
        metavar="HEX",
        help="the 64 bytes that an enclave's report must bind",
    )
    explain.add_argument(
        "--nonce", type=_runtime_nonce, metavar="HEX", help="the 32 bytes that runtime reports must answer"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_run_enclave)


def _run_enclave(arguments: argparse.Namespace) -> int:
    from affiant.boot.enclave import enclave_as_json, enclave_page, explain_enclave, parse_identity_key
    from affiant.boot.files import read_file
    from affiant.boot.runtime_reports import is_runtime_package
    from affiant.model.errors import SetupError

    package = read_file(arguments.report, limit=_LARGEST_REPORT, what="report package")
    named = arguments.identity_key or arguments.certificate
    key = None if named is None else parse_identity_key(read_file(named, limit=1 << 14, what="identity key"))
    if is_runtime_package(package):
        return _run_runtime_reports(arguments, package, key)
    if arguments.nonce is not None:
        raise SetupError(
            "an enclave's report answers no nonce", hint="name what it binds, with --enclave-data"
        )
    explanation = explain_enclave(package, identity_key=key, enclave_data=arguments.enclave_data)
    if arguments.json:
        print(json_text(enclave_as_json(explanation)))
    else:
        print("\n".join(enclave_page(explanation)))
    return 0 if explanation.refused is None else 1


def _run_runtime_reports(arguments: argparse.Namespace, package: bytes, key: IdentityKey | None) -> int:
    from affiant.boot.runtime_reports import (
        explain_runtime_reports,
        runtime_reports_as_json,
        runtime_reports_page,
    )
    from affiant.model.errors import SetupError

    if arguments.enclave_data is not None:
        raise SetupError("runtime reports bind no enclave data", hint="name what they answer, with --nonce")
    explanation = explain_runtime_reports(package, identity_key=key, nonce=arguments.nonce)
    if arguments.json:
        print(json_text(runtime_reports_as_json(explanation)))
    else:
        print("\n".join(runtime_reports_page(explanation)))
    return 0 if explanation.refused is None else 1


def _enclave_data(text: str) -> bytes:
    return _sized_hex(text, 64)


def _runtime_nonce(text: str) -> bytes:
    return _sized_hex(text, 32)


def _sized_hex(text: str, size: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not hexadecimal") from None
    if len(data) != size:
        raise argparse.ArgumentTypeError(f"{len(data)} bytes instead of {size}")
    return data
