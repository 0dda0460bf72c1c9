"""The launcher's own use of the guest's TPM: the attestation key, quotes, credential activation.

The AK is a restricted signing primary of the endorsement hierarchy. The guest shares this TPM and
must not quote with our key, so both what the AK is derived from (a secret in its template) and its
authorization are random, new with each launcher, and live in this object only. The AK is made for
each use (0.6 ms) and flushed: kept persistent, its authorization would stand in the TPM's state file
in the clear. A new launcher has a new AK, which it enrols under the same EK.

What a hostile guest can do to it, and what follows:

- TPM2_Clear, taking ownership, evicting keys: nothing, the AK is made from the endorsement seed.
- filled object or session slots: we wait for a moment (a decent guest's resource manager empties
  them), then flush what the guest has loaded. Its objects are lost, not ours.
- an endorsement authorization of its own, a changed endorsement seed, a disabled hierarchy: quotes
  are unavailable. The authorization stays over reboots until the guest's owner undoes it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from affiant.launcher.vtpm.gateway import Execute
from affiant.launcher.vtpm.swtpm import SwtpmConnection
from affiant.model.errors import UnavailableError
from affiant.model.evidence import QuoteEvidence
from affiant.tpm import command_bytes, templates
from affiant.tpm.command import Command
from affiant.tpm.response_code import CommandRefusedError
from affiant.wire.launcher_requests import EndorsementOfTpm

__all__ = ["TpmAttester", "TpmHolder"]

_EK_HANDLE = 0x81010001  # where swtpm_setup keeps the RSA EK (EK Credential Profile, section 2.2.2)
_TRANSIENT_OBJECTS, _LOADED_SESSIONS, _SAVED_SESSIONS = 0x80000000, 0x02000000, 0x03000000
_NO_ROOM = frozenset(
    {"OBJECT_MEMORY", "OBJECT_HANDLES", "SESSION_MEMORY", "SESSION_HANDLES", "CONTEXT_GAP", "MEMORY"}
)
_PATIENCE, _PAUSE_SECONDS = 8, 0.02
_TRANSIENT_RETRIES = 20
_STARTUP_SECONDS = 30.0

ResultT = TypeVar("ResultT")


class TpmHolder(Protocol):
    """Who lets us at the TPM between two commands of the guest: the gateway."""

    def secure_world(self, *, timeout: float = ...) -> contextlib.AbstractContextManager[Execute]:
        """Hold the TPM."""
        ...


class TpmAttester:
    """Holds the AK's secrets. `ek_certificates`: DER, leaf first, for the RSA EK.

    Its methods may be called from any thread; they wait for the guest's command in progress.
    """

    def __init__(self, *, ek_certificates: tuple[bytes, ...]) -> None:
        self._auth = secrets.token_bytes(32)
        self._template = templates.attestation_key_from(secrets.token_bytes(64))
        self._ek_certificates = ek_certificates
        self._ek_public = b""
        self._ak_public = b""
        self._missing = "the attestation key has not been made"

    def provision(self, tpm: SwtpmConnection) -> None:
        """Make the AK before the guest runs; powers the TPM on for this, and off again.

        When the TPM does not let us (a guest changed it in an earlier run), attestation stays
        unavailable and the guest can run. Raises `UnavailableError` when swtpm does not work at all.
        """

        def execute(command: bytes) -> bytes:
            return tpm.execute(command, timeout=_STARTUP_SECONDS)

        tpm.stop()
        tpm.initialize()
        _run(execute, command_bytes.startup())
        try:
            self._make_keys(execute)
            self._missing = ""
        except CommandRefusedError as refusal:
            self._missing = f"the attestation key cannot be made: {refusal}"
        finally:
            _run(execute, command_bytes.shutdown())
            tpm.stop()

    @property
    def missing(self) -> str:
        """Why there is no attestation key, or empty."""
        return self._missing

    def endorsement(self) -> EndorsementOfTpm:
        """Return EK certificates and public areas. Raises `UnavailableError` without an AK."""
        self._available()
        return EndorsementOfTpm(self._ek_certificates, self._ek_public, self._ak_public)

    def quote(self, tpm: TpmHolder, *, extra_data: bytes, pcrs: tuple[int, ...]) -> QuoteEvidence:
        """Quote `pcrs` of the SHA-256 bank, with their values read before the guest can act again.

        Raises `UnavailableError` when the TPM is not started or does not let us.
        """
        self._available()

        def quote(execute: Execute) -> QuoteEvidence:
            response = self._with_attestation_key(
                execute,
                lambda key: _run(
                    execute, command_bytes.quote(key, auth=self._auth, extra_data=extra_data, pcrs=pcrs)
                ),
            )
            values: list[tuple[int, bytes]] = []
            for at in range(0, len(pcrs), command_bytes.PCRS_PER_READ):
                read = command_bytes.pcr_read(pcrs[at : at + command_bytes.PCRS_PER_READ])
                values += _run(execute, read).values
            return QuoteEvidence(response.attest, response.signature, self._ak_public, tuple(values))

        return _with_room(tpm, quote)

    def activate(self, tpm: TpmHolder, *, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the secret that was encrypted to our EK for our AK (TPM2_ActivateCredential).

        Raises `UnavailableError` when the TPM does not let us, or the credential is not for it;
        `MalformedError` when the blobs are no sized buffers.
        """
        self._available()

        def activate(execute: Execute) -> bytes:
            return self._with_attestation_key(
                execute,
                lambda ak: self._with_endorsement_key(
                    execute, lambda ek: self._activate(execute, ak, ek, credential_blob, encrypted_secret)
                ),
            )

        return _with_room(tpm, activate)

    def _activate(
        self, execute: Execute, ak: int, ek: int, credential_blob: bytes, encrypted_secret: bytes
    ) -> bytes:
        session = _run(execute, command_bytes.start_policy_session(secrets.token_bytes(16)))
        try:
            _run(execute, command_bytes.policy_secret(session))
            command = command_bytes.activate_credential(
                ak,
                ek,
                auth=self._auth,
                session=session,
                credential_blob=credential_blob,
                encrypted_secret=encrypted_secret,
            )
            return _run(execute, command)
        finally:
            _flush(execute, session)

    def _make_keys(self, execute: Execute) -> None:
        self._ek_public = self._find_endorsement_key(execute)
        created = _run(execute, command_bytes.create_primary(self._template, user_auth=self._auth))
        _flush(execute, created.handle)
        self._ak_public = created.encoding

    def _find_endorsement_key(self, execute: Execute) -> bytes:
        try:
            return _run(execute, command_bytes.read_public(_EK_HANDLE)).to_tpm2b()
        except CommandRefusedError:
            created = _run(execute, command_bytes.create_primary(templates.EK_RSA_2048, user_auth=b""))
            _flush(execute, created.handle)
            return created.encoding

    def _with_attestation_key(self, execute: Execute, use: Callable[[int], ResultT]) -> ResultT:
        return self._with_primary(execute, self._template, self._auth, self._ak_public, use)

    def _with_endorsement_key(self, execute: Execute, use: Callable[[int], ResultT]) -> ResultT:
        try:
            kept = _run(execute, command_bytes.read_public(_EK_HANDLE)).to_tpm2b() == self._ek_public
        except CommandRefusedError:
            kept = False
        if kept:
            return use(_EK_HANDLE)
        return self._with_primary(execute, templates.EK_RSA_2048, b"", self._ek_public, use)

    @staticmethod
    def _with_primary(
        execute: Execute, template: bytes, auth: bytes, expected: bytes, use: Callable[[int], ResultT]
    ) -> ResultT:
        created = _run(execute, command_bytes.create_primary(template, user_auth=auth))
        try:
            if created.encoding != expected:
                raise UnavailableError(
                    "the guest changed its TPM's endorsement seed: its keys are not the same any more"
                )
            return use(created.handle)
        finally:
            _flush(execute, created.handle)

    def _available(self) -> None:
        if self._missing:
            raise UnavailableError(self._missing)


