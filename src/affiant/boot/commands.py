"""`affiant boot`, `affiant enclave` and `affiant policy`: boot evidence in files, explained and judged.

Exit codes: 0 explained, or accepted; 1 refused: the evidence is forged, or the policy refuses; 2 unusable
input or usage; 3 reading failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from affiant.boot.enclave_commands import register_enclave
from affiant.boot.text import json_text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.appraisal.policy import AppraisalPolicy
    from affiant.appraisal.policy_file import NamedPolicy
    from affiant.boot.evidence import BootEvidence
    from affiant.boot.explain import Explanation

__all__ = ["register"]

_ENDING = "exit code: 0 explained, 1 refused (forged evidence, or by the policy), 2 unusable input or usage"


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `boot`, `enclave` and `policy`."""
    _register_boot(subcommands)
    register_enclave(subcommands)
    _register_policy(subcommands)


def _register_boot(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    boot = subcommands.add_parser("boot", help="explain a machine's boot event log, of Linux or Windows")
    actions = boot.add_subparsers(dest="action", required=True, metavar="ACTION")
    explain = actions.add_parser(
        "explain",
        help="what a log tells, how much of it is proven, and the level it deserves",
        description="Explain a boot event log. Without a quote, its signature, key and nonce nothing in it "
        "is proven, and everything is shown as untrusted.",
        epilog=_ENDING,
    )
    _add_evidence(explain)
    explain.add_argument(
        "--ima", metavar="FILE", help="IMA's list, binary_runtime_measurements, to replay onto PCR 10"
    )
    explain.add_argument(
        "--cel", metavar="FILE", help="systemd's log of what it measured, /run/log/systemd/tpm2-measure.log"
    )
    explain.add_argument("--policy", metavar="FILE", help="hold the boot against this policy too")
    explain.add_argument("--events", action="store_true", help="list every event of the log")
    explain.add_argument("--json", action="store_true", help="print JSON, with the trust of every field")
    explain.set_defaults(run=_refusing(_run_explain))


def _register_policy(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    policy = subcommands.add_parser("policy", help="make, compare and try appraisal policies")
    actions = policy.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = actions.add_parser(
        "init",
        help="a policy that accepts one machine's boot, with comments",
        description="Write a policy that accepts the boot of a log. It is as good as the log: give a quote, "
        "or take the log from a machine that you trust.",
    )
    init.add_argument(
        "--from-log", required=True, dest="log", metavar="LOG", help="a log or bundle of the boot"
    )
    _add_proof(init)
    init.add_argument(
        "--launch-record",
        metavar="FILE",
        help="accept the monitor of this launch record too (`launch.record` in a machine's folder)",
    )
    init.add_argument(
        "--output", metavar="FILE", help="write here instead of standard output; never overwrites"
    )
    init.set_defaults(run=_refusing(_run_init))
    diff = actions.add_parser(
        "diff",
        help="what an update changed, in words",
        description="Say in words how two policies differ. OLD and NEW may also be logs: the policy that "
        "`affiant policy init` would make of them is compared.",
        epilog="exit code: 0 told, and NEW accepts LOG if there is one; 1 NEW refuses LOG; 2 unusable input",
    )
    diff.add_argument("old", metavar="OLD", help="a policy, or a log")
    diff.add_argument("new", metavar="NEW", help="a policy, or a log")
    diff.add_argument("log", metavar="LOG", nargs="?", help="a log for names, and to try both policies on")
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(run=_refusing(_run_diff))
    check = actions.add_parser(
        "check",
        help="read a policy strictly, and hold a log against it",
        epilog="exit code: 0 well-formed, and the log is accepted; 1 the log is refused; 2 unusable input",
    )
    check.add_argument("policy", metavar="POLICY")
    check.add_argument(
        "log", metavar="LOG", nargs="?", help="a log or bundle; without it only the policy is read"
    )
    _add_proof(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_refusing(_run_check))


def _add_evidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="the event log, or a JSON bundle; - reads standard input")
    _add_proof(parser)


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pcrs", metavar="FILE", help="PCR values, JSON or lines of `0: 3d45..`")
    parser.add_argument("--quote", metavar="FILE", help="the quote (TPMS_ATTEST)")
    parser.add_argument("--signature", metavar="FILE", help="its signature (TPMT_SIGNATURE)")
    parser.add_argument(
        "--ak",
        metavar="FILE",
        help="the attestation key (TPM2B_PUBLIC), for which you vouch; without a "
        "quote, the key of the trust point with which a log of Windows ends",
    )
    parser.add_argument(
        "--nonce", type=_hex, metavar="HEX", help="what the quote must answer; '' for nothing"
    )
    parser.add_argument(
        "--unsafe-accept-sha1", action="store_true", help="let SHA-1 count as proof, as on old machines"
    )


def _refusing(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Let `run` refuse a log of which nothing can be told, because it contradicts itself."""

    def refuse(arguments: argparse.Namespace) -> int:
        from affiant.boot.text import printable
        from affiant.model.errors import ForgedError

        try:
            return run(arguments)
        except ForgedError as error:
            if getattr(arguments, "json", False):
                print(json_text({"refused": str(error)}))
            else:
                print(f"REFUSED: {printable(str(error))}")
            return 1

    return refuse


def _run_explain(arguments: argparse.Namespace) -> int:
    from affiant.boot.as_json import explanation_as_json
    from affiant.boot.confidential import (
        confidential_as_json,
        confidential_page,
        explain_confidential_log,
    )
    from affiant.boot.page import explanation_page

    evidence = _read_evidence(arguments)
    confidential = explain_confidential_log(evidence.log)
    if confidential is not None:
        _refuse_further_evidence(arguments)
        if arguments.json:
            print(json_text(confidential_as_json(confidential, log=evidence.log, events=arguments.events)))
        else:
            print("\n".join(confidential_page(confidential, events=arguments.events)))
        return 0
    named = None if arguments.policy is None else _read_policy(arguments.policy)
    policy = None if named is None else named.policy
    explanation = _explain_evidence(arguments, evidence, policy)
    if arguments.json:
        print(
            json_text(
                explanation_as_json(explanation, log=evidence.log, policy=policy, events=arguments.events)
            )
        )
    else:
        print("\n".join(explanation_page(explanation, events=arguments.events)))
    return 0 if explanation.is_welcome else 1


def _run_init(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from affiant.boot.files import read_file
    from affiant.boot.policies import policy_text
    from affiant.model.errors import SetupError
    from affiant.wire.launch_record import MAX_LAUNCH_RECORD

    explanation, log = _explain(arguments, None)
    if explanation.refused is not None:
        print(f"REFUSED: {explanation.refused}", file=sys.stderr)
        return 1
    record = None
    if arguments.launch_record is not None:
        record = read_file(arguments.launch_record, limit=MAX_LAUNCH_RECORD, what="launch record")
    text = policy_text(explanation, log=log, launch_record=record)
    if arguments.output is None:
        print(text, end="")
        return 0
    try:
        with Path(arguments.output).open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SetupError(f"cannot write {arguments.output}: {error.strerror}") from None
    return 0


def _run_diff(arguments: argparse.Namespace) -> int:
    from affiant.boot.policies import compare, comparison_as_json, comparison_lines

    comparison = compare(arguments.old, arguments.new, log=arguments.log)
    if arguments.json:
        print(json_text(comparison_as_json(comparison)))
    else:
        print("\n".join(comparison_lines(comparison)))
    return 0 if comparison.new_verdict is None or comparison.new_verdict.accepted else 1


def _run_check(arguments: argparse.Namespace) -> int:
    from affiant.appraisal.policy import policy_digest
    from affiant.boot.as_json import verdict_as_json
    from affiant.boot.page import verdict_lines
    from affiant.model.errors import SetupError

    policy = _read_policy(arguments.policy).policy
    if arguments.log is None:
        if arguments.pcrs or arguments.quote:
            raise SetupError("PCR values and a quote are held against a log, and there is none")
        if arguments.json:
            print(json_text({"digest": policy_digest(policy).hex()}))
        else:
            print(f"well-formed; digest {policy_digest(policy).hex()}")
        return 0
    explanation, _ = _explain(arguments, policy)
    assert explanation.verdict is not None  # noqa: S101 - a policy was given, so there is one
    if arguments.json:
        verdict = verdict_as_json(explanation.verdict, explanation.description, policy)
        print(json_text({"refused": explanation.refused} | verdict))
    else:
        if explanation.refused is not None:
            print(f"REFUSED: {explanation.refused}")
        print("\n".join(verdict_lines(explanation.verdict, proven=explanation.description.is_proven)))
    return 0 if explanation.is_welcome else 1


def _refuse_further_evidence(arguments: argparse.Namespace) -> None:
    """What speaks of PCRs says nothing of a confidential machine's registers."""
    from affiant.model.errors import SetupError

    names = ("pcrs", "quote", "signature", "ak", "nonce", "ima", "cel", "policy")
    if given := [f"--{name}" for name in names if getattr(arguments, name) is not None]:
        raise SetupError(
            f"the log is of a confidential machine's registers, of which {', '.join(given)} says nothing",
            hint="explain it without; only logs of a TPM can be verified and judged here",
        )


def _explain(arguments: argparse.Namespace, policy: AppraisalPolicy | None) -> tuple[Explanation, bytes]:
    from affiant.boot.confidential import explain_confidential_log
    from affiant.model.errors import SetupError

    evidence = _read_evidence(arguments)
    if explain_confidential_log(evidence.log) is not None:
        raise SetupError(
            "the log is of a confidential machine's registers, and policies are about PCRs",
            hint="`affiant boot explain` tells what it says",
        )
    return _explain_evidence(arguments, evidence, policy), evidence.log


def _read_evidence(arguments: argparse.Namespace) -> BootEvidence:
    from affiant.boot.evidence import read_boot_evidence

    return read_boot_evidence(
        arguments.log,
        pcrs=arguments.pcrs,
        quote=arguments.quote,
        signature=arguments.signature,
        attestation_key=arguments.ak,
        ima_list=getattr(arguments, "ima", None),
        userspace_log=getattr(arguments, "cel", None),
    )


def _explain_evidence(
    arguments: argparse.Namespace, evidence: BootEvidence, policy: AppraisalPolicy | None
) -> Explanation:
    from affiant.boot.explain import explain_boot

    return explain_boot(
        evidence, nonce=arguments.nonce, policy=policy, unsafe_accept_sha1=arguments.unsafe_accept_sha1
    )


def _read_policy(path: str) -> NamedPolicy:
    from affiant.appraisal.policy_file import MAXIMUM_POLICY, parse_policy
    from affiant.boot.files import read_file

    return parse_policy(read_file(path, limit=MAXIMUM_POLICY, what="policy"))


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not hexadecimal") from None
