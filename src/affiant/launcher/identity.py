"""The identity key: the launcher's voice, named by the launch record that PCR 17 holds.

A new P-256 key with each launcher. The private key exists in this process's memory only: there is
no function that writes it, and the launcher signs nothing but structures that it built itself.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.model.enclave_report import EnclaveReport
from affiant.model.launch_record import LaunchRecord
from affiant.wire.enclave_report import sign_enclave_report

__all__ = ["IdentityKey"]


class IdentityKey:
    """Makes its own key; signs enclave reports for the monitor that a launch record names."""

    __slots__ = ("_key",)

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> bytes:
        """The public key, an uncompressed SEC 1 point (65 bytes)."""
        return self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def sign_enclave_report(
        self,
        record: LaunchRecord,
        *,
        challenge: bytes,
        session_key: bytes,
        sealing_key: bytes,
        rules_version: int,
    ) -> bytes:
        """Return an enclave report: what the monitor asks for, and the record's words about the monitor.

        The monitor chooses its keys, the challenge and the rules version; who it is comes from
        `record`, which must name this key (`ValueError` otherwise: a record of another launcher).
        """
        if record.identity_key != self.public:
            raise ValueError("the launch record names another identity key")
        report = EnclaveReport(
            challenge=challenge,
            session_key=session_key,
            sealing_key=sealing_key,
            monitor_image=record.monitor_image,
            monitor_version=record.monitor_version,
            security_version=record.security_version,
            debug=record.debug,
            service_root=record.service_root,
            rules_root=record.rules_root,
            rules_version=rules_version,
            digest=b"",  # the signed bytes define it
        )
        return sign_enclave_report(report, key=self._key)

    def __repr__(self) -> str:
        return "IdentityKey()"

    def __reduce__(self) -> str:
        raise TypeError("the identity key does not leave this process")
