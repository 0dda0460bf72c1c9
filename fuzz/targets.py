"""The targets: name to a function that reads octets, and may raise EvidenceError or return."""

from __future__ import annotations

import contextlib
import datetime
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from affiant.assertions.bundle_file import decode_bundle, encode_bundle
from affiant.kernel.machine.cpu import CpuState, parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.saved_cpu import disagreement
from affiant.model.errors import EvidenceError, UnavailableError
from affiant.relying_party.verify import verify_passport
from affiant.rules.metadata import read_root, read_signed
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import parse_attest
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.boot_state import read_untrusted_boot
from affiant.tpm.ccel import parse_cc_event_log, parse_ccel_table
from affiant.tpm.cel import append_userspace_log, parse_userspace_log
from affiant.tpm.efi_variable import parse_variable
from affiant.tpm.endorsement import verify_endorsement
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.final_events import append_final_events
from affiant.tpm.gpt import parse_partition_table
from affiant.tpm.ima import parse_ima_list
from affiant.tpm.ima_template import TEMPLATES, read_measurement
from affiant.tpm.public_area import parse_public
from affiant.tpm.signature import parse_signature
from affiant.tpm.signature_database import parse_signature_database
from affiant.tpm.windows.boot import read_untrusted_windows_boot
from affiant.tpm.windows.identity_key import read_identity_key
from affiant.tpm.windows.runtime_package import parse_runtime_report_package
from affiant.tpm.windows.runtime_reports import (
    read_code_integrity_report,
    read_driver_report,
    read_hotpatch_report,
)
from affiant.tpm.windows.sipa import read_sipa_events
from affiant.tpm.windows.vbs_enclave import parse_enclave_report
from affiant.wire import cbor, cose
from affiant.wire.challenge import claimed_issue_time, verify_challenge
from affiant.wire.claims import EAT_CWT
from affiant.wire.cose import sign1
from affiant.wire.courier import read_message, write_message
from affiant.wire.enrolment import decode_enrolment_proof, decode_enrolment_request
from affiant.wire.envelope import read_envelope
from affiant.wire.episodes import read_episodes
from affiant.wire.evidence import verify_evidence
from affiant.wire.fact_record import open_kept, pack_facts, read_fact_record, verify_fact_record
from affiant.wire.frames import FrameDecoder
from affiant.wire.launch_record import decode_launch_record
from affiant.wire.passport import decode_passport, decode_passport_text
from affiant.wire.runtime_report import read_runtime_report
from affiant.wire.seal import Direction, open_sealed
from affiant.wire.secure_world import read_request

__all__ = ["CORPUS", "FIXTURES", "TARGETS", "run"]

CORPUS: Final = Path(__file__).parent / "corpus"
FIXTURES: Final = Path(__file__).parent / "fixtures"
_LONGEST: Final = 1 << 20
_NOW: Final = 1_800_000_000  # when the seeds were made, in seconds since the epoch


@functools.cache
def _log() -> EventLog:
    return parse_event_log((CORPUS / "event_log" / "debian12").read_bytes())


@functools.cache
def _root() -> x509.Certificate:
    return x509.load_der_x509_certificate((FIXTURES / "root.der").read_bytes())


@functools.cache
def _rules_root() -> Root:
    return read_root((CORPUS / "rules" / "root").read_bytes(), previous=None, maximum=_LONGEST)


@functools.cache
def _sealing_key() -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes(range(32)))


@functools.cache
def _listed() -> tuple[CpuState, ...]:
    texts = (FIXTURES / "registers.txt").read_text().split("CPU#")[1:]
    return tuple(parse_registers(f"CPU#{text}", index=index) for index, text in enumerate(texts))


def _event_log(octets: bytes) -> None:
    for padded in (False, True):
        try:
            log = parse_event_log(octets, padded=padded)
        except EvidenceError:
            continue
        for bank in HashAlgorithm:
            _ignoring(functools.partial(read_untrusted_boot, log, bank=bank))
        _ignoring(read_untrusted_windows_boot, log)


def _ignoring(read: Callable[..., object], *arguments: object) -> None:
    try:
        read(*arguments)
    except EvidenceError:
        return


def _databases(octets: bytes) -> None:
    _ignoring(parse_variable, octets)
    _ignoring(parse_partition_table, octets)
    parse_signature_database(octets).entries()


def _ima(octets: bytes) -> None:
    for algorithm in (HashAlgorithm.SHA1, HashAlgorithm.SHA256):
        _ignoring(functools.partial(parse_ima_list, octets, algorithm=algorithm))
    for template in TEMPLATES:
        _ignoring(read_measurement, 0, template, octets)


def _structures(octets: bytes) -> None:
    for read in (parse_attest, parse_signature, parse_public, verify_attestation_key):
        _ignoring(read, octets)


def _endorsement(octets: bytes) -> None:
    public, _, certificate = octets.partition(b"\xff\xfe\xff")
    verify_endorsement((certificate,), public, anchors=[_root()], now=_NOW)


def _windows(octets: bytes) -> None:
    for read in (
        read_sipa_events,
        read_identity_key,
        parse_enclave_report,
        parse_runtime_report_package,
        read_driver_report,
        read_code_integrity_report,
        read_hotpatch_report,
    ):
        _ignoring(read, octets)


def _cbor(octets: bytes) -> None:
    item = cbor.decode(octets, max_size=_LONGEST)
    if cbor.encode(item) != octets:
        raise AssertionError("one value, two encodings")
    _ignoring(read_message, item)
    _ignoring(read_request, item)


