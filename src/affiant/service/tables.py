"""The service's tables; nothing in them is particular to one database.

Digests, keys and names are raw bytes; times are seconds since the epoch by the service's clock.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table

__all__ = [
    "SCHEMA_VERSION",
    "accepted_monitors",
    "attestation_keys",
    "challenges",
    "devices",
    "endorsement_anchors",
    "enrolments",
    "heartbeats",
    "metadata",
    "reference_values",
    "schema",
    "sessions",
    "unified_images",
]

SCHEMA_VERSION = 3

metadata = MetaData()

schema = Table("affiant_schema", metadata, Column("version", Integer, primary_key=True))

devices = Table(
    "devices",
    metadata,
    Column("device", LargeBinary(33), primary_key=True),
    Column("ek_fingerprint", LargeBinary(32), nullable=False, unique=True),
    Column("ek_public", LargeBinary(1024), nullable=False),
    Column("ek_certificates", LargeBinary(65536), nullable=False),
    Column("enrolled_at", BigInteger, nullable=False),
    # The TPM's counters as last quoted; they never go back in an honest machine.
    Column("reset_count", BigInteger),
    Column("restart_count", BigInteger),
    Column("clock", BigInteger),
    Column("last_seen", BigInteger),
)

attestation_keys = Table(
    "attestation_keys",
    metadata,
    Column("ak_name", LargeBinary(66), primary_key=True),
    Column("device", LargeBinary(33), ForeignKey("devices.device"), nullable=False, index=True),
    Column("enrolled_at", BigInteger, nullable=False),
)

challenges = Table(
    "challenges",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    # The exact bytes, so that evidence is judged by what was asked, whichever process asked.
    Column("message", LargeBinary(8192), nullable=False),
    Column("nonce", LargeBinary(32), nullable=False, unique=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("enrolment_at", BigInteger),
    Column("session_at", BigInteger),
)

enrolments = Table(
    "enrolments",
    metadata,
    Column("enrolment_id", LargeBinary(32), primary_key=True),
    Column("challenge", LargeBinary(32), nullable=False),
    Column("ak_name", LargeBinary(66), nullable=False),
    Column("ek_fingerprint", LargeBinary(32), nullable=False),
    Column("ek_public", LargeBinary(1024), nullable=False),
    Column("ek_certificates", LargeBinary(65536), nullable=False),
    # What the proof must be; the activated secret itself is not kept.
    Column("expected_proof", LargeBinary(32), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("used_at", BigInteger),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", LargeBinary(16), primary_key=True),
    Column("device", LargeBinary(33), nullable=False, index=True),
    Column("level", Integer, nullable=False),
    Column("report", LargeBinary(65536), nullable=False),
    Column("report_digest", LargeBinary(32), nullable=False, unique=True),
    Column("certificate", LargeBinary(8192), nullable=False),
    Column("challenge", LargeBinary(32), nullable=False, unique=True),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    # The heartbeat that is due: its nonce, the one before, and by when.
    Column("next_nonce", LargeBinary(32), nullable=False),
    Column("previous_nonce", LargeBinary(32), nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_digest", LargeBinary(32), nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("violations", Integer, nullable=False),
    # What the last heartbeat said of the rules that judge there; null before the first.
    Column("rules_name", String(128)),
    Column("rules_version", BigInteger),
    Column("rules_age_ms", BigInteger),
    Column("rules_expired", Boolean),
    Column("rules_trouble", String(256)),
    # Why nothing from this session counts any more; empty while it does.
    Column("ended_because", String(200), nullable=False),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("session_id", LargeBinary(16), ForeignKey("sessions.session_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("violations", Integer, nullable=False),
)

reference_values = Table(
    "reference_values",
    metadata,
    Column("kernel", LargeBinary(32), primary_key=True),
    Column("authenticode", LargeBinary(32)),
    Column("reference", LargeBinary(32), nullable=False),
    Column("release", String(200), nullable=False),
    Column("locks_down", Boolean, nullable=False),
    Column("verifies_modules", Boolean, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

unified_images = Table(
    "unified_images",
    metadata,
    # No foreign key: a kernel that is registered again is replaced, and its images stay.
    Column("kernel", LargeBinary(32), primary_key=True),
    Column("authenticode", LargeBinary(32), primary_key=True),
    Column("addon", Boolean, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

accepted_monitors = Table(
    "accepted_monitors",
    metadata,
    Column("image", LargeBinary(32), primary_key=True),
    Column("version", String(100), nullable=False),
    Column("security_version", Integer, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

endorsement_anchors = Table(
    "endorsement_anchors",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("certificate", LargeBinary(16384), nullable=False),
    Column("added_at", BigInteger, nullable=False),
)