def _run(execute: Execute, command: Command[ResultT]) -> ResultT:
    """Send a command, again while the TPM asks for that (TPM_RC_RETRY and its like); read the response."""
    for _ in range(_TRANSIENT_RETRIES):
        try:
            return command.read_response(execute(command.encoding))
        except CommandRefusedError as refusal:
            if not refusal.code.is_transient:
                raise
    return command.read_response(execute(command.encoding))


def _flush(execute: Execute, handle: int) -> None:
    with contextlib.suppress(CommandRefusedError):
        _run(execute, command_bytes.flush_context(handle))


def _with_room(tpm: TpmHolder, action: Callable[[Execute], ResultT]) -> ResultT:
    """Run `action`; while the guest fills the TPM's slots wait a little, then empty them."""
    for _ in range(_PATIENCE):
        with tpm.secure_world() as execute:
            try:
                return action(execute)
            except CommandRefusedError as refusal:
                if refusal.code.name not in _NO_ROOM:
                    raise
        time.sleep(_PAUSE_SECONDS)
    with tpm.secure_world() as execute:
        for kind in (_TRANSIENT_OBJECTS, _LOADED_SESSIONS, _SAVED_SESSIONS):
            for handle in _run(execute, command_bytes.get_handles(kind)):
                _flush(execute, handle)
        return action(execute)