def _messages(octets: bytes) -> None:
    for read in (
        lambda: cose.parse_sign1(octets, name="message", max_size=_LONGEST),
        lambda: read_runtime_report(octets),
        lambda: verify_evidence(octets, expected_challenge=bytes(32)),
        lambda: decode_enrolment_request(octets),
        lambda: decode_enrolment_proof(octets),
        lambda: decode_launch_record(octets),
        lambda: read_envelope(octets),
        lambda: read_episodes(octets, now_ms=1 << 62),
        lambda: claimed_issue_time(octets),
        lambda: verify_challenge(octets, root=_root(), now=_NOW),
        lambda: open_sealed(octets, key=_sealing_key(), direction=Direction.TO_SERVICE, challenge=bytes(32)),
    ):
        _ignoring(read)


def _passport(octets: bytes) -> None:
    _ignoring(decode_passport_text, octets.decode("latin-1"))
    decode_passport(octets)
    verify_passport(
        octets,
        root=_root(),
        expected_nonce=bytes(range(32)),
        now=_NOW,
        expected_audience="gate",
        expected_device=None,
    )


def _userspace_log(octets: bytes) -> None:
    append_userspace_log(_log(), parse_userspace_log(octets))


def _final_events(octets: bytes) -> None:
    append_final_events(_log(), octets)


def _confidential(octets: bytes) -> None:
    _ignoring(parse_ccel_table, octets)
    parse_cc_event_log(octets)


def _rules(octets: bytes) -> None:
    for kind in (Timestamp, Snapshot, Targets):
        _ignoring(functools.partial(read_signed, kind, octets, root=_rules_root(), maximum=_LONGEST))
    for previous in (None, _rules_root()):
        _ignoring(functools.partial(read_root, octets, previous=previous, maximum=_LONGEST))
    if encode_bundle(decode_bundle(octets)) != octets:
        raise AssertionError("one bundle, two files")


def _device_state(octets: bytes) -> None:
    # No section that agrees with the listing is as good an answer as a malformed stream.
    with contextlib.suppress(UnavailableError):
        saved = parse_device_stream(octets, _listed())
        if any(disagreement(one, listed) for one, listed in zip(saved, _listed(), strict=True)):
            raise AssertionError("a section that disagrees was believed")


def _facts(octets: bytes) -> None:
    # As a file of whoever wrote into the folder; as what a monitor that was taken over signs; as its facts.
    _ignoring(_believed_facts, lambda: open_kept(octets, key=_sealing_key()))
    _ignoring(_believed_facts, lambda: _recorded(octets))
    for packed in (octets, zlib.compress(octets, 1)):
        claims = cbor.decode(_record_claims(), max_size=_LONGEST)
        assert isinstance(claims, dict)
        details = claims[_AFFIANT]
        assert isinstance(details, dict)
        details[_FACTS] = packed
        _ignoring(_believed_facts, functools.partial(_recorded, cbor.encode(claims)))


_AFFIANT, _FACTS = -79140, 7  # of `affiant.wire.fact_record`


def _believed_facts(message: Callable[[], bytes]) -> None:
    octets = message()
    record = read_fact_record(octets)
    pack_facts(record.said.facts)
    verified = verify_fact_record(record, root=_root())
    if octets != open_kept((CORPUS / "facts" / "kept").read_bytes(), key=None):
        raise AssertionError(f"a record that no monitor made was believed: {verified}")


def _recorded(claims: bytes) -> bytes:
    """Return a fact record with these claims, by a key that nobody vouches for."""
    key, certificate = _recorder()
    return sign1(claims, key=key, typ=EAT_CWT, certificates=[certificate])


@functools.cache
def _recorder() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.derive_private_key(7, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "00" * 16)])
    beginning = datetime.datetime.fromtimestamp(_NOW, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(beginning)
    certificate = builder.not_valid_after(beginning + datetime.timedelta(hours=1)).sign(key, SHA256())
    return key, certificate.public_bytes(Encoding.DER)


@functools.cache
def _record_claims() -> bytes:
    return (CORPUS / "facts" / "claims").read_bytes()


def _courier(octets: bytes) -> None:
    # The first octet says in how large pieces the stream arrives: that must make no difference.
    size, stream = 1 + octets[0] if octets else 1, octets[1:]
    whole, pieces = FrameDecoder(), FrameDecoder()
    try:
        items = whole.feed(stream)
    except EvidenceError:
        items = None
    try:
        arrived = [item for at in range(0, len(stream), size) for item in pieces.feed(stream[at : at + size])]
    except EvidenceError:
        arrived = None
    if items != arrived:
        raise AssertionError("one stream, two readings")
    for item in items or ():
        with contextlib.suppress(EvidenceError):
            if write_message(read_message(item)) != item:
                raise AssertionError("one message, two items")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "event_log": _event_log,
    "final_events": _final_events,
    "userspace_log": _userspace_log,
    "confidential": _confidential,
    "ima": _ima,
    "databases": _databases,
    "structures": _structures,
    "endorsement": _endorsement,
    "windows": _windows,
    "cbor": _cbor,
    "messages": _messages,
    "passport": _passport,
    "rules": _rules,
    "device_state": _device_state,
    "facts": _facts,
    "courier": _courier,
}


def run(target: str, octets: bytes) -> None:
    """Give `octets` to a target; returns, or raises what no input may ever raise."""
    _ignoring(TARGETS[target], octets)
