"""What a kernel's configuration says of lockdown and module signatures."""

from __future__ import annotations

import pytest

from affiant.kernel.reference.kernel_config import (
    CONFIG_PATH,
    CodePolicy,
    configured_release,
    read_config,
)
from affiant.model.errors import MalformedError

DEBIAN = (
    "CONFIG_X86_64=y",
    "CONFIG_MODULE_SIG=y",
    "# CONFIG_MODULE_SIG_FORCE is not set",
    "CONFIG_SECURITY_LOCKDOWN_LSM=y",
    "CONFIG_SECURITY_LOCKDOWN_LSM_EARLY=y",
    "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y",
)


def config(*lines: str) -> bytes:
    return "\n".join(lines).encode() + b"\n"


def test_a_distribution_kernel_locks_down_and_verifies_modules() -> None:
    assert read_config(config(*DEBIAN)) == CodePolicy(locks_down=True, verifies_modules=True)


@pytest.mark.parametrize("missing", [DEBIAN[3], DEBIAN[4], DEBIAN[5]])
def test_without_each_part_of_lockdown_nothing_is_claimed(missing: str) -> None:
    lines = [line for line in DEBIAN if line != missing]
    assert read_config(config(*lines)) == CodePolicy(locks_down=False, verifies_modules=False)


def test_forced_signatures_need_no_lockdown() -> None:
    policy = read_config(config("CONFIG_X86_64=y", "CONFIG_MODULE_SIG=y", "CONFIG_MODULE_SIG_FORCE=y"))
    assert policy == CodePolicy(locks_down=False, verifies_modules=True)


def test_lockdown_without_signatures_verifies_nothing() -> None:
    lines = [line for line in DEBIAN if line != "CONFIG_MODULE_SIG=y"]
    assert read_config(config(*lines)) == CodePolicy(locks_down=True, verifies_modules=False)


@pytest.mark.parametrize("line", ["CONFIG_MODULE_SIG=m", "CONFIG_MODULE_SIG=yes", " CONFIG_MODULE_SIG=y"])
def test_only_a_plain_yes_counts(line: str) -> None:
    lines = [line if each == "CONFIG_MODULE_SIG=y" else each for each in DEBIAN]
    assert not read_config(config(*lines)).verifies_modules


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"CONFIG_ARM64=y\n", bytes((4 << 20) + 1)])
def test_what_is_no_configuration_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        read_config(content)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("boot/config-6.1.0-56-cloud-amd64", True),
        ("usr/lib/modules/7.2/config", True),
        ("boot/config-/../x", False),
        ("etc/config", False),
    ],
)
def test_where_it_lies(path: str, found: bool) -> None:
    assert bool(CONFIG_PATH.fullmatch(path)) is found


@pytest.mark.parametrize(
    ("path", "release"),
    [
        ("boot/config-6.1.0-56-cloud-amd64", "6.1.0-56-cloud-amd64"),
        ("usr/lib/modules/7.2/config", "7.2"),
        ("lib/modules/7.2/config", "7.2"),
        ("boot/config", ""),
    ],
)
def test_whose_it_is(path: str, release: str) -> None:
    assert configured_release(path) == release
