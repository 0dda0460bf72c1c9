"""Runs inside Keylime's own environment: one task at a time, told on stdin, its CPU time told on stdout.

The first line is a JSON object with the inputs, every other the name of a task: `boot` (quote, log and
policy) or `ima`. The answer to each is the CPU time in seconds, children included, since Keylime has the
log decoded by the program tpm2_eventlog. Nothing of Affiant is imported here.
"""

from __future__ import annotations

import argparse
import base64
import copy
import gc
import json
import logging
import os
import resource
import struct
import sys
import tempfile
import types

logging.disable(logging.CRITICAL)
# Keylime signs policies with this module; it is no package of PyPI's, and nothing here signs.
sys.modules["gpg"] = types.ModuleType("gpg")

from keylime.common.algorithms import Hash  # noqa: E402 - after the module that it wants is there
from keylime.ima import ima  # noqa: E402
from keylime.mba import mba  # noqa: E402
from keylime.policy import create_mb_policy  # noqa: E402
from keylime.tpm.tpm_main import Tpm  # noqa: E402


def main() -> None:
    """Answer until stdin ends."""
    given = json.loads(sys.stdin.readline())
    mba.load_imports(skip_custom_policies=True)
    tasks = {"boot": boot_task(given), "ima": ima_task(given)}
    for task in tasks.values():
        task()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        before = cpu_seconds()
        tasks[line.strip()]()
        print(cpu_seconds() - before, flush=True)


def cpu_seconds() -> float:
    """User and system time of this process and of the children that ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def boot_task(given):
    """Keylime's check of a quote with a measured boot log, under a policy that it made of that log."""
    log = base64.b64decode(given["log"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(log)
        file.flush()
        arguments = argparse.Namespace(eventlog_file=file.name, without_secureboot=False, output=os.devnull)
        policy = json.dumps(create_mb_policy.create_mb_refstate(arguments))
    values = [
        bytes.fromhex(value) for _, value in sorted(given["pcrs"].items(), key=lambda pair: int(pair[0]))
    ]
    parts = (given["attest"], given["signature"], base64.b64encode(pcr_blob(values, given["pcrs"])).decode())
    quote = "r" + ":".join(parts)

    def run():
        failure = Tpm().check_quote(
            None,
            given["nonce"],
            None,
            quote,
            given["attestation_key"],
            hash_alg=Hash.SHA256,
            mb_measurement_list=given["log"],
            mb_policy=policy,
            mb_policy_name="example",
            skip_clock_check=True,
        )
        if failure:
            raise SystemExit(f"Keylime refuses: {[event.context for event in failure.events]}")

    return run


def pcr_blob(values, pcrs):
    """The values in the form in which tpm2-tools write them: structures as they lie in memory."""
    bitmap = sum(1 << int(pcr) for pcr in pcrs).to_bytes(3, "little")
    blob = struct.pack("<IHB", 1, 0x000B, 3) + bitmap + bytes(2) + bytes(15 * 8)
    groups = [values[start : start + 8] for start in range(0, len(values), 8)]
    blob += struct.pack("<I", len(groups))
    for group in groups:
        blob += struct.pack("<I", len(group))
        for value in group + [b""] * (8 - len(group)):
            blob += struct.pack("<H", len(value)) + value.ljust(64, b"\0")
    return blob


def ima_task(given):
    """Keylime's check of an IMA list against an allow list."""
    policy = copy.deepcopy(ima.EMPTY_RUNTIME_POLICY)
    policy["digests"] = given["files"]
    lines = given["ima"]

    def run():
        _, failure = ima.process_measurement_list(
            None, lines, policy, given["ima_pcr"], None, None, Hash.SHA256
        )
        if failure:
            raise SystemExit(f"Keylime refuses: {[event.context for event in failure.events][:3]}")

    return run


if __name__ == "__main__":
    main()
