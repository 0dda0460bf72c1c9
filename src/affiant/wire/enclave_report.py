"""The enclave report: an EAT in which the launcher speaks for the monitor, by the identity key."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from affiant.model.enclave_report import EnclaveReport
from affiant.model.errors import ForgedError
from affiant.wire import cbor
from affiant.wire.cbor import Item
from affiant.wire.claims import (
    CNF,
    DBGSTAT,
    EAT_CWT,
    EAT_NONCE,
    EAT_PROFILE,
    MEASUREMENTS,
    SWNAME,
    SWVERSION,
    read_tagged_digest,
)
from affiant.wire.claims import SHA256 as NI_SHA256
from affiant.wire.cose import Signer, parse_sign1, sign1, verify_sign1
from affiant.wire.fields import Fields
from affiant.wire.keys import cose_key, load_point, read_cose_key
from affiant.wire.writing import encode_checked

__all__ = ["claimed_session_key", "sign_enclave_report", "verify_enclave_report"]

_PROFILE = "tag:affiant.dev,2026:affiant/enclave#1"
_NAME = "enclave report"
_MAX_SIZE = 4096

_AFFIANT = -79101
_SECURITY_VERSION, _SEALING_KEY, _RULES_VERSION = 2, 3, 5

# RFC 9711, section 4.2.9: debugging is enabled, or disabled since the environment's start.
_DEBUG_ENABLED, _DEBUG_DISABLED_SINCE_BOOT = 0, 2

# The measurements' content format: measured components (RFC 10013) under a number of the range for
# experiments (RFC 7252, section 12.3), to which our eat_profile gives its meaning.
_MEASURED_COMPONENT = 65000
_SOFTWARE = "affiant-monitor"
_SERVICE_ROOT = "affiant-service-root"
_RULES_ROOT = "affiant-rules-root"  # left out by a monitor that takes no published rules


def sign_enclave_report(report: EnclaveReport, *, key: Signer) -> bytes:
    """Return the message of `report`, whose `digest` is not read: the bytes define it.

    `key` is the identity key. Raises `ValueError` for values beyond the message's bounds.
    """
    measurements: list[Item] = [
        _measurement(_SOFTWARE, report.monitor_version, report.monitor_image),
        _measurement(_SERVICE_ROOT, None, report.service_root),
    ]
    if report.rules_root is not None:
        measurements.append(_measurement(_RULES_ROOT, None, report.rules_root))
    payload = encode_checked(
        {
            CNF: {1: cose_key(report.session_key)},
            EAT_NONCE: report.challenge,
            DBGSTAT: _DEBUG_ENABLED if report.debug else _DEBUG_DISABLED_SINCE_BOOT,
            EAT_PROFILE: _PROFILE,
            SWNAME: _SOFTWARE,
            SWVERSION: [report.monitor_version],
            MEASUREMENTS: measurements,
            _AFFIANT: {
                _SECURITY_VERSION: report.security_version,
                _SEALING_KEY: report.sealing_key,
                _RULES_VERSION: report.rules_version,
            },
        },
        lambda data: _read(data, digest=b""),
    )
    return sign1(payload, key=key, typ=EAT_CWT)


def verify_enclave_report(data: bytes, *, identity_key: bytes, expected_challenge: bytes) -> EnclaveReport:
    """Return the report that `data` holds.

    What holds then:
    - the holder of `identity_key` (a P-256 point, from a launch record) signed it;
    - it answers to the challenge with the digest `expected_challenge`;
    - its session key lies on P-256.

    What the identity key is worth is for PCR 17 to say. Raises `MalformedError` or `ForgedError`.
    """
    key: ec.EllipticCurvePublicKey = load_point(identity_key, name="identity key")
    message = verify_sign1(parse_sign1(data, name=_NAME, max_size=_MAX_SIZE), key=key, typ=EAT_CWT)
    report = _read(message.payload, digest=message.digest)
    if report.challenge != expected_challenge:
        raise ForgedError(f"{_NAME}: answers to another challenge")
    return report


def claimed_session_key(data: bytes) -> bytes:
    """Return the session key (P-256 point) that an enclave report names; its signature is unchecked.

    For the proof of possession over evidence, which comes before anything else can be known. Raises
    `MalformedError`.
    """
    message = parse_sign1(data, name=_NAME, max_size=_MAX_SIZE)
    return _read(message.payload, digest=message.digest).session_key


def _measurement(name: str, version: str | None, digest: bytes) -> Item:
    # RFC 10013, section 4: id {name, version}, measurement as a digest.
    identity: Item = [name] if version is None else [name, [version]]
    return [_MEASURED_COMPONENT, cbor.encode({1: identity, 2: [NI_SHA256, digest]})]


def _read(payload: bytes, *, digest: bytes) -> EnclaveReport:
    fields = Fields.of_map(cbor.decode(payload, max_size=_MAX_SIZE, name=_NAME), _NAME)
    fields.constant(EAT_PROFILE, "profile", _PROFILE)
    fields.constant(SWNAME, "software name", _SOFTWARE)
    version = fields.array(SWVERSION, "software version", length=1).text(0, "version", minimum=1, maximum=64)
    confirmation = fields.map(CNF, "confirmation key")
    measurements = fields.array(MEASUREMENTS, "measurements")
    ours = fields.map(_AFFIANT, "parameters")
    debug_status = fields.integer(DBGSTAT, "debug status", maximum=_DEBUG_DISABLED_SINCE_BOOT)
    if debug_status not in (_DEBUG_ENABLED, _DEBUG_DISABLED_SINCE_BOOT):
        raise fields.error("debug status", "neither enabled nor disabled since boot")
    report = EnclaveReport(
        challenge=fields.octets(EAT_NONCE, "challenge", size=32),
        session_key=read_cose_key(confirmation.map(1, "key")),
        sealing_key=ours.octets(_SEALING_KEY, "sealing key", size=32),
        monitor_image=_read_measurement(measurements, 0, _SOFTWARE, version),
        monitor_version=version,
        security_version=ours.integer(_SECURITY_VERSION, "security version"),
        debug=debug_status == _DEBUG_ENABLED,
        service_root=_read_measurement(measurements, 1, _SERVICE_ROOT, None),
        rules_version=ours.integer(_RULES_VERSION, "rules version"),
        digest=digest,
        rules_root=_read_measurement(measurements, 2, _RULES_ROOT, None) if 2 in measurements else None,
    )
    measurements.close()
    ours.close()
    confirmation.close()
    fields.close()
    return report


def _read_measurement(measurements: Fields, index: int, component: str, version: str | None) -> bytes:
    pair = measurements.array(index, component, length=2)
    pair.constant(0, "content format", _MEASURED_COMPONENT)
    encoded = pair.octets(1, "component", maximum=_MAX_SIZE)
    fields = Fields.of_map(cbor.decode(encoded, max_size=_MAX_SIZE, name=pair.name), pair.name)
    identity = fields.array(1, "id", length=1 if version is None else 2)
    identity.constant(0, "name", component)
    if version is not None:
        identity.array(1, "version", length=1).constant(0, "version", version)
    digest = read_tagged_digest(fields, 2, "measurement")
    fields.close()
    return digest
