"""Devices, their attestation keys, and enrolments under way."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from affiant.appraisal.enrolled_key import BootCounters, EnrolledKey
from affiant.model.errors import ForgedError
from affiant.service.tables import attestation_keys, devices, enrolments
from affiant.wire import cbor

__all__ = [
    "DeviceRow",
    "PendingEnrolment",
    "all_devices",
    "begin_enrolment",
    "enrol",
    "find_enrolled_key",
    "forget_expired_enrolments",
    "note_boot_counters",
    "take_enrolment",
]

_MAX_CERTIFICATES = 65536


@dataclass(frozen=True, slots=True)
class PendingEnrolment:
    """An enrolment whose credential was sent: who claims to be whom, and what would prove it."""

    enrolment_id: bytes
    challenge: bytes
    ak_name: bytes
    ek_fingerprint: bytes
    ek_public: bytes
    ek_certificates: tuple[bytes, ...]
    expected_proof: bytes
    expires_at: int


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as people see it; `last_seen` is when it last sent acceptable evidence."""

    device: bytes
    ek_fingerprint: bytes
    enrolled_at: int
    last_seen: int | None
    attestation_keys: int


def begin_enrolment(connection: Connection, pending: PendingEnrolment) -> None:
    """Store what a proof will be held against."""
    connection.execute(
        insert(enrolments).values(
            enrolment_id=pending.enrolment_id,
            challenge=pending.challenge,
            ak_name=pending.ak_name,
            ek_fingerprint=pending.ek_fingerprint,
            ek_public=pending.ek_public,
            ek_certificates=cbor.encode(list(pending.ek_certificates)),
            expected_proof=pending.expected_proof,
            expires_at=pending.expires_at,
        )
    )


def take_enrolment(connection: Connection, enrolment_id: bytes, *, now: int) -> PendingEnrolment:
    """Take an enrolment out for its one and only proof.

    What holds then: it was begun here, has not expired, and no proof was tried on it before.
    Raises ForgedError otherwise. The caller commits even when the proof is wrong.
    """
    taken = connection.execute(
        update(enrolments)
        .where(
            enrolments.c.enrolment_id == enrolment_id,
            enrolments.c.used_at.is_(None),
            enrolments.c.expires_at > now,
        )
        .values(used_at=now)
    )
    if taken.rowcount != 1:
        raise ForgedError("no such enrolment is open", hint="begin the enrolment anew")
    row = connection.execute(select(enrolments).where(enrolments.c.enrolment_id == enrolment_id)).one()
    return PendingEnrolment(
        enrolment_id=row.enrolment_id,
        challenge=row.challenge,
        ak_name=row.ak_name,
        ek_fingerprint=row.ek_fingerprint,
        ek_public=row.ek_public,
        ek_certificates=_certificates(row.ek_certificates),
        expected_proof=row.expected_proof,
        expires_at=row.expires_at,
    )


def enrol(connection: Connection, pending: PendingEnrolment, *, new_device: bytes, now: int) -> bytes:
    """Record that the attestation key lives in that TPM; return the device's UEID.

    `new_device` becomes the UEID when this TPM was never seen before. Raises ForgedError when the
    attestation key already belongs to another device.
    """
    device: bytes | None = connection.execute(
        select(devices.c.device).where(devices.c.ek_fingerprint == pending.ek_fingerprint)
    ).scalar()
    certificates = cbor.encode(list(pending.ek_certificates))
    if device is None:
        device = new_device
        connection.execute(
            insert(devices).values(
                device=device,
                ek_fingerprint=pending.ek_fingerprint,
                ek_public=pending.ek_public,
                ek_certificates=certificates,
                enrolled_at=now,
            )
        )
    else:
        # A renewed endorsement certificate replaces the old one; the key is the same.
        connection.execute(
            update(devices).where(devices.c.device == device).values(ek_certificates=certificates)
        )
    owner: bytes | None = connection.execute(
        select(attestation_keys.c.device).where(attestation_keys.c.ak_name == pending.ak_name)
    ).scalar()
    if owner is None:
        connection.execute(
            insert(attestation_keys).values(ak_name=pending.ak_name, device=device, enrolled_at=now)
        )
    elif owner != device:
        raise ForgedError("the attestation key belongs to another device")
    return device


def find_enrolled_key(connection: Connection, ak_name: bytes) -> EnrolledKey | None:
    """Return the enrolled attestation key of that TPM name, with what is known of its device."""
    row = connection.execute(
        select(
            devices.c.device,
            devices.c.ek_public,
            devices.c.ek_certificates,
            devices.c.reset_count,
            devices.c.restart_count,
            devices.c.clock,
        )
        .join(attestation_keys, attestation_keys.c.device == devices.c.device)
        .where(attestation_keys.c.ak_name == ak_name)
    ).one_or_none()
    if row is None:
        return None
    counters = (
        None if row.reset_count is None else BootCounters(row.reset_count, row.restart_count, row.clock)
    )
    return EnrolledKey(
        name=ak_name,
        device=row.device,
        ek_public=row.ek_public,
        ek_certificates=_certificates(row.ek_certificates),
        last_seen=counters,
    )


def note_boot_counters(connection: Connection, device: bytes, counters: BootCounters, *, now: int) -> None:
    """Remember the highest counters that this device's TPM has quoted."""
    c = devices.c
    row = connection.execute(
        select(c.reset_count, c.restart_count, c.clock).where(c.device == device).with_for_update()
    ).one()
    values: dict[str, int] = {"last_seen": now}
    if row.reset_count is None or counters > BootCounters(*row):
        values |= {
            "reset_count": counters.reset_count,
            "restart_count": counters.restart_count,
            "clock": counters.clock,
        }
    connection.execute(update(devices).where(c.device == device).values(values))


def all_devices(connection: Connection) -> tuple[DeviceRow, ...]:
    """Return every device, in the order of enrolment."""
    rows = connection.execute(select(devices).order_by(devices.c.enrolled_at, devices.c.device)).all()
    keys = connection.execute(select(attestation_keys.c.device)).scalars().all()
    return tuple(
        DeviceRow(row.device, row.ek_fingerprint, row.enrolled_at, row.last_seen, keys.count(row.device))
        for row in rows
    )


def forget_expired_enrolments(connection: Connection, *, before: int) -> int:
    """Delete enrolments that expired before that time; return how many."""
    return connection.execute(delete(enrolments).where(enrolments.c.expires_at < before)).rowcount


def _certificates(stored: bytes) -> tuple[bytes, ...]:
    item = cbor.decode(stored, max_size=_MAX_CERTIFICATES, name="stored endorsement certificates")
    if not isinstance(item, list):
        raise TypeError("the stored endorsement certificates are not a list")
    return tuple(element for element in item if isinstance(element, bytes))
