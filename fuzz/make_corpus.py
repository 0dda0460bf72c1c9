"""Makes the seeds: `python -m fuzz.make_corpus` writes one truthful input of each kind.

Keys are made anew, so the seeds are another set each time; those that are committed are as good as any.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.episode import Episode
from affiant.model.fact_record import FactRecord
from affiant.model.runtime_report import RulesUsed
from affiant.wire.cose import parse_sign1
from affiant.wire.courier import (
    Ask,
    CourierMessage,
    Decline,
    Fetch,
    FetchAnswer,
    Post,
    PostAnswer,
    Show,
    write_message,
)
from affiant.wire.episodes import write_episodes
from affiant.wire.evidence import sign_evidence
from affiant.wire.fact_record import pack_facts, sign_fact_record, write_kept
from affiant.wire.frames import encode_frame
from fuzz.targets import CORPUS, FIXTURES
from tests.forgeries.machine import Machine as QuotedMachine
from tests.rules_repository import make_repository
from tests.simulator import Machine, Session, make_world
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.ima_kernel import Kernel
from tests.unit.tpm.test_confidential_logs import LOG as CONFIDENTIAL_LOG
from tests.unit.tpm.test_confidential_logs import ccel
from tests.unit.tpm.test_partition_tables import gpt
from tests.unit.tpm.test_uki import stub
from tests.unit.tpm.test_userspace_log import LOG as USERSPACE_LOG
from tests.unit.tpm.windows.machine import Machine as WindowsMachine
from tests.unit.tpm.windows.test_enclave_report import Report
from tests.unit.tpm.windows.test_runtime_package import Package, default_reports
from tests.unit.wire.world import VIOLATION

_VECTORS = Path(__file__).parent.parent / "tests" / "vectors"


def seeds() -> dict[str, bytes]:
    """Target and name to octets."""
    firmware = Firmware.healthy()
    windows = WindowsMachine().firmware()
    quoted = QuotedMachine()
    attest = quoted.attest()
    found = {
        "event_log/debian12": (_VECTORS / "boot" / "debian12-secure-boot.bin").read_bytes(),
        "event_log/setup-mode": (_VECTORS / "boot" / "debian12-setup-mode.bin").read_bytes(),
        "event_log/legacy": firmware.legacy_log(),
        "event_log/unified-kernel-image": stub().log(),
        "event_log/windows": windows.log(),
        "event_log/padded": firmware.log() + b"\xff" * 8,
        "final_events/two": struct.pack("<QQ", 1, 2)
        + b"".join(firmware.encode(entry) for entry in firmware.entries[-2:]),
        "device_state/qemu-7.2": (_VECTORS / "device_state" / "qemu-7.2.bin").read_bytes(),
        "userspace_log/systemd": USERSPACE_LOG,
        "userspace_log/recorded": (_VECTORS / "userspace" / "debian-trixie-systemd-257.log").read_bytes(),
        "confidential/log": CONFIDENTIAL_LOG,
        "confidential/table": ccel(),
        "ima/recorded": (_VECTORS / "ima" / "debian12-tcb-policy.bin").read_bytes(),
        "ima/templates": Kernel.busy().list(),
        "ima/data": Kernel.busy().entries[1].data,
        "databases/partitions": gpt(["EFI System", "root"]),
        "databases/variable": firmware.entries[2].data,
        "databases/list": firmware.entries[3].data[32 + 2 * len("PK") :],
        "structures/attest": attest,
        "structures/signature": quoted.signer.sign(attest),
        "structures/public": quoted.signer.public,
        "windows/enclave": Report().package(),
        "windows/runtime": Package().encode(),
    }
    listed = [each.data for each in windows.entries if each.pcr in (11, 12, 13, 14) and len(each.data) > 8]
    found |= {f"windows/sipa-{number}": data for number, data in enumerate(listed)}
    found |= _rules()
    found |= {f"windows/report-{kind}": report for kind, report in default_reports().items()}
    with tempfile.TemporaryDirectory() as folder:
        found |= _messages(make_world(Path(folder)).machine())
    return found


def _rules() -> dict[str, bytes]:
    """A rules repository: its metadata, and its bundle."""
    repository = make_repository()
    files = repository.files
    (bundle,) = (content for path, content in files.items() if path.startswith("targets/"))
    return {
        "rules/root": files["metadata/1.root.json"],
        "rules/timestamp": files["metadata/timestamp.json"],
        "rules/snapshot": files["metadata/2.snapshot.json"],
        "rules/targets": files["metadata/2.targets.json"],
        "rules/bundle": bundle,
    }


def _facts(session: Session) -> dict[str, bytes]:
    """A kept record in the clear, its claims, and its facts."""
    facts = {"modules": {"listed": [{"name": "e1000", "base": "0xffffffffc0000000"}]}, "cpus": {"count": 2}}
    record = FactRecord(
        device=session.report.device,
        taken_at=session.machine.service.now,
        chain=bytes(16),
        sequence=1,
        previous=bytes(32),
        rules=RulesUsed("web", 3, bytes(32)),
        reference=session.report.reference,
        facts=facts,
        origins=dict.fromkeys(facts, "fact 1"),
        left_out=("tasks",),
        digest=b"",
    )
    message = sign_fact_record(
        record,
        session_report=session.report_bytes,
        key=session.key,
        certificates=session.certificates,
    )
    return {
        "facts/kept": write_kept(message, recipient=None, challenge=bytes(32)),
        "facts/claims": parse_sign1(message, name="record", max_size=len(message)).payload,
        "facts/json": zlib.decompress(pack_facts(facts)),
        "facts/packed": pack_facts(facts),
    }


def _courier(passport: bytes) -> dict[str, bytes]:
    """Every kind of message, each in a stream of its own, and all in one."""
    messages: tuple[CourierMessage, ...] = (
        Post(1, "/v1/session", b"sealed"),
        PostAnswer(1, 200, b"answer"),
        Ask(2, bytes(32), "gate"),
        Show(2, passport),
        Decline(3, "no session: it expired"),
        Fetch(4, "metadata/timestamp.json", 16384),
        FetchAnswer(4, 304, b""),
    )
    frames = {type(each).__name__.lower(): encode_frame(write_message(each)) for each in messages}
    streams = {f"courier/{name}": b"\xff" + frame for name, frame in frames.items()}
    return streams | {"courier/all": b"\x06" + b"".join(frames.values())}


def _messages(machine: Machine) -> dict[str, bytes]:
    """Messages of a session, and the root that its passport verifies against."""
    session = machine.attest()
    passport = session.passport()
    FIXTURES.mkdir(exist_ok=True)
    (FIXTURES / "root.der").write_bytes(machine.service.root.public_bytes(Encoding.DER))
    listing = (_VECTORS / "device_state" / "qemu-7.2.registers").read_text()
    (FIXTURES / "registers.txt").write_text(listing)
    assert machine.tpm is not None
    answer = machine.answer(machine.service.challenge())
    return {
        "passport/whole": passport,
        "cbor/passport": passport,
        "cbor/frame": bytes.fromhex("8401188c6b2f76312f73657373696f6e43010203"),
        "messages/challenge": machine.service.api.challenge(b"", now=machine.service.now),
        "messages/runtime-report": session.runtime_report(bytes(32), "gate"),
        "messages/session-report": session.report_bytes,
        "messages/episodes": write_episodes([Episode(1, VIOLATION)] * 2),
        "messages/evidence": sign_evidence(answer.evidence, key=answer.session_key, challenge=bytes(32)),
        "endorsement/whole": machine.tpm.ek_public + b"\xff\xfe\xff" + machine.tpm.ek_certificates[0],
        **_facts(session),
        **_courier(passport),
    }


if __name__ == "__main__":
    for name, octets in seeds().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(octets)
