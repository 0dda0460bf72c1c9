"""A real TPM for the tests: swtpm behind its Unix socket, made by swtpm_setup with an own CA."""

from __future__ import annotations

import secrets
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from affiant.tpm import command_bytes, templates
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.command import Command
from affiant.tpm.response_code import CommandRefusedError

Result = TypeVar("Result")

RSA_EK_HANDLE = 0x81010001  # where swtpm_setup keeps the EKs it made
ECC_EK_HANDLE = 0x81010016

_LOCAL_CA = """statedir = {ca}
signingkey = {ca}/signkey.pem
issuercert = {ca}/issuercert.pem
certserial = {ca}/certserial
"""
_SETUP = """create_certs_tool = {localca}
create_certs_tool_config = {folder}/localca.conf
create_certs_tool_options = {folder}/localca.options
active_pcr_banks = sha1,sha256,sha384
"""


class SoftwareTpm:
    """A running swtpm; `run` sends a command and reads its response."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "ca"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def make(self) -> None:
        """Manufacture the TPM: EKs, their certificates, its CA."""
        for program in ("swtpm", "swtpm_setup", "swtpm_localca"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed (packages swtpm, swtpm-tools)")
        self.authority.mkdir(parents=True)
        (self.folder / "state").mkdir()
        (self.folder / "localca.conf").write_text(_LOCAL_CA.format(ca=self.authority))
        (self.folder / "localca.options").write_text(
            "--platform-manufacturer Affiant\n--platform-model test\n"
        )
        localca = shutil.which("swtpm_localca")
        (self.folder / "setup.conf").write_text(_SETUP.format(localca=localca, folder=self.folder))
        subprocess.run(
            [
                "swtpm_setup",
                "--tpm2",
                *("--tpmstate", self.folder / "state"),
                *("--config", self.folder / "setup.conf"),
                *("--logfile", self.folder / "setup.log"),
                *("--create-ek-cert", "--vmid", "test"),
            ],
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Power it on and send TPM2_Startup."""
        server, control = self.folder / "server", self.folder / "control"
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--flags", "not-need-init"),
                *("--tpmstate", f"dir={self.folder / 'state'}"),
                *("--server", f"type=unixio,path={server}"),
                *("--ctrl", f"type=unixio,path={control}"),
            ]
        )
        deadline = time.monotonic() + 20
        while not (server.exists() and control.exists()):
            if time.monotonic() > deadline:
                raise TimeoutError("swtpm did not start")
            time.sleep(0.01)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(server))
        self.run(command_bytes.startup())

    def stop(self) -> None:
        """Power it off."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)

    def send(self, command: bytes) -> bytes:
        """Exchange raw bytes."""
        assert self._socket is not None
        self._socket.sendall(command)
        header = self._receive(10)
        size = struct.unpack_from(">I", header, 2)[0]
        return header + self._receive(size - 10)

    def run(self, command: Command[Result]) -> Result:
        while True:
            try:
                return command.read_response(self.send(command.encoding))
            except CommandRefusedError as refusal:
                # The first use of a key under dictionary-attack protection answers TPM_RC_RETRY.
                if not refusal.code.is_transient:
                    raise

    def _receive(self, size: int) -> bytes:
        assert self._socket is not None
        received = b""
        while len(received) < size:
            chunk = self._socket.recv(size - len(received))
            if not chunk:
                raise ConnectionError("swtpm closed the connection")
            received += chunk
        return received

    def hash_sequence(self, data: bytes) -> None:
        """The D-RTM hash sequence over the control channel (start, data, end), as a CPU would."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.folder / "control"))
            for message in (
                struct.pack(">I", 6),
                struct.pack(">II", 7, len(data)) + data,
                struct.pack(">I", 8),
            ):
                control.sendall(message)
                assert control.recv(4) == bytes(4)

    def certificate(self, index: int) -> bytes:
        """An EK certificate out of NV."""
        size = self.run(command_bytes.nv_read_public(index)).data_size
        data = b""
        while len(data) < size:
            part = min(command_bytes.NV_READ_LIMIT, size - len(data))
            data += self.run(command_bytes.nv_read(index, size=part, offset=len(data)))
        return data

    def attestation_key(self, auth: bytes) -> command_bytes.CreatedPrimary:
        return self.run(command_bytes.create_primary(templates.ATTESTATION_KEY, user_auth=auth))

    def pcrs(self, indices: Sequence[int], bank: HashAlgorithm = HashAlgorithm.SHA256) -> dict[int, bytes]:
        """Values read without any proof."""
        values: dict[int, bytes] = {}
        wanted = list(indices)
        for start in range(0, len(wanted), 8):
            read = command_bytes.pcr_read(wanted[start : start + 8], bank=bank)
            values.update(self.run(read).values)
        return values


def fresh_auth() -> bytes:
    return secrets.token_bytes(32)
