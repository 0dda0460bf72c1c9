"""Verification of boot evidence beside Keylime's own functions, in CPU time, in turn in one run.

Both check the same quote and log under a policy made for their machine, and the same IMA list against
the same allow list. Keylime has the log decoded by a program, whose CPU time counts.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from affiant.appraisal.enforced_code import judge_enforced_code
from affiant.appraisal.enrolled_key import BootCounters
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.reference_value import ReferenceValue
from affiant.appraisal.verified_boot import judge_verified_boot
from affiant.model.errors import SetupError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot, verify_boot
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.ima import parse_ima_list, replay_ima_list
from affiant.tpm.ima_template import accept_files
from affiant.tpm.quote import verify_quote
from affiant.tpm.replay import replay_values
from benchmarks.keylime_process import VERSION, Keylime, running_keylime
from benchmarks.table import Row
from tests.forgeries.signer import NONCE, Signer
from tests.samples import samples_folder
from tests.unit.tpm.ima_kernel import Kernel

SHA256 = HashAlgorithm.SHA256
_LOG = "linux/keylime_binary_bios_measurements-secureboot.bin"
_BOOT_RUNS, _IMA_RUNS, _ROUND = 100, 80, 10
_FILES = 5000


def rows() -> list[Row]:
    """A boot with 99 events, then an IMA list."""
    evidence, measured = _Evidence.of_sample(), _Measured()
    with running_keylime(evidence.for_keylime() | measured.for_keylime()) as keylime:
        beside = f"Keylime {VERSION}"
        boot = _in_turn(evidence.verify, keylime, "boot", _BOOT_RUNS)
        files = _in_turn(measured.verify, keylime, "ima", _IMA_RUNS)
    return [
        Row(f"quote, log of {len(evidence.log)} octets, policy", boot[0], beside, boot[1]),
        Row(f"IMA list of {_FILES} files, allow list", files[0], beside, files[1]),
        Row("the same for one file", files[0] / _FILES, beside, files[1] / _FILES),
    ]


def _in_turn(ours: Callable[[], object], keylime: Keylime, task: str, runs: int) -> tuple[float, float]:
    """The least CPU time of a run of each, in milliseconds, after one round that is not counted.

    The least, since whatever else the machine does only adds, and adds more to the shorter. Each side
    runs a few times before the other does: a verifier is busy with verifying, and neither is to be
    measured with the other's data in the caches.
    """
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.freeze()  # nobody pays for the garbage of making inputs; the peer does the same
    for turn in range(runs // _ROUND + 1):
        for _ in range(_ROUND):
            started = time.process_time()
            ours()
            if turn:
                times[0].append(1_000 * (time.process_time() - started))
        for _ in range(_ROUND):
            seconds = keylime.seconds(task)
            if turn:
                times[1].append(1_000 * seconds)
    return min(times[0]), min(times[1])


@dataclass(frozen=True)
class _Evidence:
    """A real log with a quote by a key of ours, and a policy that accepts its machine."""

    log: bytes
    pcrs: dict[int, bytes]
    attest: bytes
    signature: bytes
    public: bytes
    policy: AppraisalPolicy
    kernel: ReferenceValue

    @classmethod
    def of_sample(cls) -> _Evidence:
        folder = samples_folder()
        if folder is None or not (folder / _LOG).is_file():
            raise SetupError(
                f"the log {_LOG} is not there", hint="name its folder in AFFIANT_EVIDENCE_SAMPLES"
            )
        log = (folder / _LOG).read_bytes()
        signer = Signer()
        pcrs = replay_values(parse_event_log(log), bank=SHA256, pcrs=BOOT_PCRS)
        attest = signer.attest(pcrs, selected=BOOT_PCRS)
        shown = (log, pcrs, attest, signer.sign(attest), signer.public)
        boot = cls(*shown, AppraisalPolicy(), _kernel(b"", None)).boot()
        return cls(*shown, _policy(boot), _kernel(boot.grub.files[-2].digest, boot.applications[-1].digest))

    def boot(self) -> VerifiedBoot:
        quote = verify_quote(
            self.attest,
            self.signature,
            attestation_key=verify_attestation_key(self.public),
            expected_extra_data=NONCE,
            pcrs=self.pcrs,
        )
        return verify_boot(quote, self.log)

    def verify(self) -> None:
        """From octets to claims; a claim that does not hold is an error of this benchmark."""
        boot = self.boot()
        info = boot.clock_info
        judged = judge_verified_boot(
            boot,
            counters=BootCounters(info.reset_count, info.restart_count, info.clock),
            last_seen=None,
            shown_reference=self.kernel.reference,
            policy=self.policy,
            references=[self.kernel],
        )
        enforced = judge_enforced_code(
            boot, kernel=judged.kernel, secure_boot_enabled=True, policy=self.policy
        )
        if bad := [one for one in (*judged.judgements, *enforced) if one.value is not True]:
            raise AssertionError(f"a healthy boot was refused: {bad}")

    def for_keylime(self) -> dict[str, Any]:
        return {
            "log": base64.b64encode(self.log).decode(),
            "pcrs": {str(pcr): value.hex() for pcr, value in self.pcrs.items()},
            "attest": base64.b64encode(self.attest).decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "attestation_key": base64.b64encode(self.public).decode(),
            "nonce": base64.b64encode(NONCE).decode(),
        }


def _kernel(kernel: bytes, authenticode: bytes | None) -> ReferenceValue:
    return ReferenceValue(kernel, authenticode, bytes(32), "5.14.0", locks_down=True, verifies_modules=True)


def _policy(boot: VerifiedBoot) -> AppraisalPolicy:
    allowed = boot.secure_boot.allowed
    if allowed is None:
        raise AssertionError("the log has no db")
    signers = [authority.source.content for authority in boot.secure_boot.authorities]
    return AppraisalPolicy(
        secure_boot_keys=frozenset(hashlib.sha256(entry.content).digest() for entry in allowed.entries()),
        boot_signers=frozenset(hashlib.sha256(content[16:]).digest() for content in signers),
        machine_owner_key_lists=frozenset({boot.shim.mok_measurements[0].digest}),
    )


class _Measured:
    """An IMA list of many files, all of them expected, with a quote over it."""

    def __init__(self) -> None:
        kernel, signer = Kernel(), Signer()
        self.files = []
        for number in range(_FILES):
            path, content = f"/usr/lib/x86_64-linux-gnu/library-{number}.so.1", str(number).encode()
            kernel.file(path, content)
            self.files.append(("sha256", SHA256.digest(content), path))
        self.kernel, self.octets, self.pcrs = kernel, kernel.list(), kernel.pcrs()
        self.accepted = accept_files(self.files)
        attest = signer.attest(self.pcrs, selected=[10])
        self.quote = verify_quote(
            attest,
            signer.sign(attest),
            attestation_key=verify_attestation_key(signer.public),
            expected_extra_data=NONCE,
            pcrs=self.pcrs,
        )

    def verify(self) -> None:
        """Parse, replay and judge the list."""
        verified = replay_ima_list(parse_ima_list(self.octets), self.quote, accepted=self.accepted)
        if verified.count != _FILES or verified.unaccepted(self.accepted) or verified.violations:
            raise AssertionError("an expected file was refused")

    def for_keylime(self) -> dict[str, Any]:
        lines = [
            f"10 {HashAlgorithm.SHA1.digest(entry.data).hex()} ima-ng sha256:{digest.hex()} {path}"
            for entry, (_, digest, path) in zip(self.kernel.entries, self.files, strict=True)
        ]
        files = {path: [digest.hex()] for _, digest, path in self.files}
        return {"ima": lines, "files": files, "ima_pcr": self.pcrs[10].hex()}
