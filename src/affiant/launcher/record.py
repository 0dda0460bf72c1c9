"""The launch record of this launcher, and the D-RTM launch that puts it into PCR 17."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from affiant import __version__
from affiant.launcher.identity import IdentityKey
from affiant.launcher.vtpm.gateway import Execute
from affiant.model.errors import MalformedError, UnavailableError
from affiant.model.launch_record import LaunchRecord
from affiant.tpm import command_bytes
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.response_code import CommandRefusedError
from affiant.wire.rules_path import DEFAULT_FLEET

__all__ = ["SECURITY_VERSION", "launch_pcr17", "make_launch_record"]

SECURITY_VERSION = 1
"""Of this monitor and launcher: raised whenever the ones before must no longer be trusted."""


def make_launch_record(
    *,
    image_digest: bytes,
    service_root: x509.Certificate,
    identity: IdentityKey,
    debug: bool,
    rules_root: bytes | None = None,
    fleet: str = DEFAULT_FLEET,
) -> LaunchRecord:
    """Return what this launcher swears: the monitor's image, its version, the pinned roots, our key.

    `rules_root` is the root file of published rules, `fleet` whose of them the monitor takes; without a root
    the monitor's own library is all there is, whatever the fleet.
    """
    return LaunchRecord(
        monitor_image=image_digest,
        monitor_version=__version__,
        security_version=SECURITY_VERSION,
        debug=debug,
        service_root=service_root.fingerprint(hashes.SHA256()),
        identity_key=identity.public,
        rules_root=None if rules_root is None else hashlib.sha256(rules_root).digest(),
        fleet=None if rules_root is None else fleet,
    )


def launch_pcr17(encoding: bytes) -> Callable[[Execute, Callable[[bytes], None]], None]:
    """Return the launch of a record's `encoding`, for the gateway to run after each TPM start.

    The launch raises `UnavailableError` when PCR 17 does not hold the record afterwards.
    """
    expected = expected_pcr17(encoding)

    def launch(execute: Execute, hash_sequence: Callable[[bytes], None]) -> None:
        hash_sequence(encoding)
        read = command_bytes.pcr_read((17,))
        try:
            found = dict(read.read_response(execute(read.encoding)).values)
        except (CommandRefusedError, MalformedError) as error:
            raise UnavailableError(f"PCR 17 cannot be read after the launch: {error}") from error
        if found[17] != expected:
            raise UnavailableError("PCR 17 does not hold the launch record after the launch")

    return launch
