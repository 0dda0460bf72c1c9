"""What a kernel's configuration says about the code it admits, read from the package's config file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from affiant.model.errors import MalformedError

__all__ = ["CONFIG_PATH", "CodePolicy", "configured_release", "read_config"]

CONFIG_PATH = re.compile(r"(usr/)?(boot|lib/modules/[^/]+)/config(-[^/]+)?")
"""Where distributions put it: beside the kernel, or beside its modules."""

_RELEASE = re.compile(r"/modules/(?P<folder>[^/]+)/config|/config-(?P<suffix>[^/]+)")
_MAX_SIZE = 4 << 20
_SETTING = re.compile(rb"^CONFIG_([A-Z0-9_]+)=y$", re.MULTILINE)

# The lockdown LSM must be an early one, or `lsm=` on the command line could leave it out; the last
# option is a patch that Debian, Fedora and Ubuntu carry: lockdown=integrity when EFI says Secure Boot.
_LOCKDOWN = frozenset(
    {"SECURITY_LOCKDOWN_LSM", "SECURITY_LOCKDOWN_LSM_EARLY", "LOCK_DOWN_IN_EFI_SECURE_BOOT"}
)


@dataclass(frozen=True, slots=True)
class CodePolicy:
    """`locks_down`: the kernel turns lockdown on by itself under Secure Boot. `verifies_modules`: it then
    refuses modules without a valid signature (lockdown's integrity mode, or CONFIG_MODULE_SIG_FORCE).
    """

    locks_down: bool
    verifies_modules: bool


def configured_release(path: str) -> str:
    """Return the release that a configuration is of, as its path says; "" where it does not say."""
    match = _RELEASE.search(f"/{path}")
    return "" if match is None else match["folder"] or match["suffix"]


def read_config(config: bytes) -> CodePolicy:
    """Read a kernel's config file. Raises `MalformedError` for what is none."""
    if len(config) > _MAX_SIZE:
        raise MalformedError("the kernel's configuration is too long")
    options = {name.decode("ascii") for name in _SETTING.findall(config)}
    if "X86_64" not in options:
        raise MalformedError("the kernel's configuration is not one of an x86-64 kernel")
    locks_down = options >= _LOCKDOWN
    signed = "MODULE_SIG" in options
    return CodePolicy(locks_down, signed and (locks_down or "MODULE_SIG_FORCE" in options))
