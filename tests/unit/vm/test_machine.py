"""QEMU's command line, and whether KVM counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from affiant.launcher.settings import LAUNCHER_QMP, TPM_SOCKET
from affiant.model.errors import SetupError
from affiant.vm.acceleration import Acceleration, detect_acceleration
from affiant.vm.machine import (
    DirectBoot,
    FirmwareBoot,
    Machine,
    parse_memory,
    qemu_arguments,
)

_MACHINE = Machine(
    name="one",
    ram=Path("/dev/shm/one.ram"),
    memory_bytes=1 << 30,
    cpus=2,
    acceleration=Acceleration.TCG,
    boot=FirmwareBoot(Path("/f/code.fd"), Path("/f/vars.fd"), Path("/v/boot.img"), secure_boot=True),
    operator_qmp=Path("/v/qmp.sock"),
    console_socket=Path("/v/console.sock"),
    console_log=Path("/v/console.log"),
    tpm=True,
)


def _pairs(machine: Machine) -> list[str]:
    arguments = qemu_arguments(machine)
    return [f"{first} {second}" for first, second in pairwise(arguments)]


def test_flash_is_writable_from_system_management_mode_alone() -> None:
    pairs = _pairs(_MACHINE)
    assert "-machine q35,smm=on,memory-backend=ram" in pairs
    assert "-global driver=cfi.pflash01,property=secure,value=on" in pairs
    assert any("unit=0,format=raw,readonly=on" in pair for pair in pairs)


def test_memory_is_a_shared_file() -> None:
    assert "-object memory-backend-file,id=ram,size=1073741824,mem-path=/dev/shm/one.ram,share=on" in _pairs(
        _MACHINE
    )


def test_the_guest_has_no_network_and_no_default_devices() -> None:
    arguments = qemu_arguments(_MACHINE)
    assert "-nodefaults" in arguments
    assert "-no-user-config" in arguments
    assert "-nic none" in _pairs(_MACHINE)


def test_qemu_is_confined() -> None:
    pairs = _pairs(_MACHINE)
    assert any(pair.startswith("-sandbox on") and "spawn=deny" in pair for pair in pairs)


def test_the_launchers_sockets_are_left_for_it() -> None:
    text = " ".join(qemu_arguments(_MACHINE))
    assert text.count(TPM_SOCKET) == 1
    assert text.count(LAUNCHER_QMP) == 1


def test_a_guest_without_tpm_has_no_trace_of_one() -> None:
    text = " ".join(qemu_arguments(replace(_MACHINE, tpm=False)))
    assert "tpm" not in text


def test_direct_boot_has_no_firmware() -> None:
    boot = DirectBoot(Path("/k"), Path("/i"), "console=ttyS0")
    pairs = _pairs(replace(_MACHINE, boot=boot))
    assert "-kernel /k" in pairs
    assert not any("pflash" in pair for pair in pairs)


def test_a_comma_in_a_path_is_no_option() -> None:
    disk = Path("/v/a,readonly=on,b.img")
    pairs = _pairs(replace(_MACHINE, disk=disk))
    assert "-drive if=none,id=data,format=raw,file=/v/a,,readonly=on,,b.img" in pairs


@pytest.mark.parametrize("path", ["relative", "/has\nbreak", "/v/{tpm_socket}"])
def test_paths_that_change_the_meaning_are_refused(path: str) -> None:
    with pytest.raises(SetupError):
        qemu_arguments(replace(_MACHINE, disk=Path(path)))


def test_a_socket_path_that_cannot_be_bound_is_told_early() -> None:
    with pytest.raises(SetupError, match="longer than 107 bytes") as caught:
        qemu_arguments(replace(_MACHINE, console_socket=Path("/" + "x" * 107)))
    assert "AFFIANT_HOME" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [("1G", 1 << 30), ("512M", 512 << 20), ("1024", 1 << 30), ("1048576k", 1 << 30), ("2GiB", 2 << 30)],
)
def test_memory_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "1T", "-1G", "64M", "1.5G", "513M1", "200001K", "9999999G"])
def test_unusable_memory_sizes(text: str) -> None:
    with pytest.raises(SetupError):
        parse_memory(text)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("AFFIANT_ACCELERATION", raising=False)
    (tmp_path / "kvm").touch()
    (tmp_path / "modules/kvm_intel").mkdir(parents=True)
    return tmp_path


def _qemu(host: Path, script: str) -> str:
    program = host / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_kvm_that_brings_up_a_cpu_is_used(host: Path) -> None:
    qemu = _qemu(host, "echo RIP=000000000000fff0")
    assert detect_acceleration(device=host / "kvm", modules=host / "modules", qemu=qemu) is Acceleration.KVM


@pytest.mark.parametrize("script", ["echo 'failed to set MSR' >&2; kill -ABRT $$", "exit 1", "true"])
def test_kvm_that_fails_is_not_used(host: Path, script: str) -> None:
    qemu = _qemu(host, script)
    assert detect_acceleration(device=host / "kvm", modules=host / "modules", qemu=qemu) is Acceleration.TCG


def test_a_device_without_the_processors_own_kvm_is_not_used(host: Path) -> None:
    """A paravirtual KVM has the device node and not the module."""
    (host / "modules/kvm_intel").rmdir()
    (host / "modules/kvm_pvm").mkdir()
    qemu = _qemu(host, "echo RIP=0")
    assert detect_acceleration(device=host / "kvm", modules=host / "modules", qemu=qemu) is Acceleration.TCG


def test_no_device_means_emulation(host: Path) -> None:
    assert detect_acceleration(device=host / "none", modules=host / "modules") is Acceleration.TCG


def test_acceleration_can_be_chosen(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFIANT_ACCELERATION", "kvm")
    assert detect_acceleration(device=host / "none") is Acceleration.KVM
    monkeypatch.setenv("AFFIANT_ACCELERATION", "xen")
    with pytest.raises(SetupError, match="kvm or tcg"):
        detect_acceleration()
