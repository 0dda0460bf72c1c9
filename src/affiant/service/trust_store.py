"""What the operator told the service to trust: endorsement roots, monitors, kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import delete, insert, or_, select
from sqlalchemy.engine import Connection

from affiant.appraisal.policy import AcceptedMonitor
from affiant.appraisal.reference_value import ReferenceValue
from affiant.service.tables import (
    accepted_monitors,
    endorsement_anchors,
    reference_values,
    unified_images,
)

__all__ = [
    "accept_monitor",
    "accepted_monitor_set",
    "add_reference",
    "add_unified_image",
    "all_references",
    "anchor_certificates",
    "references_for",
    "trust_endorsement_root",
]


def trust_endorsement_root(connection: Connection, certificate: bytes, *, now: int) -> bytes:
    """Trust TPMs whose endorsement certificate leads to `certificate` (DER); return its SHA-256."""
    digest = hashlib.sha256(certificate).digest()
    connection.execute(delete(endorsement_anchors).where(endorsement_anchors.c.digest == digest))
    connection.execute(
        insert(endorsement_anchors).values(digest=digest, certificate=certificate, added_at=now)
    )
    return digest


def anchor_certificates(connection: Connection) -> tuple[bytes, ...]:
    """Return the trusted endorsement roots (DER)."""
    column = endorsement_anchors.c.certificate
    return tuple(connection.execute(select(column).order_by(endorsement_anchors.c.digest)).scalars())


def accept_monitor(connection: Connection, monitor: AcceptedMonitor, *, now: int) -> None:
    """Accept a monitor image from now on; an earlier entry for the same image is replaced."""
    connection.execute(delete(accepted_monitors).where(accepted_monitors.c.image == monitor.image))
    connection.execute(
        insert(accepted_monitors).values(
            image=monitor.image,
            version=monitor.version,
            security_version=monitor.security_version,
            added_at=now,
        )
    )


def accepted_monitor_set(connection: Connection) -> frozenset[AcceptedMonitor]:
    """Return every accepted monitor."""
    c = accepted_monitors.c
    rows = connection.execute(select(c.image, c.version, c.security_version))
    return frozenset(AcceptedMonitor(*row) for row in rows)


def add_reference(connection: Connection, value: ReferenceValue, *, now: int) -> None:
    """Register a kernel; an earlier entry for the same kernel file is replaced."""
    connection.execute(delete(reference_values).where(reference_values.c.kernel == value.kernel))
    connection.execute(
        insert(reference_values).values(
            kernel=value.kernel,
            authenticode=value.authenticode,
            reference=value.reference,
            release=value.release,
            locks_down=value.locks_down,
            verifies_modules=value.verifies_modules,
            added_at=now,
        )
    )


def add_unified_image(
    connection: Connection, authenticode: bytes, *, kernel: bytes, addon: bool, now: int
) -> None:
    """Register a unified kernel image that holds a known kernel, or an add-on that may be read beside one."""
    c = unified_images.c
    connection.execute(delete(unified_images).where(c.kernel == kernel, c.authenticode == authenticode))
    connection.execute(
        insert(unified_images).values(kernel=kernel, authenticode=authenticode, addon=addon, added_at=now)
    )


def references_for(connection: Connection, digests: Iterable[bytes]) -> tuple[ReferenceValue, ...]:
    """Return the known kernels whose file or Authenticode digest is one of `digests`."""
    wanted = tuple(digests)
    c = reference_values.c
    return _references(connection, or_(c.kernel.in_(wanted), c.authenticode.in_(wanted)))


def all_references(connection: Connection) -> tuple[ReferenceValue, ...]:
    """Return every known kernel."""
    return _references(connection, None)


def _references(connection: Connection, condition: object) -> tuple[ReferenceValue, ...]:
    c = reference_values.c
    statement = select(
        c.kernel, c.authenticode, c.reference, c.release, c.locks_down, c.verifies_modules
    ).order_by(c.release, c.kernel)
    if condition is not None:
        statement = statement.where(condition)  # type: ignore[arg-type]  # a column expression
    images, addons = _unified_images(connection)
    return tuple(
        ReferenceValue(
            *row,
            unified_images=frozenset(images.get(row.kernel, ())),
            addons=frozenset(addons.get(row.kernel, ())),
        )
        for row in connection.execute(statement)
    )


def _unified_images(connection: Connection) -> tuple[dict[bytes, list[bytes]], dict[bytes, list[bytes]]]:
    """Return the unified kernel images of each kernel, and their add-ons."""
    images: dict[bytes, list[bytes]] = {}
    addons: dict[bytes, list[bytes]] = {}
    c = unified_images.c
    for kernel, authenticode, addon in connection.execute(select(c.kernel, c.authenticode, c.addon)):
        (addons if addon else images).setdefault(kernel, []).append(authenticode)
    return images, addons
