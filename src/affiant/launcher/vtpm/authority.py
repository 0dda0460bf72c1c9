"""Making virtual TPMs: swtpm with EK certificates under a certificate authority of this host.

The authority is swtpm's own `swtpm_localca`, kept in a folder of ours: a root, an issuing CA below it,
and their keys (RSA-3072). Whoever holds that folder can make trusted TPMs out of thin air: it is
readable by its owner alone. The root certificate is what an attestation service takes as an
endorsement anchor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.launcher.process.children import find_program, start_child
from affiant.model.errors import SetupError, UnavailableError

__all__ = [
    "VtpmAuthority",
    "found_authority",
    "manufacture",
    "prepare_authority",
    "read_endorsement_chain",
]

_SETUP_SECONDS = 120
_BUILDING = ".vtpm-"
_PERMANENT_STATE = "tpm2-00.permall"
_EK_CERTIFICATE = "ek-rsa2048.crt"
_ISSUER = "issuer.pem"  # a copy beside each TPM: its chain stays whole when the authority is renewed


@dataclass(frozen=True, slots=True)
class VtpmAuthority:
    """A folder with an authority in it, which exists after the first TPM has been made."""

    folder: Path

    @property
    def root_certificate(self) -> Path:
        """PEM file of the root, the endorsement anchor."""
        return self.folder / "swtpm-localca-rootca-cert.pem"

    @property
    def issuing_certificate(self) -> Path:
        """PEM file of the CA that signs EK certificates."""
        return self.folder / "issuercert.pem"


def prepare_authority(folder: Path) -> VtpmAuthority:
    """Make the folder and its configuration; nothing changes where they are there already."""
    folder = folder.absolute()
    if any(character.isspace() for character in str(folder)):
        raise SetupError(f"the folder of the vTPM authority has a space in its name: {folder}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    localca = find_program("swtpm_localca", package="swtpm-tools")
    _write(
        folder / "localca.conf",
        f"statedir = {folder}\n"
        f"signingkey = {folder}/signkey.pem\n"
        f"issuercert = {folder}/issuercert.pem\n"
        f"certserial = {folder}/certserial\n",
    )
    _write(
        folder / "localca.options",
        "--platform-manufacturer Affiant\n--platform-version 1\n--platform-model vTPM\n",
    )
    _write(
        folder / "setup.conf",
        f"create_certs_tool = {localca}\n"
        f"create_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\n"
        "active_pcr_banks = sha256\n",
    )
    return VtpmAuthority(folder)


def found_authority(folder: Path) -> VtpmAuthority:
    """Return the authority in `folder` with its certificates, so that a service can trust it beforehand.

    swtpm_localca makes its keys with the first TPM: where there is none yet, one is made and thrown
    away. Raises as `prepare_authority` and `manufacture` do.
    """
    authority = prepare_authority(folder)
    if not authority.root_certificate.exists():
        with tempfile.TemporaryDirectory(dir=authority.folder, prefix=".first-") as temporary:
            manufacture(authority, Path(temporary) / "tpm", name="first")
    return authority


def manufacture(
    authority: VtpmAuthority,
    state: Path,
    *,
    name: str,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Make a TPM with EKs and EK certificates in the folder `state`, unless there is one already.

    The folder appears whole or not at all. `name` stands in the certificates' subject. It takes
    seconds, which are spent within `waiting()`: an exception out of there ends all that was started.
    Raises `UnavailableError` with swtpm_setup's own words when it fails.
    """
    state = state.absolute()
    if (state / _PERMANENT_STATE).exists():
        return
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in state.parent.glob(f"{_BUILDING}*"):  # of a launcher that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=state.parent, prefix=_BUILDING) as temporary:
        made = Path(temporary) / "state"
        made.mkdir(mode=0o700)
        _run_setup(authority, made, name, waiting)
        shutil.copyfile(authority.issuing_certificate, made / _ISSUER)
        if state.exists():
            state.rmdir()  # an empty folder that a caller made; anything else is not ours to remove
        made.rename(state)


def _run_setup(
    authority: VtpmAuthority, made: Path, name: str, waiting: Callable[[], AbstractContextManager[object]]
) -> None:
    """Run swtpm_setup where all that it starts ends with it: interrupted, it would leave a swtpm behind."""
    command = [
        *(find_program("bwrap", package="bubblewrap"), "--die-with-parent", "--unshare-pid", "--unshare-net"),
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),  # noqa: S108  its own
        *("--bind", str(authority.folder), str(authority.folder), "--bind", str(made), str(made), "--"),
        *(find_program("swtpm_setup", package="swtpm-tools"), "--tpm2", "--tpmstate", str(made)),
        *("--config", str(authority.folder / "setup.conf"), "--create-ek-cert", "--vmid", name),
        *("--write-ek-cert-files", str(made)),
    ]
    if os.geteuid() == 0:
        command += ["--runas", "root"]  # it would become another user, who cannot read our folder
    child = start_child("swtpm_setup", command, log=made.with_name("setup.log"), several=True)
    try:
        with waiting():
            code = child.process.wait(_SETUP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"swtpm_setup could not make a TPM: {error}") from error
    finally:
        child.stop()
    if code or not (made / _PERMANENT_STATE).exists() or not (made / _EK_CERTIFICATE).exists():
        words = " / ".join(child.last_words().splitlines()[-3:])
        raise UnavailableError(f"swtpm_setup could not make a TPM: {words}")


def read_endorsement_chain(state: Path) -> tuple[bytes, ...]:
    """Return the RSA EK's certificate and its issuer's, DER, leaf first.

    Raises `UnavailableError` when they are not beside the TPM's state.
    """
    try:
        leaf = x509.load_der_x509_certificate((state / _EK_CERTIFICATE).read_bytes())
        issuer = x509.load_pem_x509_certificate((state / _ISSUER).read_bytes())
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the TPM's EK certificates cannot be read: {error}") from error
    return leaf.public_bytes(Encoding.DER), issuer.public_bytes(Encoding.DER)


def _write(path: Path, text: str) -> None:
    """Replace a file at once, so that a TPM that is being made at the same time reads a whole one."""
    if path.exists() and path.read_text() == text:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).rename(path)
